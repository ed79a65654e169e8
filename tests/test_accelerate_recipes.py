"""The shipped settings of accelerate and Slurm: read by what reads them, though not run on GPUs here."""

from __future__ import annotations

import subprocess
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
