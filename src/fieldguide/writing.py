"""Writes a guide folder around trained parts that lie in it already; `guide.json` last."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fieldguide.data.dataset import Dataset
from fieldguide.data.notes import write_notes
from fieldguide.files import atomic_path, fingerprint, sha256_file, write_json
from fieldguide.guide import IDENTITY, MANIFEST, NOTES_FILE, PICTURES_FILE, SCHEMA_VERSION, Guide, load_guide
from fieldguide.records import Example, Note


def write_guide_folder(
    out: Path,
    parts: Sequence[str],
    identity: Mapping[str, Any],
    *,
    dataset: Dataset,
    notes: Sequence[Note],
    examples: Sequence[Example],
    models: Mapping[str, Any],
    training: Mapping[str, Any],
) -> Guide:
    """Complete a guide folder and open it.

    Args:
        out: the folder; the trained parts lie in it.
        parts: their files, relative to it.
        identity: what every answer depends on (`IDENTITY`), without `files`.
        dataset: what it was trained on.
        notes, examples: that it carries, and that it has seen.
        models: a licence card for each model it is made from.
        training: how it was trained.
    """
    write_notes(out / NOTES_FILE, list(notes))
    _write_pictures(out / PICTURES_FILE, examples)
    names = (*parts, NOTES_FILE, PICTURES_FILE)
    whole = {**identity, "files": {name: sha256_file(out / name) for name in names}}
    packages = ("fieldguide", "torch", "transformers", "peft")
    record = {
        "schema": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint({name: whole[name] for name in IDENTITY}),
        **whole,
        "models": dict(models),
        "dataset": {
            "fingerprint": dataset.fingerprint,
            "counts": dataset.info["counts"],
            "licences": sorted({e.licence for e in dataset.examples if e.licence}),
        },
        "training": dict(training),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
    write_json(out / MANIFEST, record)
    return load_guide(out)


def _write_pictures(path: Path, examples: Sequence[Example]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("id", "image", "sha256", "phash", "label", "split")
    table = pa.table({name: pa.array([getattr(e, name) for e in examples], pa.string()) for name in names})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
