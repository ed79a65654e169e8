"""What the report says in words, and which examples it shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fieldguide.report.evaluation import Evaluation, Prediction

WRONG_SHOWN = 24
RIGHT_SHOWN = 16
CHANCE = 0.05  # p values from here on are called chance


@dataclass(frozen=True)
class ModelCard:
    """A model the guide is made of, and what may be done with it."""

    name: str
    role: str
    licence: str
    source: str
    sha256: str
    attribution: str
    upstream: str


@dataclass(frozen=True)
class PartRow:
    """A part of the model: how much of it was trained, and what training did to it."""

    name: str
    parameters: int
    trained: int
    tensors: int  # trained tensors
    changed: int  # of them, those that differ afterwards
    relative_change: float  # |after − before| / |before|


def percent(value: float) -> str:
    """0.9417 → "94.2%"; never rounds something below 1 up to 100%."""
    if 0.9995 <= value < 1:
        return "99.9%"
    return f"{100 * value:.1f}%" if value < 1 else "100%"


def notices(evaluation: Evaluation) -> list[str]:
    """What a reader must know before any figure, the gravest first."""
    found, metrics = [], evaluation.metrics
    if evaluation.overlap:
        found.append(
            f"These figures are too good: {len(evaluation.overlap)} of {metrics.count} pictures were seen in "
            "training (evaluated with --force)."
        )
    if evaluation.baseline_wins and evaluation.best_baseline:
        best = evaluation.best_baseline
        found.append(
            f"A simpler method does better than this guide: the {best.name} on the same features is right on "
            f"{percent(best.metrics.accuracy)}, the guide on {percent(metrics.accuracy)}."
        )
    if evaluation.split == "val":
        found.append(
            "These are the validation pictures, which chose the checkpoint: expect less on new pictures."
        )
    if evaluation.unknown_labels:
        named = ", ".join(
            f"{label} ({count})" for label, count in list(evaluation.unknown_labels.items())[:10]
        )
        found.append(f"The guide was never taught these labels, so it cannot get them right: {named}.")
    if metrics.unanswered:
        found.append(f"{metrics.unanswered} of {metrics.count} pictures got no answer and count as wrong.")
    few = [score.label for score in metrics.classes if 0 < score.support < 5]
    if few:
        named = ", ".join(few[:8]) + (f" and {len(few) - 8} more" if len(few) > 8 else "")
        found.append(f"Fewer than five test pictures: {named}. Their figures say little.")
    return found


def verdict(evaluation: Evaluation) -> str:
    """One sentence: the guide against the best baseline."""
    best, metrics = evaluation.best_baseline, evaluation.metrics
    if best is None:
        return "No baselines: the features of the training pictures were not at hand."
    ours, theirs = percent(metrics.accuracy), percent(best.metrics.accuracy)
    name = f"the best baseline ({best.name}: {best.how})"
    if metrics.correct == best.metrics.correct:
        return f"The guide and {name} are equal at {ours}."
    differing = evaluation.comparison
    doubt = ""
    if differing:
        chance = "may well be chance" if differing.p >= CHANCE else "is more than chance"
        doubt = (
            f" Only the guide is right on {_pictures(differing.only_first)}, only the baseline on "
            f"{_pictures(differing.only_second)}; the difference {chance} "
            f"(exact McNemar test, p = {differing.p:.2g})."
        )
    better = "above" if metrics.accuracy > best.metrics.accuracy else "below"
    return f"The guide's {ours} lies {better} the {theirs} of {name}.{doubt}"


def pick_wrong(wrong: Sequence[Prediction], most: int = WRONG_SHOWN) -> list[Prediction]:
    """The surest wrong answers, at most three of one confusion."""
    taken: Counter[tuple[str, str]] = Counter()
    picked = []
    for p in sorted(wrong, key=lambda p: -(p.probability or 0.0)):
        taken[p.label, p.predicted] += 1
        if taken[p.label, p.predicted] <= 3:
            picked.append(p)
    return picked[:most]


def pick_right(predictions: Sequence[Prediction], most: int = RIGHT_SHOWN) -> list[Prediction]:
    """For each label the least sure right answer, then the surest, while there is room."""
    by_label: dict[str, list[Prediction]] = defaultdict(list)
    for p in sorted(predictions, key=lambda p: p.probability or 0.0):
        if p.right:
            by_label[p.label].append(p)
    first = [found[0] for found in by_label.values()]
    second = [found[-1] for found in by_label.values() if len(found) > 1]
    return [*first, *second][:most]


def model_cards(models: Any) -> list[ModelCard]:
    """Licence cards from `guide.json`: a mapping of role to card, or a list of cards."""
    pairs = models.items() if isinstance(models, Mapping) else [("", card) for card in models or ()]
    cards = []
    for role, card in pairs:
        if not isinstance(card, Mapping):
            card = {"name": card}
        weights = card.get("sha256") or card.get("hash") or card.get("key") or ""
        cards.append(
            ModelCard(
                name=str(card.get("name") or card.get("model") or role),
                role=str(card.get("gives") or card.get("role") or role),
                licence=str(card.get("licence") or card.get("license") or ""),
                source=str(card.get("source") or card.get("from") or card.get("url") or ""),
                sha256=str(weights),
                attribution=str(card.get("attribution") or ""),
                upstream=str(card.get("upstream") or ""),
            )
        )
    return cards


def training_facts(training: Any) -> list[tuple[str, str]]:
    """Name and value of each plain figure of the training record; curves are drawn, not listed."""
    facts = []
    for name, value in (training or {}).items():
        if isinstance(value, Mapping):
            text = ", ".join(
                f"{key}: {_plain(v)}" for key, v in value.items() if not isinstance(v, (Mapping, list))
            )
        elif isinstance(value, (list, tuple)):
            if any(isinstance(entry, (Mapping, list)) for entry in value):
                continue
            text = ", ".join(_plain(entry) for entry in value)
        else:
            text = _plain(value)
        if text:
            facts.append((str(name).replace("_", " "), text))
    return facts


def part_rows(training: Any) -> list[PartRow]:
    """The parts of the model from the training record's `parts` and `changes`."""
    record = training or {}
    parts, changes = record.get("parts") or {}, record.get("changes") or {}
    rows = []
    for name, part in parts.items():
        change = changes.get(name, {})
        rows.append(
            PartRow(
                name=str(name),
                parameters=int(part.get("parameters", 0)),
                trained=int(part.get("trained", 0)),
                tensors=int(change.get("tensors", 0)),
                changed=int(change.get("changed", 0)),
                relative_change=float(change.get("relative_change", 0.0)),
            )
        )
    return rows


def loss_curves(training: Any) -> dict[str, list[tuple[float, float]]]:
    """{"training": points, "validation": points} from the training record's history, one entry an epoch."""
    curves: dict[str, list[tuple[float, float]]] = {"training": [], "validation": []}
    for position, entry in enumerate((training or {}).get("history") or (), start=1):
        for curve, names in (
            ("training", ("train_loss", "loss")),
            ("validation", ("val_loss", "validation_loss")),
        ):
            value = next((entry[name] for name in names if entry.get(name) is not None), None)
            if value is not None:
                curves[curve].append((float(position), float(value)))
    return {name: points for name, points in curves.items() if points}


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
