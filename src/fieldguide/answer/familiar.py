"""What a training leaves so that its guide can tell pictures of none of its labels: `novelty.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fieldguide.answer.crossfit import fit_novelty, spread_over_labels
from fieldguide.answer.novelty import MOST_PICTURES, NOVELTY_FILE, flatten_features
from fieldguide.files import sha256_file
from fieldguide.model.towers import TowerEncoder, tower_identity
from fieldguide.records import Example
from fieldguide.train.features import embed_pictures
from fieldguide.train.part import Part

Written = tuple[list[str], dict[str, Any] | None]  # files, relative to the guide; the record, None without


def write_novelty(
    out: Path,
    features: np.ndarray,
    examples: Sequence[Example],
    labels: Sequence[str],
    validation: np.ndarray,
    pooled: int,
) -> Written:
    """Fit the novelty score and write it into a guide folder; nothing where there is too little to tell by.

    Args:
        features: (n, F) of the training pictures, in step with `examples`.
        labels: all that the guide knows.
        validation: (v, F) of known pictures that trained nothing.
        pooled: how many of the features, the last ones, are the encoder's pooled output.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    targets = np.array([numbers[e.label] for e in examples], np.int64)
    chosen = spread_over_labels(targets)
    groups = np.unique([examples[i].group or examples[i].id for i in chosen], return_inverse=True)[1]
    val = validation[:MOST_PICTURES]
    found = fit_novelty(features[chosen], targets[chosen], len(labels), groups, val, pooled)
    if found is None:
        return [], None
    novelty, record = found
    novelty.save(out / NOVELTY_FILE)
    return [NOVELTY_FILE], record


def write_tower_novelty(
    out: Path, model: Any, base: str, parts: Sequence[str], train: Part, val: Part, labels: Sequence[str]
) -> Written:
    """As `write_novelty`, for a model of transformers: from what its trained tower gives.

    The tower sees each picture once more, squeezed to a square, as it will when the guide is asked.

    Args:
        base: hash of the base model.
        parts: files of what was trained; they lie in `out`.
        train, val: examples; those without exactly one picture have no part in it.
    """
    if not labels or not model.family.vision:
        return [], None
    encoder = TowerEncoder(model, tower_identity(base, {name: sha256_file(out / name) for name in parts}))
    place = {label: number for number, label in enumerate(labels)}
    seen = []
    for part in (train, val):
        alone = [i for i, shown in enumerate(part.pictures.paths) if len(shown) == 1]
        targets = np.array([place[part.examples[i].label] for i in alone], np.int64)
        chosen = [alone[i] for i in spread_over_labels(targets)]
        pairs = [(part.pictures.paths[i][0], part.pictures.keys[i][0]) for i in chosen]
        table = embed_pictures(pairs, encoder)
        row = {key: number for number, key in enumerate(table.keys)}
        kept = [(i, row[key]) for i, (_, key) in zip(chosen, pairs, strict=True) if key in row]
        features = flatten_features(table.grid, table.pooled)[[at for _, at in kept]]
        seen.append(([part.examples[i] for i, _ in kept], features))
    (examples, features), (_, validation) = seen
    return write_novelty(out, features, examples, labels, validation, encoder.pooled_size)


def part_hashes(files: Mapping[str, str]) -> dict[str, str]:
    """Of a guide's files those that hold trained weights, with their hashes."""
    return {name: digest for name, digest in files.items() if name.startswith(("adapter/", "projector."))}
