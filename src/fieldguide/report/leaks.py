"""Refuse to evaluate on pictures the guide has seen: same bytes, or nearly the same picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fieldguide.data.near import near_matches
from fieldguide.errors import LeakError
from fieldguide.records import Example

NAMED = 10  # files an error message lists


@dataclass(frozen=True)
class Overlap:
    """An evaluated picture that the guide has seen."""

    image: str
    seen: str  # the picture of the training set it equals or resembles
    how: str  # "same file" or "near-duplicate"


def find_overlap(
    examples: Sequence[Example], training: Sequence[Mapping[str, Any]], *, distance: int, split: str = "test"
) -> list[Overlap]:
    """Evaluated pictures that overlap those a guide learnt from.

    Args:
        examples: the pictures to be evaluated.
        training: the guide's record of its pictures: sha256, phash, image, split.
        distance: bits of 64 in which perceptual hashes of near-duplicates may differ; the data set's
            own setting, so that what import kept on one side is not called a leak here.
        split: for "val" only overlap with "train" counts; else "val" is seen too, since it chose the
            checkpoint and the calibration.
    """
    unseen = {"test"} if split != "val" else {"test", "val"}
    seen = [row for row in training if row.get("split") not in unseen]
    by_bytes = {row["sha256"]: str(row["image"]) for row in seen if row.get("sha256")}
    found: dict[int, Overlap] = {}
    for index, example in enumerate(examples):
        if example.sha256 and example.sha256 in by_bytes:
            found[index] = Overlap(example.id, by_bytes[example.sha256], "same file")
    for index, other in _near(examples, seen, distance):
        if index not in found:
            found[index] = Overlap(examples[index].id, str(seen[other]["image"]), "near-duplicate")
    return [found[index] for index in sorted(found)]


def refuse_overlap(overlap: Sequence[Overlap], split: str) -> None:
    """Raise a LeakError that names the first pictures, if there are any."""
    if not overlap:
        return
    named = "; ".join(f"{found.image} ({found.how} of {found.seen})" for found in overlap[:NAMED])
    more = f"; and {len(overlap) - NAMED} more" if len(overlap) > NAMED else ""
    pictures = "1 picture" if len(overlap) == 1 else f"{len(overlap)} pictures"
    raise LeakError(
        f"{pictures} of the {split} split were seen in training: {named}{more}",
        "evaluate pictures the guide has not seen, or --force to get figures that are marked as too good",
    )


def _near(
    examples: Sequence[Example], seen: Sequence[Mapping[str, Any]], distance: int
) -> list[tuple[int, int]]:
    """Index pairs (example, seen picture) of pictures that look the same to import, too."""
    known = [str(row.get("phash") or "") for row in seen]
    return near_matches([example.phash for example in examples], known, distance)
