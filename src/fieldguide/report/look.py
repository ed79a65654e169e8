"""Look at a data set before training: one offline page with counts, pictures, problems and doubtful labels.

    fieldguide look DATASET -o page.html

What is decided on the page is downloaded as fixes.csv, which `fieldguide import --fixes fixes.csv` applies.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fieldguide.data.dataset import Dataset, read_problems
from fieldguide.files import natural_key, write_text
from fieldguide.progress import track
from fieldguide.records import SPLITS, Example, Problem
from fieldguide.report.page import THUMBNAIL, environment, thumbnail
from fieldguide.report.suspects import (
    Features,
    Outlier,
    Suspect,
    find_outliers,
    find_suspects,
    write_suspects,
)

SUSPECTS_SHOWN = 100
PAIRS_SHOWN = 60
PER_LABEL = 40  # thumbnails; fewer where there are many labels, so that the page stays loadable
IN_ALL = 2000
SMALL = 104  # pixels of the thumbnails by label
PAIR_KINDS = ("conflict", "leak", "near_duplicate", "duplicate")  # what most needs a decision first


@dataclass(frozen=True)
class Shot:
    """A picture on the page: what decisions are stored under, and its thumbnail."""

    file: str  # path relative to the source: what problems.csv and fixes.csv call it
    sha256: str
    label: str
    split: str
    thumbnail: str  # data URI, "" when there is none
    why_not: str


@dataclass(frozen=True)
class Look:
    """What looking at a data set found."""

    page: Path
    suspects: tuple[Suspect, ...]
    outliers: tuple[Outlier, ...]
    problems: tuple[Problem, ...]


def look_at(dataset: Dataset, out: Path | str | None = None, features: Features | None = None) -> Look:
    """Write the page, and suspects.csv beside it when there are features.

    Args:
        dataset: the data set folder, loaded.
        out: the page; None for look.html in the data set folder.
        features: of as many pictures as are at hand; None leaves doubtful labels and outliers out, and
            the page says which command gives them.
    """
    page = Path(out) if out is not None else dataset.folder / "look.html"
    suspects = find_suspects(dataset.examples, features) if features else []
    outliers = find_outliers(dataset.examples, features) if features else []
    problems = read_problems(dataset.folder)
    write_text(page, render_look(dataset, problems, suspects, outliers, with_features=features is not None))
    if features:
        write_suspects(page.with_name("suspects.csv"), suspects)
    return Look(page, tuple(suspects), tuple(outliers), tuple(problems))


def render_look(
    dataset: Dataset,
    problems: Sequence[Problem],
    suspects: Sequence[Suspect],
    outliers: Sequence[Outlier],
    *,
    with_features: bool,
) -> str:
    """The page as HTML."""
    shown, counts = list(suspects[:SUSPECTS_SHOWN]), label_counts(dataset.examples)
    per_label = min(PER_LABEL, max(4, IN_ALL // max(len(counts), 1)))
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in dataset.examples:
        by_label[example.label].append(example)
    chosen = {label: by_label[label][:per_label] for label in counts}
    wanted = [(s.example, THUMBNAIL) for s in shown] + [(o.example, THUMBNAIL) for o in outliers]
    wanted += [(example, SMALL) for members in chosen.values() for example in members]
    shots = take_shots(dataset, wanted)
    pairs, others = split_problems(problems)
    return (
        environment()
        .get_template("look.html")
        .render(
            name=dataset.folder.resolve().name,
            total=len(dataset.examples),
            fingerprint=dataset.fingerprint,
            counts=counts,
            split_names=[s for s in (*SPLITS, "none") if any(s in row for row in counts.values())],
            largest=max((sum(row.values()) for row in counts.values()), default=1),
            with_features=with_features,
            suspects=[(s, shots[s.example.id, THUMBNAIL]) for s in shown],
            suspect_count=len(suspects),
            flagged=sum(s.flagged for s in suspects),
            outliers=[(o, shots[o.example.id, THUMBNAIL]) for o in outliers],
            pairs=pair_shots(dataset, pairs[:PAIRS_SHOWN]),
            pair_count=len(pairs),
            problems=others,
            labels={label: [shots[e.id, SMALL] for e in members] for label, members in chosen.items()},
        )
    )


def label_counts(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    """{label: {split: pictures}}, labels in natural order."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        counts[example.label][example.split or "none"] += 1
    return {label: dict(counts[label]) for label in sorted(counts, key=natural_key)}


def split_problems(problems: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """Pairs of pictures, the ones that disagree in their label first; and all other problems."""
    pairs = [p for p in problems if p.other and p.kind in PAIR_KINDS]
    others = [p for p in problems if not (p.other and p.kind in PAIR_KINDS)]
    return sorted(pairs, key=lambda p: PAIR_KINDS.index(p.kind)), others


def take_shots(dataset: Dataset, wanted: Sequence[tuple[Example, int]]) -> dict[tuple[str, int], Shot]:
    """Thumbnails of the examples, each size once, decoded in parallel."""
    jobs = list({(example.id, size): (example, size) for example, size in wanted}.values())

    def shoot(job: tuple[Example, int]) -> Shot:
        return _shot(dataset, *job)

    with ThreadPoolExecutor() as pool:
        taken = track(pool.map(shoot, jobs), "Drawing thumbnails", total=len(jobs))
        return {(job[0].id, job[1]): shot for job, shot in zip(jobs, taken, strict=True)}


def pair_shots(dataset: Dataset, pairs: Sequence[Problem]) -> list[tuple[Problem, Shot, Shot]]:
    """Both pictures of each pair; one that import left out is found by its path."""
    known = {example.id: example for example in dataset.examples}
    source = Path(str(dataset.info.get("source", "")))
    root = source.parent if source.is_file() else source

    def shoot(file: str) -> Shot:
        if file in known:
            return _shot(dataset, known[file], THUMBNAIL)
        return Shot(file, "", "", "", *thumbnail(root / file))

    return [(pair, shoot(pair.file), shoot(pair.other)) for pair in pairs]


def _shot(dataset: Dataset, example: Example, size: int) -> Shot:
    picture = thumbnail(dataset.path(example), size)
    return Shot(example.id, example.sha256, example.label, example.split, *picture)
