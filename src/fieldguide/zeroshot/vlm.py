"""A vision-language model of transformers that chooses among names by scoring them, never by parsing.

Each label is scored by all its names, each also with a capital, and gets the sum of their probabilities. A
name's probability is the product, over the places where the trie of all names branches, of the model's
probability of its token among those allowed there: long names lose nothing to short ones, and the order of
the labels plays no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from fieldguide.answer.choose import score_all
from fieldguide.answer.generate import say
from fieldguide.answer.trie import LabelTrie
from fieldguide.errors import DataError, GuideError
from fieldguide.model.hub import HubModel, HubPictures
from fieldguide.model.kinds import Opened
from fieldguide.model.opening import card_of
from fieldguide.settings import ZeroShotSettings
from fieldguide.zeroshot.base import ZeroShot
from fieldguide.zeroshot.names import LabelNames


class VisionLanguageZeroShot(ZeroShot):
    """Scores names behind the prompt of a picture and a question."""

    def __init__(self, spec: str, opened: Opened, names: LabelNames, settings: ZeroShotSettings) -> None:
        super().__init__(spec, names, settings)
        if not opened.model.family.vision:
            raise GuideError(f"{spec}: reads text only", "choose a vision-language model")
        self.opened = opened
        self.model: HubModel = opened.model

    @property
    def question(self) -> str:
        """What is asked of every picture, with the system prompt before it."""
        parts = (self.settings.system.strip(), self.settings.question.strip())
        return "\n\n".join(part for part in parts if part)

    def asking(self, question: str) -> VisionLanguageZeroShot:
        """The same model with another question."""
        settings = replace(self.settings, question=question)
        return VisionLanguageZeroShot(self.spec, self.opened, self.names, settings)

    @cached_property
    def spellings(self) -> tuple[LabelTrie, torch.Tensor]:
        """The trie of all spellings, and (S,) the number of the label that each belongs to.

        Raises:
            DataError: when two labels have a spelling of the same tokens.
        """
        owner: dict[tuple[int, ...], int] = {}
        tokens: dict[str, list[int]] = {}
        for number, label in enumerate(self.labels):
            for name in self.names.of(label):
                for spelling in dict.fromkeys((name, name[:1].upper() + name[1:])):
                    ids = self.model.label_tokens(spelling)
                    if (other := owner.get(tuple(ids), number)) != number:
                        raise DataError(
                            f"{spelling!r} is here a name of {self.labels[other]!r} and of {label!r}",
                            "rename one of them",
                        )
                    if tuple(ids) not in owner:
                        owner[tuple(ids)] = number
                        tokens[f"{number} {spelling}"] = ids
        return LabelTrie(tokens), torch.tensor(list(owner.values()))

    def of_images(self, images: Sequence[Image.Image]) -> HubPictures:
        return HubPictures(tuple(self.model.prepare([image]) for image in images))

    def log_scores(self, pictures: HubPictures) -> np.ndarray:
        trie, owner = self.spellings
        found = []
        for start in range(0, len(pictures), self.settings.batch_size):
            batch = pictures.rows(slice(start, start + self.settings.batch_size))
            scores = score_all(self.model, self.model.start(self.question, batch, self._prefix), trie)
            pooled = torch.zeros(len(batch), len(self.labels), dtype=torch.float64)
            # Names a softmax leaves at e^-700 count for nothing beside those it does not.
            found.append(pooled.index_add(1, owner, scores.exp()).clamp_min(1e-300).log().numpy())
        return np.concatenate(found)

    @cached_property
    def _prefix(self) -> Any:
        with torch.no_grad():
            return self.model.read_prefix(self.question)

    def say(self, pictures: HubPictures, question: str) -> str:
        parts = (self.settings.system.strip(), question)
        asked = "\n\n".join(part for part in parts if part)
        return say(self.model, self.model.start(asked, pictures), 0, self.settings.max_new_tokens)

    def identity(self) -> Mapping[str, Any]:
        return {
            "weights": self.opened.sha256,
            "prompt": self.model.prompt.template.to_dict(),
            "precision": self.opened.precision,
        }

    def cards(self) -> dict[str, dict[str, str]]:
        return {"base model": card_of(self.opened)}
