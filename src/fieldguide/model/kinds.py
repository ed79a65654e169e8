"""Kinds of models that other packages bring, by an entry point.

    [project.entry-points."fieldguide.models"]
    paligemma = "my_package:PaliGemma"

`train.model = "paligemma:google/paligemma2-3b"` then has `PaliGemma.open` load it. What it gives passes
through training, answering, evaluation and merging as the built-in kinds do; `fieldguide.testing.check_model`
says whether it keeps the promises that they rely on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from fieldguide.errors import GuideError
from fieldguide.model.hub import HubModel
from fieldguide.model.prompt import PromptTemplate
from fieldguide.settings import TrainSettings

GROUP = "fieldguide.models"


@dataclass(frozen=True)
class Opened:
    """A loaded model and what a guide has to remember of it."""

    model: HubModel
    folder: Path
    name: str  # as it was asked for
    sha256: str  # its identity, see `opening.model_sha256`
    said: tuple[str, ...]  # arithmetic, attention, quantisation: sentences for the log
    precision: str


class ModelKind(Protocol):
    """What an entry point names: usually a class derived from `HubModel`, with `open` as a class method."""

    def open(
        self,
        name: str,
        settings: TrainSettings,
        template: PromptTemplate | None,
        announce: Callable[[str], None],
    ) -> Opened:
        """Load a model, all of it frozen.

        Args:
            name: what follows the kind and its colon in `train.model`.
            settings: the recipe's; `precision`, `attention` and `quantise` are to be kept to.
            template: the prompt's pieces that a guide was trained with; None at the first opening.
            announce: for the log.

        Raises:
            ModelMissing, GuideError: when it cannot be found, read or used.
        """
        ...


def known_kinds() -> dict[str, list[EntryPoint]]:
    """The entry points here, by name; nothing of them is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def kind_of(model: str) -> tuple[ModelKind, str] | None:
    """(kind, its model's name) where `model` is written KIND:NAME and a package brings that kind, else None.

    Raises:
        GuideError: when two packages bring it, or the one that does cannot be loaded.
    """
    kind, colon, name = model.partition(":")
    if not colon or not (found := known_kinds().get(kind)):
        return None
    makers = sorted({entry.dist.name if entry.dist else entry.value for entry in found})
    if len(makers) > 1:
        raise GuideError(f"{model}: {' and '.join(makers)} both bring models of kind {kind!r}", "remove one")
    try:
        loaded: ModelKind = found[0].load()
    except Exception as error:  # whatever another package's import may raise
        raise GuideError(
            f"{model}: {makers[0]} brings this kind, and cannot be loaded ({type(error).__name__}: {error})",
            f"pip install --upgrade {makers[0]}",
        ) from error
    if not callable(getattr(loaded, "open", None)):
        raise GuideError(f"{model}: {found[0].value} of {makers[0]} has no `open`", "ask its makers")
    return loaded, name
