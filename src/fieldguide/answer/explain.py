"""An answer with what can be checked about it: marks to look for, pictures like it, rivals, statements.

    explanation = load_guide("fish.guide").explain("img.jpg")

All of it says where it comes from: field marks and differences stand in the notes, neighbours are training
pictures by the frozen encoder's features, statements are the model's and are held against the notes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fieldguide.answer.crossfit import spread_over_labels
from fieldguide.answer.heat import Answering, Where, where
from fieldguide.answer.statements import Statement, passages_of, statements
from fieldguide.errors import PictureError
from fieldguide.files import sha256_file
from fieldguide.progress import progress_bar
from fieldguide.records import Answer, Note
from fieldguide.train.features import embed_pictures

NEIGHBOURS = 5
MOST = 5000  # training pictures looked at: bounds the memory
RIVALS = 3  # runner-ups that are told apart
LEAST = 0.01  # probability below which a runner-up is not worth telling apart
_SENTENCES = re.compile(r"[^.!?。！？\n]+[.!?。！？]?")


class Explaining(Answering, Protocol):
    """What explaining needs of a guide."""

    folder: Path
    notes: dict[str, Note]

    @property
    def labels(self) -> Sequence[str]: ...

    @property
    def encoder(self) -> Any: ...

    def ask(self, picture: Path | str, question: str = "", top_k: int = 0) -> Answer:
        """Name one picture, and say why."""
        ...

    def training_pictures(self) -> list[dict[str, Any]]:
        """sha256, image, label and split of what it was trained on."""
        ...


@dataclass(frozen=True)
class Neighbour:
    """A training picture and how like it the asked one is."""

    label: str
    image: str  # as the guide names it
    path: Path | None  # None: its features are cached, and the picture itself is not here
    similarity: float  # cosine of pooled features, each standardised over the training pictures


@dataclass(frozen=True)
class Difference:
    """What tells two labels apart, and whose note says so."""

    note: str  # label
    text: str


@dataclass(frozen=True)
class Rival:
    """A runner-up."""

    label: str
    probability: float | None
    differences: tuple[Difference, ...]  # none: the notes do not say


@dataclass(frozen=True)
class Explanation:
    """What there is to check about one answer."""

    answer: Answer
    marks: tuple[str, ...]  # of the label, to look for in the picture; the model did not look for them
    statements: tuple[Statement, ...]  # the model's own words
    neighbours: tuple[Neighbour, ...]
    remarks: tuple[str, ...]  # what could not be told, and why
    rivals: tuple[Rival, ...]
    where: Where | None  # where in the picture the label comes from; None: not asked for

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        made: dict[str, Any] = {
            "field_marks": list(self.marks),
            "statements": [vars(one) for one in self.statements],
            "neighbours": [
                {"label": one.label, "image": one.image, "similarity": one.similarity}
                for one in self.neighbours
            ],
            "rivals": [
                {
                    "label": one.label,
                    "probability": one.probability,
                    "differences": [vars(difference) for difference in one.differences],
                }
                for one in self.rivals
            ],
            "remarks": list(self.remarks),
        }
        if self.where is not None:
            deletion = self.where.deletion
            made["deletion"] = {"hottest_fifth": deletion.hottest, "random_fifth": deletion.random}
        return made


def explain(
    guide: Explaining,
    picture: Path | str,
    question: str = "",
    *,
    dataset: Path | None = None,
    heat: bool = True,
    neighbours: int = NEIGHBOURS,
    top_k: int = 0,
) -> Explanation:
    """Name a picture, and gather what can be checked about the answer.

    Args:
        guide: has labels.
        question: as in `Guide.ask`.
        dataset: folder of the data set it was trained on; None for the one inside the guide.
        heat: whether to find out where in the picture the label comes from: about sixty answers more.
        neighbours: most training pictures shown.
        top_k: labels listed.

    Raises:
        PictureError: when the picture cannot be read.
        GuideError: when the guide has no labels.
    """
    [checked] = guide.classify([picture], 1)  # refuses a guide without labels
    if checked.error:
        raise PictureError(str(picture), checked.error)
    answer = guide.ask(picture, question, top_k)
    note = guide.notes.get(answer.label)
    remarks = [] if note is not None else [f"there are no notes on {answer.label!r}"]
    found, remark = nearest(guide, [Path(picture)], dataset or guide.folder / "dataset", neighbours)
    return Explanation(
        answer,
        note.field_marks if note is not None else (),
        statements(answer.text, passages_of(note), names_of(answer.label, note)),
        found[0],
        tuple(remarks + ([remark] if remark else [])),
        tuple(
            Rival(one.label, one.probability, differences(answer.label, one.label, guide.notes))
            for one in answer.scores[1 : RIVALS + 1]
            if one.probability is None or one.probability >= LEAST
        ),
        where(guide, picture) if heat and len(guide.labels) > 1 else None,
    )


def explain_least_sure(
    guide: Explaining, pictures: Sequence[Path], *, dataset: Path | None = None
) -> list[Explanation]:
    """Explain each of some pictures; those that can no longer be read are passed over."""
    found: list[Explanation] = []
    with progress_bar("pictures") as bar:
        task = bar.add_task("Explaining", total=len(pictures))
        for picture in pictures:
            with suppress(PictureError):
                found.append(explain(guide, picture, dataset=dataset))
            bar.advance(task)
    return found


def nearest(
    guide: Explaining, pictures: Sequence[Path], folder: Path, count: int = NEIGHBOURS
) -> tuple[list[tuple[Neighbour, ...]], str]:
    """The training pictures that look most like each picture, best first; and what is missing, or "".

    They are alike in looks, to the frozen encoder, which knows nothing of the labels: where theirs differ,
    looks alone do not settle it. Of very many training pictures a sample is looked at, spread over labels. A
    picture of the same bytes is left out: it would say nothing.
    """
    names = {label: number for number, label in enumerate(guide.labels)}
    seen = guide.training_pictures()
    rows = [row for row in seen if row["split"] == "train" and row["label"] in names and row["sha256"]]
    if not rows:
        return [()] * len(pictures), "the guide does not say which pictures it was trained on"
    targets = np.array([names[row["label"]] for row in rows], np.int64)
    chosen = [rows[i] for i in spread_over_labels(targets, MOST)]
    table = embed_pictures([(folder / row["image"], row["sha256"]) for row in chosen], guide.encoder)
    asked = [(path, sha256_file(path)) for path in pictures]
    theirs = embed_pictures(asked, guide.encoder)
    row_of, place = {row["sha256"]: row for row in chosen}, {key: i for i, key in enumerate(theirs.keys)}
    missing = len({row["sha256"] for row in chosen} - set(table.keys))
    remark = f"{missing:,} of {len(chosen):,} training pictures are not here, nor their features"
    remark = remark if missing else ""
    if not table.keys:
        return [()] * len(pictures), remark
    middle, scale = table.pooled.mean(0), table.pooled.std(0) + 1e-6
    known = _unit((table.pooled - middle) / scale)
    found: list[tuple[Neighbour, ...]] = []
    for _, key in asked:
        if key not in place:
            found.append(())
            continue
        likeness = known @ _unit((theirs.pooled[place[key]] - middle) / scale)
        order = [i for i in np.argsort(-likeness, kind="stable") if table.keys[i] != key][:count]
        found.append(tuple(_neighbour(row_of[table.keys[i]], folder, float(likeness[i])) for i in order))
    return found, remark


def _neighbour(row: Mapping[str, Any], folder: Path, similarity: float) -> Neighbour:
    path = folder / row["image"]
    return Neighbour(row["label"], row["image"], path if path.is_file() else None, similarity)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def differences(label: str, other: str, notes: Mapping[str, Note]) -> tuple[Difference, ...]:
    """What the notes say of how to tell two labels apart.

    Sentences of either label's `how_to_tell_apart` that name the other one; where there are none, the field
    marks of both.
    """
    found = [
        Difference(one, sentence.strip())
        for one, rival in ((label, other), (other, label))
        if one in notes
        for sentence in _SENTENCES.findall(notes[one].how_to_tell_apart)
        if names_it(sentence, rival, notes.get(rival))
    ]
    if found:
        return tuple(found)
    marks = [(one, notes[one].field_marks if one in notes else ()) for one in (label, other)]
    return (
        tuple(Difference(one, "; ".join(its)) for one, its in marks) if all(its for _, its in marks) else ()
    )


def names_it(sentence: str, label: str, note: Note | None) -> bool:
    """Whether a sentence names a label, by its name or a synonym, as whole words or in the plural."""
    return any(
        re.search(rf"(?<!\w){re.escape(name)}(s|es)?(?!\w)", sentence, re.IGNORECASE)
        if name.isascii()
        else name in sentence
        for name in names_of(label, note)
    )


def names_of(label: str, note: Note | None) -> tuple[str, ...]:
    """All names of a label."""
    return tuple(filter(None, (label, *((note.scientific_name, *note.synonyms) if note is not None else ()))))
