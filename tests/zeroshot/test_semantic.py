"""The starter names what it was never taught, by the meaning of ImageNet's classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fieldguide.data.notes import read_notes
from fieldguide.errors import ModelMissing
from fieldguide.model.starter import starter_folder
from fieldguide.settings import ZeroShotSettings
from fieldguide.zeroshot.names import LabelNames, names_from_notes
from fieldguide.zeroshot.semantic import SemanticStarter

pytestmark = pytest.mark.starter


@pytest.fixture(scope="module", autouse=True)
def _sentences() -> None:
    try:
        starter_folder("text")
    except ModelMissing as error:
        if os.environ.get("CI", "").lower() == "true":
            raise  # there they must run
        pytest.skip(f"needs the sentence embeddings: {error.hint}")


def test_animals_are_named_without_training(shared_data: Path) -> None:
    notes = read_notes(shared_data / "notes" / "animals.csv")
    there = {path.name for path in (shared_data / "animals").iterdir() if path.is_dir()}
    names = names_from_notes(note for note in notes if note.label in there)
    model = SemanticStarter(names, ZeroShotSettings())
    pictures = [
        p for label in sorted(there) for p in sorted((shared_data / "animals" / label).iterdir())[:10]
    ]
    answers = model.classify([*pictures, shared_data / "odd" / "missing.jpg"], top_k=2)
    assert answers[-1].error
    right = [answer.label == path.parent.name for answer, path in zip(answers, pictures, strict=False)]
    assert np.mean(right) > 0.8  # 0.88 of all of them; by chance one of seven
    turned = LabelNames(tuple(reversed(names.labels)), names.notes)
    again = SemanticStarter(turned, ZeroShotSettings(), model.encoder, model.sentences).classify(pictures)
    for first, second in zip(answers, again, strict=False):
        assert second.label == first.label
        assert second.probability == pytest.approx(first.probability, abs=1e-5)


def test_scores_are_cosines_of_what_the_likeliest_classes_mean() -> None:
    names = LabelNames(("cat", "truck", "trumpet"))
    model = SemanticStarter(names, ZeroShotSettings(prior=False))
    # A picture of which the classifier is sure: the pooled features of one class's own weights.
    tabby, trumpet = 281, 513
    pictures = (
        10 * model.weight[[tabby, trumpet]] / np.linalg.norm(model.weight[[tabby, trumpet]], axis=1)[:, None]
    )
    scores = np.exp(model.log_probabilities(pictures))
    assert scores.argmax(1).tolist() == [0, 2]
    assert scores.sum(1) == pytest.approx([1, 1])
    assert model.cards()["sentence embeddings"]["licence"] == "Apache-2.0"
