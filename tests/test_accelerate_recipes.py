"""The shipped settings of accelerate and Slurm: read by what reads them, though not run on GPUs here."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_settings(path: Path) -> None:
    config = load_config_from_file(str(path))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert str(config.distributed_type).endswith(kinds[path.stem])
    assert (config.num_processes, config.mixed_precision) == (8, "bf16")


def test_the_job_script_is_a_script_and_names_recipes_that_exist() -> None:
    script = RECIPES / "slurm" / "two-stages.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    for name in ("galaxy-pretrain.toml", "galaxy-finetune.toml"):
        assert f"recipes/{name}" in text
        assert (RECIPES / name).is_file()


TORCHRUN = """#!/usr/bin/env bash
# Stands for torchrun: notes how it was called; ends at once, or waits to be told to stop, and then saves.
echo "torchrun $*" >> "$CALLS"
while [ "$1" != --out ]; do shift; done
mkdir -p "$2/checkpoints"
if [ -e "$WAITS" ]; then
  trap 'mkdir -p "$2/checkpoints/step-000007"; exit 143' TERM
  touch "$READY"
  for _ in $(seq 600); do sleep 0.1; done
  exit 1
fi
touch "$2/guide.json"
"""


def test_a_job_that_is_stopped_is_queued_again_and_resumes(tmp_path: Path) -> None:
    """The script itself; torchrun, scontrol and fieldguide are scripts that note how they were called."""
    places = {name: tmp_path / name for name in ("CALLS", "WAITS", "READY")}
    (tmp_path / "bin").mkdir()
    note = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >> "$CALLS"\n'
    for name, text in {"torchrun": TORCHRUN, "scontrol": note, "fieldguide": note}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        **os.environ, **{name: str(path) for name, path in places.items()},
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "42",
    }  # fmt: skip
    command = ["bash", str(RECIPES / "slurm" / "two-stages.sh"), "galaxies", str(tmp_path / "out")]

    places["WAITS"].touch()
    job = subprocess.Popen(command, env=environment)
    end = time.monotonic() + 30
    while not places["READY"].exists():
        assert job.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 0
    first, queued = places["CALLS"].read_text().splitlines()
    assert first.endswith(
        f"train galaxies --out {tmp_path}/out/stage1.guide --recipe recipes/galaxy-pretrain.toml"
    )
    assert queued == "scontrol requeue 42"

    places["WAITS"].unlink()
    subprocess.run(command, env=environment, check=True, timeout=30)
    one, two, last = places["CALLS"].read_text().splitlines()[2:]
    assert one == f"{first} --resume"
    assert two.endswith(
        f"--recipe recipes/galaxy-finetune.toml --set train.start_from={tmp_path}/out/stage1.guide"
    )
    assert last == f"fieldguide evaluate {tmp_path}/out/galaxy.guide galaxies"
