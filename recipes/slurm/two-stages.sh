#!/usr/bin/env bash
# Both stages of the galaxies on one node of eight GPUs; goes on where it was when the node is taken away.
#
#   sbatch recipes/slurm/two-stages.sh DATASET OUT
#
#SBATCH --job-name=fieldguide
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

data=$1
out=$2

# The scheduler tells this shell; it tells the training, which saves, and asks for another turn.
stop() {
  kill -TERM "$child" 2>/dev/null || true
  wait "$child" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap stop TERM

stage() { # GUIDE RECIPE [MORE …]
  local guide=$1 recipe=$2
  shift 2
  [ -e "$guide/guide.json" ] && return
  local resume=()
  compgen -G "$guide/checkpoints/step-*" >/dev/null && resume=(--resume)
  # Workers get the time that the scheduler gives; after 30 seconds, torchrun's own limit, they would be killed.
  torchrun --nproc-per-node 8 --shutdown-timeout 110 -m fieldguide train "$data" --out "$guide" --recipe "$recipe" \
    "$@" "${resume[@]}" &
  child=$!
  wait "$child"
}

stage "$out/stage1.guide" recipes/galaxy-pretrain.toml
stage "$out/galaxy.guide" recipes/galaxy-finetune.toml --set "train.start_from=$out/stage1.guide"
fieldguide evaluate "$out/galaxy.guide" "$data"
