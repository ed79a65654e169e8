"""A vision-language model chooses among names it was never taught: exact, and whatever the order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fieldguide.errors import DataError, GuideError
from fieldguide.model.opening import open_model
from fieldguide.records import Note
from fieldguide.settings import TrainSettings, ZeroShotSettings
from fieldguide.testing.hub import save_tiny
from fieldguide.zeroshot.base import blank_pictures
from fieldguide.zeroshot.names import LabelNames
from fieldguide.zeroshot.vlm import VisionLanguageZeroShot

LABELS = ("ox", "cat", "catfish", "aardvark", "猫", "قط")
NOTES = {"cat": Note("cat", synonyms=("kitten", "house cat")), "ox": Note("ox", scientific_name="Bos taurus")}


@pytest.fixture
def pictures(make_picture: Callable[..., Path]) -> list[Path]:
    return [make_picture(f"{n}.png", n, (60 + 9 * n, 40)) for n in range(3)]


def asked(folder: Path, labels: tuple[str, ...] = LABELS, kind: str = "llava", **settings: Any) -> Any:
    if not (folder / kind).exists():
        save_tiny(kind, folder / kind)
    opened = open_model(TrainSettings(model=str(folder / kind)), announce=lambda line: None)
    notes = {label: note for label, note in NOTES.items() if label in labels}
    return VisionLanguageZeroShot("tiny", opened, LabelNames(labels, notes), ZeroShotSettings(**settings))


def test_a_label_has_the_sum_of_its_names_as_whole_forward_passes_give_them(
    tmp_path: Path, pictures: list[Path]
) -> None:
    model = asked(tmp_path, prior=False)
    trie, owner = model.spellings
    read, _, _ = model.read(pictures[:1])
    # By hand: each name's tokens read alone; at each token, only those that some name goes on with count.
    sequences = [(key, tuple(model.model.label_tokens(key.partition(" ")[2]))) for key in trie.labels]
    scores = np.zeros(len(LABELS))
    for (_, tokens), number in zip(sequences, owner.tolist(), strict=True):
        log = 0.0
        for depth in range(len(tokens)):
            allowed = sorted({s[depth] for _, s in sequences if s[:depth] == tokens[:depth]})
            logits = (
                model.model.start(model.question, read).logits[0]
                if depth == 0
                else model.model.extend(model.model.start(model.question, read), [0], [tokens[:depth]])[0]
            )
            log += float(logits[allowed].double().log_softmax(0)[allowed.index(tokens[depth])])
        scores[number] += np.exp(log)
    assert np.allclose(np.exp(model.log_probabilities(read)[0]), scores, atol=1e-5)
    assert scores.sum() == pytest.approx(1, abs=1e-5)


def test_the_order_of_the_labels_changes_nothing(tmp_path: Path, pictures: list[Path]) -> None:
    first = [
        {s.label: s.probability for s in answer.scores}
        for answer in asked(tmp_path).classify(pictures, top_k=9)
    ]
    for order in itertools.islice(itertools.permutations(LABELS), 100, 700, 200):
        for answer, known in zip(asked(tmp_path, order).classify(pictures, top_k=9), first, strict=True):
            assert {s.label: s.probability for s in answer.scores} == pytest.approx(known, abs=1e-6)


def test_the_prior_is_what_blank_pictures_get(tmp_path: Path, pictures: list[Path]) -> None:
    plain, fair = asked(tmp_path, prior=False), asked(tmp_path)
    blank = np.exp(plain.log_scores(plain.of_images(blank_pictures()))).mean(0)
    read, _, _ = plain.read(pictures)
    wanted = np.exp(plain.log_scores(read)) / blank
    wanted /= wanted.sum(1, keepdims=True)
    assert np.allclose(np.exp(fair.log_probabilities(read)), wanted, atol=1e-9)
    assert not np.allclose(wanted, np.exp(plain.log_probabilities(read)), atol=1e-3)
    assert plain.fingerprint != fair.fingerprint


def test_a_batch_is_answered_as_its_pictures_alone(tmp_path: Path, pictures: list[Path]) -> None:
    model = asked(tmp_path, kind="idefics3")
    (pictures[0].parent / "bad.png").write_bytes(b"no picture")
    together = model.classify([pictures[0], pictures[0].parent / "bad.png", *pictures[1:]])
    assert together[1].error
    for path, answer in zip([pictures[0], None, *pictures[1:]], together, strict=True):
        if path is not None:
            [alone] = model.classify([path])
            assert alone.label == answer.label
            assert alone.probability == pytest.approx(answer.probability, abs=1e-5)
    assert model.ask(pictures[0], "Why?").label == together[0].label


def test_neither_length_nor_the_number_of_names_counts(tmp_path: Path, pictures: list[Path]) -> None:
    """A model to which every token is equally likely."""
    long = "a very long name indeed of nine words"
    for labels, prior, wanted in (
        (("elk", long), False, [1 / 2, 1 / 2]),  # two spellings each
        (("ox", long), False, [3 / 5, 2 / 5]),  # and its scientific name
        (("ox", long), True, [1 / 2, 1 / 2]),
    ):
        model = asked(tmp_path, labels, prior=prior)
        with torch.no_grad():
            model.model.network.get_output_embeddings().weight.zero_()
        read, _, _ = model.read(pictures[:1])
        shares = np.exp(model.log_probabilities(read)[0]).tolist()
        assert shares == pytest.approx(wanted, abs=1e-6)


def test_names_that_are_one_to_the_model_are_refused(tmp_path: Path) -> None:
    model = asked(tmp_path, ("ox", "cat"))
    tokens = model.model.label_tokens
    model.model.label_tokens = lambda text: tokens("same")
    with pytest.raises(DataError, match="is here a name of"):
        _ = model.spellings


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuideError, match="reads text only"):
        asked(tmp_path, kind="llama")
