"""The shipped recipes: each opens, and its tiny twin goes the whole way through the very same code.

Import, train, kill -9, resume to the same bits, evaluate, merge, load with plain transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from typer.testing import CliRunner

from fieldguide import load_guide
from fieldguide.cli import app
from fieldguide.files import read_json
from fieldguide.settings import load_recipe
from fieldguide.testing.hub import save_tiny

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("fish", "galaxy-pretrain", "galaxy-finetune", "phi", "scene-llama", "smolvlm")
# What a tiny twin may set otherwise: sizes and places, never what is trained or how.
SIZES = {
    "model", "vision", "batch_size", "batch_tokens", "accumulate", "epochs", "lora_rank", "lora_alpha",
    "warmup", "precision", "checkpoint_every",
}  # fmt: skip
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}


@pytest.mark.parametrize("name", NAMES)
def test_the_tiny_twin_is_the_same_recipe_at_another_size(name: str) -> None:
    big, tiny = (asdict(load_recipe(RECIPES / f"{name}{end}.toml").train) for end in ("", "-tiny"))
    assert {key for key in big if big[key] != tiny[key]} <= SIZES
    text = (RECIPES / f"{name}.toml").read_text()
    assert text.startswith("#")
    assert "fieldguide" in text.split("[train]")[0], "opens with the command that uses it"


def run(*arguments: object) -> str:
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def pictures(folder: Path) -> list[Path]:
    """Twelve pictures a colour, of mixed sizes."""
    generator, made = np.random.default_rng(0), []
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for number in range(12):
            size = (int(generator.integers(24, 90)), int(generator.integers(24, 90)))
            pixels = generator.normal(colour, 40, (size[1], size[0], 3)).clip(0, 255).astype(np.uint8)
            made.append(folder / label / f"{number}.png")
            Image.fromarray(pixels).save(made[-1])
    return made


def labelled(folder: Path) -> Path:
    pictures(folder / "photos")
    (folder / "notes.csv").write_text("label,field_marks\nred,warm;like blood\nblue,cold;like the sea\n")
    run("import", folder / "photos", "-o", folder / "data", "--notes", folder / "notes.csv")
    return folder / "data"


def captioned(folder: Path) -> Path:
    made = pictures(folder / "photos")
    captions = {
        path.relative_to(folder / "photos").as_posix(): [
            f"A {path.parent.name} picture.",
            "A square of noise.",
        ]
        for path in made
    }
    (folder / "photos" / "captions.json").write_text(json.dumps(captions))
    run("import", folder / "photos" / "captions.json", "-o", folder / "data")
    return folder / "data"


def conversed(folder: Path) -> Path:
    rows = []
    for path in pictures(folder / "photos"):
        name = path.relative_to(folder / "photos").as_posix()
        said = [("human", "<image>\nWhat is it?"), ("gpt", f"It is {path.parent.name}."), ("human", "Sure?")]
        turns = [{"from": who, "value": text} for who, text in (*said, ("gpt", "Yes."))]
        rows.append({"id": name, "image": name, "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    run("import", folder / "rows.json", "--images", folder / "photos", "-o", folder / "data")
    return folder / "data"


def texts(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(40):
        scene = f"Objects: {number} cars, left of {number + 1} trees."
        turns = [{"from": "human", "value": scene}, {"from": "gpt", "value": f"{number} cars by the trees."}]
        rows.append({"id": str(number), "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    run("import", folder / "rows.json", "-o", folder / "data")
    return folder / "data"


# recipe → (the data it learns from, the tiny models it is made of)
STARTS = {
    "fish": (labelled, {"train.model": "llava_next"}),
    "galaxy-pretrain": (captioned, {"train.model": "llava"}),
    "galaxy-finetune": (conversed, {"train.model": "llava"}),
    "phi": (conversed, {"train.model": "phi3", "train.vision": "clip"}),
    "scene-llama": (texts, {"train.model": "llama"}),
    "smolvlm": (labelled, {"train.model": "smolvlm"}),
}


def digests(guide: Path) -> dict[str, str]:
    files = read_json(guide / "guide.json")["files"]
    return {name: hashlib.sha256((guide / name).read_bytes()).hexdigest() for name in files}


def train_and_kill(command: list[str], guide: Path) -> None:
    """Start a training and kill it -9 once it has written two checkpoints."""
    code = "import sys; from fieldguide.cli import main; sys.argv[0] = 'fieldguide'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 120
    while len(list(guide.glob("checkpoints/step-*/state.json"))) < 2:
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < end, "no checkpoint in two minutes"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (guide / "guide.json").exists(), "it was done before it could be killed"


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_recipe_goes_the_whole_way(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    make, kinds = STARTS[name]
    settings = [f"{key}={save_tiny(kind, tmp_path / key, seed=3)}" for key, kind in kinds.items()]
    if name == "galaxy-finetune":
        model = settings[0]
        first = captioned(tmp_path / "first")
        run(
            "train", first, "-o", tmp_path / "stage1.guide", "-r", RECIPES / "galaxy-pretrain-tiny.toml",
            "--set", model,
        )  # fmt: skip
        settings.append(f"train.start_from={tmp_path / 'stage1.guide'}")
    data = make(tmp_path / "main")
    options = [part for setting in settings for part in ("--set", setting)]
    recipe = ["--recipe", str(RECIPES / f"{name}-tiny.toml"), *options]
    whole, killed = tmp_path / "whole.guide", tmp_path / "killed.guide"
    run("train", data, "-o", whole, *recipe)
    train_and_kill(["train", str(data), "-o", str(killed), *recipe], killed)
    run("train", data, "-o", killed, *recipe, "--resume")
    assert digests(killed) == digests(whole)

    said = run("evaluate", killed, data)
    assert "report:" in said
    assert (killed / "report" / "metrics.json").is_file()
    run("merge", killed, "-o", tmp_path / "merged", "--dataset", data)
    certificate = read_json(tmp_path / "merged" / "certificate.json")
    assert certificate["relative_loss_difference"] < 1e-3
    same_answers(killed, tmp_path / "merged", data)


def same_answers(guide: Path, merged: Path, data: Path) -> None:
    """Plain transformers, from the merged folder alone, gives the guide's own logits."""
    from fieldguide.data.dataset import load_dataset

    model = load_guide(guide).model
    vision = model.family.vision  # type: ignore[attr-defined]
    kind = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
    plain = kind.from_pretrained(merged, local_files_only=True, dtype=torch.float32).eval()
    dataset = load_dataset(data)
    for example in dataset.of("test")[:3]:
        images = [Image.open(path).convert("RGB") for path in dataset.paths(example)]
        prepared = model.prepare(images)  # type: ignore[operator]
        question, shown = "What is it?", bool(images)
        prompt = model.prompt
        ids = [*prompt.before(question, shown), *prepared.tokens, *prompt.after(question, shown)]
        inputs = {"input_ids": torch.tensor([ids])}
        if images:
            inputs |= model.joined(prepared.shown)  # type: ignore[operator]
        from fieldguide.model.hub import HubPictures

        ours = model.start(question, HubPictures((prepared,))).logits[0]
        with torch.no_grad():
            theirs = plain(**inputs).logits[0, -1]
        assert torch.allclose(ours, theirs, atol=2e-4), float((ours - theirs).abs().max())
