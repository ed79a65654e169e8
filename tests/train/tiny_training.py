"""A whole training in miniature: run by the tests of the loop, and in processes that the tests kill.

Pictures are made features around a point a label; the model is the real one, tiny and random, with an
adapter, summary and patch tokens; rows, warm start and batches are those of a real training.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fieldguide.answer.choose import choose_all
from fieldguide.answer.trie import LabelTrie
from fieldguide.model.assemble import Assembled
from fieldguide.model.projector import PictureFeatures
from fieldguide.records import Example, Note
from fieldguide.settings import AnswerSettings, TrainSettings
from fieldguide.testing import tiny_model
from fieldguide.train import checkpoint, loop
from fieldguide.train.loop import Loop
from fieldguide.train.rows import Row, epoch_rows
from fieldguide.train.warmstart import install, label_embeddings, solve

LABELS = ("ox", "catfish", "鱼")
SUMMARY_TOKENS = 2
ANSWER = AnswerSettings(question="What?", why="Why?")
NOTES = {"ox": Note("ox", field_marks=("horns",)), "catfish": Note("catfish", field_marks=("barbels",))}
IDENTITY = {"data set": "tiny", "training settings": {"seed": 0}}


def settings(**changes: Any) -> TrainSettings:
    """Of a training of a second or so, with everything random and scheduled switched on."""
    values: dict[str, Any] = {
        "summary_tokens": SUMMARY_TOKENS, "patch_tokens": 4, "lora_rank": 4, "lora_dropout": 0.1, "epochs": 3,
        "batch_size": 4, "batch_tokens": 10_000, "accumulate": 2, "learning_rate": 5e-3,
        "projector_learning_rate": 5e-3, "explain_per_label": 2, "checkpoint_every": 2,
    }  # fmt: skip
    return TrainSettings(**(values | changes))


def new_model(lora_dropout: float = 0.1) -> Assembled:
    return tiny_model(
        LABELS,
        patches=4,
        channels=6,
        pooled=5,
        summary_tokens=SUMMARY_TOKENS,
        patch_tokens=4,
        lora_rank=4,
        lora_dropout=lora_dropout,
    )


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 4, 6) grids, (n, 5) pooled features, (n,) label numbers; separable, the labels taking turns."""
    centres = np.random.default_rng(99).normal(size=(len(LABELS), 29))
    targets = np.arange(count) % len(LABELS)
    flat = centres[targets] + 0.3 * np.random.default_rng(seed).normal(size=(count, 29))
    flat = flat.astype(np.float32)
    return flat[:, :24].reshape(count, 4, 6), flat[:, 24:], targets


def tensors(grid: np.ndarray, pooled: np.ndarray, evidence: np.ndarray | None = None) -> PictureFeatures:
    given = None if evidence is None else torch.from_numpy(evidence.astype(np.float32))
    return PictureFeatures(torch.from_numpy(grid), torch.from_numpy(pooled), given)


def label_scores(model: Assembled, features: PictureFeatures) -> torch.Tensor:
    """(n, R) log-probabilities of the labels."""
    trie = LabelTrie({label: model.label_tokens(label) for label in LABELS})
    return choose_all(model, ANSWER.question, features, trie)


def validation(model: Assembled) -> Callable[[], dict[str, float]]:
    """Loss and accuracy on pictures that are not trained on."""
    grid, pooled, targets = pictures(9, seed=1)

    def validate() -> dict[str, float]:
        scores = label_scores(model, tensors(grid, pooled))
        right = scores.argmax(1).numpy() == targets
        return {"loss": float(-scores[range(9), targets].mean()), "accuracy": float(right.mean())}

    return validate


def make_loop(folder: Path, **changes: Any) -> Loop:
    """A training that has not begun.

    Args:
        folder: of its checkpoints.
        changes: of the settings; or `model`, `features`, `rows_of`, `validate`, `identity` in place of the
            made ones; `precision`.
    """
    given = {
        name: changes.pop(name)
        for name in ("model", "features", "rows_of", "validate", "identity")
        if name in changes
    }
    precision = changes.pop("precision", "fp32")
    train = settings(**changes)
    grid, pooled, targets = pictures(24)
    model = given.get("model") or new_model(train.lora_dropout)
    start = solve(grid, pooled, targets, len(LABELS))
    words = [model.prompt.words(label) for label in LABELS]
    embedding = model.language_model.get_input_embeddings().weight
    install(model.projector, start, label_embeddings(embedding, words, SUMMARY_TOKENS))
    examples = [Example(str(i), f"{i}.png", label=LABELS[target]) for i, target in enumerate(targets)]

    def rows_of(epoch: int) -> list[Row]:
        return epoch_rows(model.prompt, examples, NOTES, train, ANSWER, epoch)

    return Loop(
        model,
        given.get("rows_of", rows_of),
        given.get("features", tensors(grid, pooled, start.left_out)),
        given.get("validate", validation(model)),
        folder,
        train,
        ANSWER.question,
        given.get("identity", IDENTITY),
        lambda line: None,
        precision=precision,
    )


def train_in_process(folder: Path, kill_at: str = "") -> None:
    """The whole training, going on from the last checkpoint when there is one; the target of a process.

    Args:
        folder: of its checkpoints.
        kill_at: "" or the moment, and its number, at which the process ends itself by SIGKILL: "step 5"
            when step 5 is done, "state 2" when half of the second checkpoint is written, "best 2" when the
            second best parameters are written and the checkpoint that says so is not.
    """
    torch.set_num_threads(1)
    if kill_at:
        moment, number = kill_at.split()
        if moment == "step":
            Loop._step = _killed_at(int(number), Loop._step)  # type: ignore[method-assign]
        elif moment == "state":
            checkpoint.write_json = _killed_at(int(number), checkpoint.write_json, before=True)
        elif moment == "best":
            loop.save_tensors = _killed_at(int(number) + 1, loop.save_tensors)  # the first is the start
    make_loop(folder).run(resume=bool(checkpoint.checkpoints(folder)))


def _killed_at(number: int, call: Callable[..., Any], *, before: bool = False) -> Callable[..., Any]:
    """`call`, at whose n-th time the process is killed: when it is done, or before it begins."""
    left = number

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if not left and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called
