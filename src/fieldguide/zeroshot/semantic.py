"""The starter without training: what ImageNet's classes say, by the meaning of their names.

The encoder was trained to tell 1,000 classes. A picture's likeliest classes are averaged, as embeddings of
what their definitions say, and the labels whose names lie nearest are the answer (ConSE: Norouzi et al. 2014,
"Zero-shot learning by convex combination of semantic embeddings"). It knows nothing of what ImageNet has not:
chess pieces, digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

from fieldguide.model.sentences import SentenceEncoder, load_sentences
from fieldguide.model.starter import starter_folder
from fieldguide.model.vision import VisionEncoder, load_encoder
from fieldguide.model.weights import licence_card
from fieldguide.settings import ZeroShotSettings
from fieldguide.train.features import embed_pictures
from fieldguide.zeroshot.base import ZeroShot, normalised
from fieldguide.zeroshot.names import LabelNames

CLASSES = 10  # likeliest ones that are averaged
SHARPNESS = 20.0  # of cosines: chosen on animals, where it makes probabilities about true


class SemanticStarter(ZeroShot):
    """The starter's encoder with its classifier, and sentence embeddings."""

    def __init__(
        self,
        names: LabelNames,
        settings: ZeroShotSettings,
        encoder: VisionEncoder | None = None,
        sentences: SentenceEncoder | None = None,
    ) -> None:
        super().__init__("starter", names, settings)
        self.encoder = encoder or load_encoder()
        self.sentences = sentences or load_sentences()
        with safe_open(starter_folder("encoder") / "model.safetensors", "np") as file:
            self.weight = file.get_tensor("classifier.weight")  # (1000, D)
            self.bias = file.get_tensor("classifier.bias")

    @cached_property
    def classes(self) -> np.ndarray:
        """(1000, E) what each class of ImageNet means: its names and its definition."""
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        return self.sentences.embed(
            [info.index_to_description(i, detailed=True) for i in range(len(self.bias))]
        )

    @cached_property
    def meanings(self) -> np.ndarray:
        """(R, E) the mean of what the names of each label mean."""
        found = [self.sentences.embed(self.names.of(label)).mean(0) for label in self.labels]
        return np.stack([mean / np.linalg.norm(mean) for mean in found])

    def read(self, paths: Sequence[Path]) -> tuple[np.ndarray, list[int], dict[int, str]]:
        """Pooled features (B, D) of the readable pictures, from the cache where it has them."""
        from fieldguide.files import sha256_file

        errors: dict[int, str] = {}
        keys: dict[int, str] = {}
        for i, path in enumerate(paths):
            try:
                keys[i] = sha256_file(path)
            except OSError as error:
                errors[i] = error.strerror or str(error)
        table = embed_pictures([(paths[i], key) for i, key in keys.items()], self.encoder)
        row = {key: number for number, key in enumerate(table.keys)}
        places = [i for i, key in keys.items() if key in row]
        errors |= {i: table.failed.get(key, "cannot be read") for i, key in keys.items() if key not in row}
        return table.pooled[[row[keys[i]] for i in places]], places, errors

    def log_scores(self, pictures: np.ndarray) -> np.ndarray:
        """(B, R), from pooled features (B, D)."""
        logits = pictures @ self.weight.T + self.bias
        likeliest = np.argsort(-logits, axis=1, kind="stable")[:, :CLASSES]
        chosen = np.take_along_axis(logits, likeliest, 1)
        weights = np.exp(normalised(chosen))  # (B, CLASSES)
        meant = np.einsum("bk,bke->be", weights, self.classes[likeliest])
        meant /= np.linalg.norm(meant, axis=1, keepdims=True)
        return normalised(SHARPNESS * meant @ self.meanings.T)

    def of_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        prepared = [self.encoder.prepare(image) for image in images]
        return self.encoder.encode(np.stack(prepared) if prepared else np.zeros((0, 1, 1, 3), np.uint8))[1]

    def identity(self) -> Mapping[str, Any]:
        return {
            "encoder": self.encoder.key,
            "sentences": self.sentences.sha256,
            "classes": CLASSES,
            "sharpness": SHARPNESS,
        }

    def cards(self) -> dict[str, dict[str, str]]:
        return {
            role: {**licence_card(starter_folder(part)), "role": role}
            for role, part in (("vision encoder", "encoder"), ("sentence embeddings", "text"))
        }
