"""CLIP and SigLIP: pictures and texts in one space; the label whose texts lie nearest is the answer.

Each label's texts are all its names in all templates and, with notes, each field mark; their embeddings are
averaged (Radford et al. 2021; field marks: Menon, Vondrick 2023). CLIP's scores are a softmax over the
labels; SigLIP's are independent probabilities, which are divided by their sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from fieldguide.errors import GuideError
from fieldguide.model.opening import licence_of, model_sha256
from fieldguide.model.tuning import here
from fieldguide.settings import ZeroShotSettings
from fieldguide.zeroshot.base import ZeroShot, normalised
from fieldguide.zeroshot.names import LabelNames

MODEL_TYPES = ("clip", "siglip", "siglip2", "chinese_clip", "align", "altclip")
TEXTS_AT_ONCE = 64


class ContrastiveZeroShot(ZeroShot):
    """A dual encoder of transformers."""

    def __init__(self, spec: str, folder: Path, names: LabelNames, settings: ZeroShotSettings) -> None:
        super().__init__(spec, names, settings)
        self.model_folder = folder
        disable_progress_bar()
        shared: dict[str, Any] = {"local_files_only": True}
        try:
            network: Any = transformers.AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, **shared
            )
            self.processor: Any = transformers.AutoProcessor.from_pretrained(folder, **shared)
        except (OSError, ValueError, KeyError) as error:
            raise GuideError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
        self.network = network.to(here()).eval().requires_grad_(False)
        self.sigmoid = hasattr(network, "logit_bias")
        if not hasattr(network, "logit_scale"):
            raise GuideError(f"{spec}: has no common space of pictures and texts", "choose CLIP or SigLIP")

    def texts(self, label: str) -> list[str]:
        """The prompts of a label."""
        names = self.names.of(label)
        found = [template.format(name) for name in names for template in self.settings.templates]
        note = self.names.notes.get(label)
        if note is not None and self.settings.marks:
            found += [f"a photo of a {names[0]}, {mark}." for mark in note.field_marks]
        return found

    @cached_property
    @torch.no_grad()
    def label_vectors(self) -> Tensor:
        """(R, E) unit vectors."""
        rows = []
        for label in self.labels:
            vectors = self._text_vectors(self.texts(label))
            rows.append(torch.nn.functional.normalize(vectors.mean(0), dim=-1))
        return torch.stack(rows)

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        found = []
        longest = int(self.network.config.text_config.max_position_embeddings)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            tokens = self.processor.tokenizer(
                list(texts[start : start + TEXTS_AT_ONCE]),
                # SigLIP was trained on padded texts only, and reads others wrongly.
                padding="max_length" if self.sigmoid else True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            ).to(self.network.device)
            found.append(_unit(self.network.get_text_features(**tokens)))
        return torch.cat(found)

    def of_images(self, images: Sequence[Image.Image]) -> Tensor:
        # One by one: no picture's pixels depend on its batch mates.
        made = [self.processor.image_processor(images=image, return_tensors="pt") for image in images]
        return torch.cat([one["pixel_values"] for one in made]) if made else torch.zeros(0)

    @torch.no_grad()
    def log_scores(self, pictures: Tensor) -> np.ndarray:
        rows = []
        for start in range(0, len(pictures), self.settings.batch_size):
            pixels = pictures[start : start + self.settings.batch_size].to(self.network.device)
            vectors = _unit(self.network.get_image_features(pixel_values=pixels))
            logits = self.network.logit_scale.exp() * vectors @ self.label_vectors.T
            if self.sigmoid:
                logits = torch.nn.functional.logsigmoid(logits + self.network.logit_bias)
            rows.append(logits.double().cpu().numpy())
        return normalised(np.concatenate(rows))

    def identity(self) -> Mapping[str, Any]:
        return {"weights": model_sha256(self.model_folder)}

    def cards(self) -> dict[str, dict[str, str]]:
        card = {
            "name": self.spec,
            "gives": "pictures and texts in one space",
            "role": "dual encoder",
            "licence": licence_of(self.model_folder),
            "attribution": "see the model's card",
            "upstream": "",
            "source": str(self.network.config.model_type),
            "sha256": model_sha256(self.model_folder),
        }
        return {"dual encoder": card}


def _unit(output: Any) -> Tensor:
    vectors: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
