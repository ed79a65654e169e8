"""What a checkpoint costs a training, and what ten thousand rows cost in memory.

    python bench/checkpoints.py

The pause is the time inside the write, on this disk, beside a hundred steps of the same training: once the
starter's adapter and projector, once all 135 million weights of its language model with their moments.
Memory is the peak of a process that trains a tiny LLaVA on 10,000 rows, less that of one that trains on 100
(the same pictures), so that what the model itself takes drops out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from fieldguide.data.importer import import_pictures
from fieldguide.demo import write_digits
from fieldguide.model.starter import starter_folder
from fieldguide.settings import ImportSettings, load_recipe
from fieldguide.testing.hub import save_tiny
from fieldguide.train.checkpoint import CheckpointWriter, Progress, state_tensors
from fieldguide.train.memory import MemoryUse
from fieldguide.training import train_guide

EVERY = 100  # steps between two checkpoints
PICTURES = 100
RESULTS = Path(__file__).parent / "results" / "checkpoints.json"


def quiet(line: str) -> None:
    """Says nothing."""


def starter_pause(folder: Path) -> dict[str, float]:
    """Seconds of a step and of a checkpoint in a real training of the starter."""
    write_digits(folder)
    dataset = import_pictures(folder / "digits", folder / "data", ImportSettings(), announce=quiet)
    recipe = load_recipe(None, {"train": {"epochs": 1, "checkpoint_every": 5}})
    guide = train_guide(dataset, folder / "digits.guide", recipe, announce=quiet)
    lines = [json.loads(line) for line in (guide.folder / "log" / "steps.jsonl").read_text().splitlines()]
    steps, saves = (
        [one["seconds"] for one in lines if one["kind"] == kind] for kind in ("step", "checkpoint")
    )
    return {"step": float(np.median(steps)), "checkpoint": float(np.median(saves)), "checkpoints": len(saves)}


def whole_pause(folder: Path, rounds: int = 3) -> dict[str, float]:
    """The same where all weights of a language model train: 4 bytes each, and 8 of moments."""
    language = transformers.AutoModelForCausalLM.from_pretrained(
        starter_folder("language"), dtype=torch.float32
    )
    optimizer = torch.optim.AdamW(language.parameters(), lr=1e-5)
    ids = torch.randint(0, 1000, (8, 64))
    writer, steps, saves = CheckpointWriter(folder, keep=2, behind=False), [], []
    for number in range(rounds):
        began = time.perf_counter()
        language(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.perf_counter() - began)
        began = time.perf_counter()
        writer.save(state_tensors(language, optimizer), Progress(step=number + 1), {})
        saves.append(time.perf_counter() - began)
    return {"step": float(np.median(steps)), "checkpoint": float(np.median(saves)), "checkpoints": rounds}


def train_rows(count: int) -> None:
    """Train a tiny LLaVA one epoch on `count` conversations, and print the peak in bytes."""
    with tempfile.TemporaryDirectory() as temporary, MemoryUse(torch.device("cpu")) as use:
        folder = Path(temporary)
        (folder / "photos").mkdir()
        for number in range(PICTURES):
            coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)
            picture.save(folder / "photos" / f"{number}.png")
        said = "It shows a thing of many colours, seen from the left, and behind it lies number {0}."
        rows = [
            {
                "id": str(number),
                "image": f"{number % PICTURES}.png",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat do you see?"},
                    {"from": "gpt", "value": said.format(number)},
                ],
            }
            for number in range(count)
        ]
        table = folder / "photos" / "rows.json"
        table.write_text(json.dumps(rows))
        save_tiny("llava", folder / "model")
        dataset = import_pictures(table, folder / "data", ImportSettings(val=0.1, test=0), announce=quiet)
        settings = {"model": str(folder / "model"), "epochs": 1, "batch_size": 16, "batch_tokens": 4096}
        recipe = load_recipe(None, {"train": {**settings, "checkpoint_every": EVERY}})
        train_guide(dataset, folder / "x.guide", recipe, announce=quiet)
    print(use.most)


def peak(count: int) -> int:
    command = [sys.executable, __file__, "--rows", str(count)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(told.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if arguments.rows:
        train_rows(arguments.rows)
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pauses = {"starter": starter_pause(folder), "all weights": whole_pause(folder / "whole")}
    for name, found in pauses.items():
        share = found["checkpoint"] / (EVERY * found["step"])
        results[name] = found | {"share of 100 steps": share}
        print(
            f"{name}: a step {found['step']:.2f} s, a checkpoint {found['checkpoint']:.2f} s, "
            f"one per {EVERY} steps {share:.2%}"
        )
    few, many = peak(PICTURES), peak(10_000)
    results["memory of 10,000 rows beside 100, MB"] = (many - few) / 1e6
    print(f"10,000 rows beside 100: {(many - few) / 1e6:.0f} MB more ({many / 1e6:.0f} and {few / 1e6:.0f})")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
