"""`fieldguide train` as a scheduler runs it: stopped by SIGTERM in either stage, and as two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from fieldguide import load_guide
from fieldguide.cli import app
from fieldguide.data.importer import import_pictures
from fieldguide.settings import ImportSettings
from fieldguide.testing.hub import save_tiny

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a training in two stages, of a dozen steps each, all but `--out GUIDE`."""
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(10):
            pixels = generator.normal(colour, 40, (40, 30 + number, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    import_pictures(
        tmp_path / "photos", tmp_path / "data", ImportSettings(val=0.2), announce=lambda line: None
    )
    settings = {
        "model": save_tiny("llava", tmp_path / "tiny"), "pretrain_epochs": 3, "epochs": 3, "batch_size": 4,
        "checkpoint_every": 1, "lora_rank": 2, "lora_dropout": 0.1, "learning_rate": 1e-3, "patience": 0,
    }  # fmt: skip
    given = [part for name, value in settings.items() for part in ("--set", f"train.{name}={value}")]
    return ["train", str(tmp_path / "data"), *given]


def run(*arguments: str) -> None:
    outcome = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "fieldguide", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def stopped(process: subprocess.Popen[str], folder: Path) -> None:
    """Ask a training to stop once it has written a checkpoint to a folder, and look at how it ends."""
    end = time.monotonic() + 120
    while not list(folder.glob("step-*/state.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.startswith("fieldguide: stopped after step ")
    assert errors.endswith("and saved\n→ run the same command with --resume to go on\n")


def tensors(guide: Path) -> Tensors:
    return load_file(guide / "projector.safetensors") | load_file(guide / "adapter/adapter_model.safetensors")


def test_stopped_in_either_stage_and_resumed_to_the_same_bits(tmp_path: Path, command: list[str]) -> None:
    whole, guide = tmp_path / "whole", tmp_path / "stopped"
    run(*command, "-o", str(whole))
    stopped(start(*command, "-o", str(guide)), guide / "checkpoints" / "pretrain")
    assert not list((guide / "checkpoints").glob("step-*"))
    stopped(start(*command, "-o", str(guide), "--resume"), guide / "checkpoints")
    assert not (guide / "guide.json").exists()
    run(*command, "-o", str(guide), "--resume")
    wanted, found = tensors(whole), tensors(guide)
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    assert load_guide(whole).fingerprint == load_guide(guide).fingerprint


def test_two_processes_make_the_guide_of_one(tmp_path: Path, command: list[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    plain = [*command, "--set", "train.lora_dropout=0.0"]
    run(*plain, "-o", str(one))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    said, errors = start(*plain, "-o", str(two), launcher=launcher).communicate(timeout=120)
    assert (two / "guide.json").is_file(), errors[-3000:]
    wanted, found = tensors(one), tensors(two)
    assert wanted.keys() == found.keys()
    assert max(float((wanted[name] - found[name]).abs().max()) for name in wanted) < 1e-5
    assert said.count("guide: ") == 1, "the first process speaks, the other is silent"
