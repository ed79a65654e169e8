"""Guides from assembled models: the warm start within a whole training."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fieldguide.data.dataset import Dataset
from fieldguide.guide import load_guide
from fieldguide.records import Example
from fieldguide.settings import Recipe, load_recipe
from fieldguide.testing.hub import save_tiny
from fieldguide.train import part, ridgemap
from fieldguide.training import train_guide
from test_tune import data, quiet, stop_after, tensors  # noqa: F401


def recipe(tmp_path: Path, **settings: Any) -> Recipe:
    for kind in ("llama", "clip"):
        if not (tmp_path / kind).exists():
            save_tiny(kind, tmp_path / kind)
    small = {"epochs": 2, "batch_size": 4, "lora_rank": 2, "checkpoint_every": 1}
    parts = {"model": str(tmp_path / "llama"), "vision": str(tmp_path / "clip")}
    return load_recipe(None, {"train": {**small, **parts, **settings}})


@pytest.mark.parametrize(
    "settings",
    [{}, {"projector": "linear"}, {"projector_part": "frozen"}, {"pretrain_epochs": 1}],
    ids=["mlp", "linear", "frozen", "two stages"],
)
def test_a_warm_start_is_solved_once_and_resumed_as_it_was(
    data: Dataset,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    wanted = recipe(tmp_path, **settings)
    train_guide(data, tmp_path / "whole", wanted, announce=quiet)
    stop_after(monkeypatch, 9)
    with pytest.raises(KeyboardInterrupt):
        train_guide(data, tmp_path / "stopped", wanted, announce=quiet)
    solve: Callable[..., Any] = ridgemap.ridge_map

    def other(*arguments: Any) -> Any:  # other last bits, as from another library or number of threads
        found = solve(*arguments)
        return replace(found, first=found.first * (1 + 1e-6))

    monkeypatch.setattr(ridgemap, "ridge_map", other)
    train_guide(data, tmp_path / "stopped", wanted, resume=True, announce=quiet)
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert [n for n in whole if not torch.equal(whole[n], resumed[n])] == []
    assert load_guide(tmp_path / "whole").fingerprint == load_guide(tmp_path / "stopped").fingerprint


@pytest.mark.parametrize("count", [0, 2])
def test_an_example_of_no_picture_or_several_takes_no_part_in_the_warm_start(
    data: Dataset,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    one, hashes, first = Dataset.paths, part.sha256s_of, data.of("train")[0].id

    def paths(self: Dataset, example: Example) -> tuple[Path, ...]:
        found = one(self, example)
        return found * count if example.id == first else found

    monkeypatch.setattr(Dataset, "paths", paths)
    monkeypatch.setattr(part, "sha256s_of", lambda e: hashes(e) * (count if e.id == first else 1))
    said: list[str] = []
    train_guide(data, tmp_path / "g", recipe(tmp_path), announce=said.append)
    assert any("warm start" in line for line in said)


@pytest.mark.parametrize("projector", ["mlp", "linear", "pooled", "shuffled"])
def test_every_projector_begins_with_what_the_pictures_show(
    data: Dataset,  # noqa: F811
    tmp_path: Path,
    projector: str,
) -> None:
    said: list[str] = []
    guide = train_guide(
        data,
        tmp_path / "x.guide",
        recipe(tmp_path, projector=projector, projector_part="frozen", epochs=1),
        announce=said.append,
    )
    [told] = [line for line in said if line.startswith("warm start")]
    found = re.search(r"([\d.]+)% of the training pictures named rightly", told)
    assert found is not None, told
    assert float(found[1]) > 80, told
    again = load_guide(guide.folder)
    pictures = [data.path(e) for e in data.of("test")]
    assert [a.label for a in again.classify(pictures)] == [a.label for a in guide.classify(pictures)]
