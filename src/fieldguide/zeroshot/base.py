"""What answers without having been taught: the same questions as a guide, the same records as answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fieldguide.errors import PictureError
from fieldguide.files import fingerprint
from fieldguide.images import DECODER_VERSION, load_picture
from fieldguide.records import Answer, LabelScore
from fieldguide.settings import ZeroShotSettings
from fieldguide.zeroshot.names import LabelNames

BLANKS = ((0, 0, 0), (128, 128, 128), (255, 255, 255))  # what a picture without content looks like
BLANK_SIDE = 336


class ZeroShot(ABC):
    """Chooses among labels it knows by name.

    Attributes:
        spec: the model as it was asked for.
        names: the labels.
        settings: questions, templates, whether the prior is taken off.
    """

    def __init__(self, spec: str, names: LabelNames, settings: ZeroShotSettings) -> None:
        self.spec, self.names, self.settings = spec, names, settings

    # ---- what a kind of model brings

    @abstractmethod
    def of_images(self, images: Sequence[Image.Image]) -> Any:
        """Decoded pictures (RGB) in the model's form."""

    @abstractmethod
    def log_scores(self, pictures: Any) -> np.ndarray:
        """(B, R) log-probabilities of the labels, before the prior is taken off."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What its scores depend on besides labels and settings: weights, preparation."""

    @abstractmethod
    def cards(self) -> dict[str, dict[str, str]]:
        """A licence card for each model that it is made of, by role."""

    def read(self, paths: Sequence[Path]) -> tuple[Any, list[int], dict[int, str]]:
        """The readable pictures in the model's form, their places in `paths`, reasons for the others."""
        images, places, errors = read_images(paths)
        return self.of_images(images), places, errors

    def say(self, pictures: Any, question: str) -> str:
        """Its own words on one picture; "" where it has none."""
        return ""

    # ---- what is the same for all

    @property
    def labels(self) -> tuple[str, ...]:
        return self.names.labels

    @cached_property
    def log_prior(self) -> np.ndarray:
        """(R,) the log of what each label gets for a picture that shows nothing; zeros where it is left on.

        A model that answers "cat" when there is nothing to see has a habit, not evidence (Zhao et al. 2021,
        "Calibrate before use").
        """
        if not self.settings.prior:
            return np.zeros(len(self.labels))
        scores = self.log_scores(self.of_images(blank_pictures()))
        return np.asarray(np.logaddexp.reduce(scores, axis=0) - np.log(len(scores)))

    def log_probabilities(self, pictures: Any) -> np.ndarray:
        """(B, R) log-probabilities of the labels, which sum to 1, without the prior."""
        return normalised(self.log_scores(pictures) - self.log_prior)

    def label_scores(self, images: Sequence[Image.Image], labels: Sequence[str]) -> np.ndarray:
        """(B, len(labels)) log-probabilities of some labels among each other, for decoded pictures."""
        columns = [self.labels.index(label) for label in labels]
        return normalised(self.log_probabilities(self.of_images(images))[:, columns])

    def classify(self, pictures: Sequence[Path | str], top_k: int = 0) -> list[Answer]:
        """Name many pictures; one that cannot be read is an Answer with `error`.

        Args:
            pictures: files.
            top_k: labels listed in each answer; 0 for five.
        """
        paths = [Path(picture) for picture in pictures]
        read, places, errors = self.read(paths)
        answers = {i: Answer(str(paths[i]), error=reason) for i, reason in errors.items()}
        if places:
            for i, row in zip(places, self.log_probabilities(read), strict=True):
                answers[i] = self._answer(paths[i], row, top_k)
        return [answers[i] for i in range(len(paths))]

    def ask(self, picture: Path | str, question: str = "", top_k: int = 0) -> Answer:
        """Name one picture and, with a question, have the model say something about it.

        Raises:
            PictureError: when the picture cannot be read.
        """
        from dataclasses import replace

        read, _, errors = self.read([Path(picture)])
        if errors:
            raise PictureError(str(picture), errors[0])
        answer = self._answer(Path(picture), self.log_probabilities(read)[0], top_k)
        return replace(answer, text=self.say(read, question.strip()) if question.strip() else "")

    def _answer(self, path: Path, row: np.ndarray, top_k: int) -> Answer:
        order = np.argsort(-row, kind="stable")[: top_k or 5]  # of equal ones the first in the list
        scores = tuple(LabelScore(self.labels[i], float(np.exp(row[i])), float(row[i])) for i in order)
        return Answer(str(path), scores[0].label, scores[0].probability, scores)

    # ---- what evaluation and tables ask

    @property
    def info(self) -> dict[str, Any]:
        """As a guide's guide.json, for the report."""
        return {
            "labels": list(self.labels),
            "models": self.cards(),
            "settings": self.settings.to_dict(),
            "model": self.spec,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Identity of everything an answer depends on."""
        names = {label: self.names.of(label) for label in self.labels}
        return fingerprint(
            {
                "model": dict(self.identity()),
                "labels": list(self.labels),
                "names": {label: list(known) for label, known in names.items()},
                "settings": self.settings.to_dict(),
                "decoder": DECODER_VERSION,
            }
        )

    @property
    def folder(self) -> Path:
        """Where its report goes when nothing else is said."""
        return Path("".join(c if c.isalnum() or c in "-." else "_" for c in self.spec) + "-zero-shot")

    def training_pictures(self) -> list[dict[str, Any]]:
        """None: it was taught nothing here."""
        return []


def blank_pictures() -> list[Image.Image]:
    """Pictures of one colour each."""
    return [Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), colour) for colour in BLANKS]


def read_images(paths: Sequence[Path]) -> tuple[list[Image.Image], list[int], dict[int, str]]:
    """Decoded pictures, their places in `paths`, and the reasons for the others."""
    images: list[Image.Image] = []
    places: list[int] = []
    errors: dict[int, str] = {}
    for number, path in enumerate(paths):
        try:
            images.append(load_picture(path).image)
            places.append(number)
        except PictureError as error:
            errors[number] = error.reason
        except OSError as error:
            errors[number] = error.strerror or str(error)
    return images, places, errors


def normalised(logits: np.ndarray) -> np.ndarray:
    """(B, R) logits as log-probabilities."""
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
