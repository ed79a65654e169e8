"""Time to accuracy and samples a second, beside the usual recipe for the same model, data and LoRA.

    python bench/training.py [PICTURES] [--notes NOTES.csv] [--most 12] [--patience 3]

PICTURES is a folder with a sub-folder a label; without it, thirty of scikit-learn's digits a label are taken.

The usual recipe: sixteen patch tokens through a randomly initialised two-layer projector, the encoder run on
every picture at every step, logits over the whole vocabulary at every position, rows in random order and
padded to the longest row of the data set, the prompt repeated in every row. It trains until its validation
accuracy has not improved for `--patience` epochs; the time at which it first reached its best is compared
with the time in which the default recipe first reaches as much, its embedding and warm start included.

Both take the pictures of one import, validate in the same way (not counted), and run in one process, one
after the other. The last two figures are one step of the default recipe and what the machine's matrix rate
would allow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from fieldguide.answer.calibrate import measure
from fieldguide.data.dataset import Dataset
from fieldguide.data.importer import import_pictures
from fieldguide.demo import write_digits
from fieldguide.images import load_picture
from fieldguide.model.language import decoder, vocabulary_head
from fieldguide.model.projector import PictureFeatures
from fieldguide.model.vision import VisionEncoder, load_encoder
from fieldguide.settings import load_recipe
from fieldguide.train.batches import collate, epoch_order
from fieldguide.train.features import embed_pictures
from fieldguide.train.rows import epoch_rows
from fieldguide.training import Setup, prepare, warm_start

RATES = ("learning_rate", "projector_learning_rate")
RESULTS = Path(__file__).parent / "results"


def quiet(line: str) -> None:
    """Says nothing."""


def accuracy(setup: Setup) -> float:
    """Share of the validation pictures named rightly."""
    setup.model.eval()
    labels = [setup.labels[target] for target in setup.val.targets]
    return measure(setup.model, setup.recipe.answer.question, setup.val.tensors(), labels, setup.trie)[1]


def optimizer_of(setup: Setup) -> torch.optim.AdamW:
    """The same for both recipes: AdamW at constant rates, one for the adapter and one for the projector."""
    settings = setup.recipe.train
    groups: dict[str, list] = {rate: [] for rate in RATES}
    for name, parameter in setup.model.named_parameters():
        if parameter.requires_grad:
            groups[RATES[name.startswith("projector.")]].append(parameter)
    listed = [{"params": found, "lr": getattr(settings, rate)} for rate, found in groups.items()]
    return torch.optim.AdamW(listed, weight_decay=settings.weight_decay)


def rows_of(setup: Setup, epoch: int) -> list:
    recipe = setup.recipe
    return epoch_rows(
        setup.model.prompt, setup.train.examples, setup.notes, recipe.train, recipe.answer, epoch
    )


def default_epoch(setup: Setup, optimizer: torch.optim.Optimizer, epoch: int) -> Iterator[int]:
    """The default recipe's step: shared prefix, length buckets, logits where they count. Yields rows done."""
    settings = setup.recipe.train
    features = setup.train.tensors(setup.start.left_out)
    rows = rows_of(setup, epoch)
    setup.model.train()
    order = epoch_order(
        [len(r.ids) for r in rows], settings.batch_size, settings.batch_tokens, settings.seed, epoch
    )
    for numbers in order:
        batch = collate([rows[i] for i in numbers])
        part = features.rows(batch.pictures)
        logits = setup.model(setup.recipe.answer.question, part, batch.ids, batch.supervised)
        torch.nn.functional.cross_entropy(logits, batch.targets).backward()
        finish(setup, optimizer)
        yield len(numbers)


def usual_epoch(
    setup: Setup, optimizer: torch.optim.Optimizer, epoch: int, encode: Callable[[list[int]], PictureFeatures]
) -> Iterator[int]:
    """The usual recipe's step. Yields rows done."""
    model, settings = setup.model, setup.recipe.train
    before = model.prompt.before(setup.recipe.answer.question)
    rows = rows_of(setup, epoch)
    longest = max(len(row.ids) for row in rows)
    order = np.random.default_rng([settings.seed, epoch]).permutation(len(rows))
    model.train()
    for start in range(0, len(order), settings.batch_size):
        chosen = [rows[i] for i in order[start : start + settings.batch_size]]
        batch = collate(
            [
                dataclasses.replace(
                    r,
                    ids=r.ids + (0,) * (longest - len(r.ids)),
                    supervised=r.supervised + (False,) * (longest - len(r.ids)),
                )
                for r in chosen
            ]
        )
        visual = model.projector(encode([r.picture for r in chosen]))
        prefix = model.embed(torch.tensor([before]).expand(len(chosen), -1))
        hidden = decoder(model.language_model)(
            inputs_embeds=torch.cat([prefix, visual, model.embed(batch.ids)], dim=1)
        ).last_hidden_state
        logits = vocabulary_head(model.language_model)(hidden)  # (B, L, V): every position
        skip = len(before) + visual.shape[1]
        targets = torch.full(logits.shape[:2], -100)
        targets[:, skip:][batch.supervised] = batch.targets
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()).backward()
        finish(setup, optimizer)
        yield len(chosen)


def finish(setup: Setup, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(
        [p for p in setup.model.parameters() if p.requires_grad], setup.recipe.train.clip
    )
    optimizer.step()
    optimizer.zero_grad()


def eager_encoder(setup: Setup) -> Callable[[list[int]], PictureFeatures]:
    """Decode and encode the pictures of a batch anew, with PyTorch."""
    encoder = load_encoder(dataclasses.replace(setup.recipe.embed, runtime="torch"), quiet)

    def encode(numbers: list[int]) -> PictureFeatures:
        paths = [setup.dataset.path(setup.train.examples[i]) for i in numbers]
        prepared = np.stack(
            [encoder.prepare(load_picture(p, shrink_to=encoder.shrink_to).image) for p in paths]
        )
        grid, pooled = encoder.encode(prepared)
        return PictureFeatures(torch.from_numpy(grid), torch.from_numpy(pooled))

    return encode


def run(
    setup: Setup,
    name: str,
    epoch_of: Callable[[int], Iterator[int]],
    most: int,
    patience: int,
    goal: float = 2.0,
) -> dict:
    """Train until the goal, or until nothing improves; seconds are of training alone."""
    seconds, samples, history = 0.0, 0, []
    best, best_at, bad = -1.0, 0.0, 0
    for epoch in range(most):
        began = time.perf_counter()
        samples += sum(epoch_of(epoch))
        seconds += time.perf_counter() - began
        reached = accuracy(setup)
        history.append(
            {"epoch": epoch + 1, "seconds": round(seconds, 1), "validation_accuracy": round(reached, 4)}
        )
        print(f"{name}: {history[-1]}", flush=True)
        best, best_at, bad = (reached, seconds, 0) if reached > best else (best, best_at, bad + 1)
        if reached >= goal or bad >= patience:
            break
    return {
        "best": best,
        "seconds_to_best": best_at,
        "samples_a_second": samples / seconds,
        "history": history,
    }


def matrix_rate() -> float:
    """Multiply-adds ×2 a second of a matrix product of the step's size."""
    a, b = torch.randn(176, 576), torch.randn(576, 1536)
    for _ in range(20):
        a @ b
    began = time.perf_counter()
    for _ in range(200):
        a @ b
    return 200 * 2 * 176 * 576 * 1536 / (time.perf_counter() - began)


def step_floor(setup: Setup) -> tuple[float, float]:
    """Seconds of one step of label rows, and the least it could take at the machine's matrix rate.

    Forward and the gradient of the activations each multiply every frozen weight with every position.
    """
    optimizer, settings = optimizer_of(setup), setup.recipe.train
    rows = [r for r in rows_of(setup, 0) if len(r.ids) < 16][: settings.batch_size]
    batch = collate(rows)
    features = setup.train.tensors(setup.start.left_out)
    part = features.rows(batch.pictures)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        logits = setup.model(setup.recipe.answer.question, part, batch.ids, batch.supervised)
        torch.nn.functional.cross_entropy(logits, batch.targets).backward()
        finish(setup, optimizer)
        times.append(time.perf_counter() - began)
    blocks = sum(p.numel() for n, p in setup.model.named_parameters() if "_proj" in n and not p.requires_grad)
    positions = (
        len(setup.model.prompt.before(setup.recipe.answer.question)) + batch.ids.numel() + 3 * len(rows)
    )
    head = (
        int(batch.supervised.sum())
        * setup.model.embed(torch.tensor([0])).shape[1]
        * len(setup.model.tokenizer)
    )
    return float(np.median(times)), 2 * (2 * blocks * positions + 2 * head) / matrix_rate()


def few_digits(folder: Path) -> tuple[Path, Path]:
    """Thirty pictures of each digit, and their notes."""
    write_digits(folder)
    for label in (folder / "digits").iterdir():
        for picture in sorted(label.iterdir())[30:]:
            picture.unlink()
    return folder / "digits", folder / "notes.csv"


def usual_recipe(dataset: Dataset, encoder: VisionEncoder, most: int, patience: int) -> dict:
    """Train by the usual recipe until it no longer improves."""
    recipe = load_recipe(None, {"train": {"summary_tokens": 0, "patch_tokens": 16}})
    setup = prepare(dataset, recipe, encoder, quiet)
    encode, optimizer = eager_encoder(setup), optimizer_of(setup)
    return run(setup, "usual", lambda epoch: usual_epoch(setup, optimizer, epoch, encode), most, patience)


def default_recipe(dataset: Dataset, encoder: VisionEncoder, goal: float) -> dict:
    """Train by the default recipe until it reaches the goal; its step beside the machine's floor."""
    recipe = load_recipe()
    setup = prepare(dataset, recipe, encoder, quiet)
    began = time.perf_counter()
    warm_start(setup.train, setup.labels)
    solving = time.perf_counter() - began
    start = accuracy(setup)
    print(f"default, before any step: validation accuracy {start:.4f}", flush=True)
    optimizer = optimizer_of(setup)
    epochs = recipe.train.epochs
    result = run(setup, "default", lambda epoch: default_epoch(setup, optimizer, epoch), epochs, epochs, goal)
    seconds, floor = step_floor(setup)
    return {**result, "warm_start": solving, "before": start, "step": seconds, "step_floor": floor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, nargs="?")
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--most", type=int, default=12, help="epochs of the usual recipe")
    parser.add_argument("--patience", type=int, default=3)
    arguments = parser.parse_args()
    settings = load_recipe()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.pictures is None:
            arguments.pictures, arguments.notes = few_digits(Path(folder))
        data = Path(folder) / "data"
        dataset = import_pictures(
            arguments.pictures, data, settings.imports, notes=arguments.notes, announce=quiet
        )
        encoder = load_encoder(settings.embed, quiet)
        pictures = [(dataset.path(e), e.sha256) for e in dataset.of("train")]
        began = time.perf_counter()
        embed_pictures(pictures, encoder, cache=Path(folder) / "features")  # an empty cache
        embedding = time.perf_counter() - began
        usual = usual_recipe(dataset, encoder, arguments.most, arguments.patience)
        default = default_recipe(dataset, encoder, usual["best"])
    before = embedding + default["warm_start"]
    history = default["history"]
    reached = [h["seconds"] for h in history if h["validation_accuracy"] >= usual["best"]]
    first = before if default["before"] >= usual["best"] else before + min(reached, default=float("inf"))
    figures = {
        "training pictures": len(pictures),
        "usual: best validation accuracy": usual["best"],
        "usual: seconds to it": usual["seconds_to_best"],
        "default: seconds to as much": first,
        "ratio of times": usual["seconds_to_best"] / first,
        "ratio of times, if the default must train one whole epoch": usual["seconds_to_best"]
        / (before + history[0]["seconds"]),
        "samples a second: default": default["samples_a_second"],
        "samples a second: usual": usual["samples_a_second"],
        "ratio of samples a second": default["samples_a_second"] / usual["samples_a_second"],
        "seconds a step of label rows": default["step"],
        "its floor at the machine's matrix rate": default["step_floor"],
    }
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    RESULTS.mkdir(exist_ok=True)
    everything = {"figures": figures, "usual": usual, "default": {**default, "embedding": embedding}}
    (RESULTS / "training.json").write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    main()
