"""The import stage: a source of pictures or conversations becomes a data set folder.

    import_pictures(Path("photos"), Path("fish.dataset"), notes=Path("notes.csv"))

Read, check, settle duplicates, group, split, join notes, write. Nothing is written before all is known.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.cells import cell_len

from fieldguide.data.arrange import Arrangement, arrange
from fieldguide.data.clean import Examined, examine_pictures, label_problems
from fieldguide.data.conversations import (
    Conversation,
    Conversations,
    holds_conversations,
    read_conversations,
)
from fieldguide.data.dataset import Dataset, check_free, load_dataset, write_dataset
from fieldguide.data.duplicates import settle_duplicates
from fieldguide.data.examples import read_examples, sha256s_of
from fieldguide.data.fixes import Fix, apply_fixes, read_fixes
from fieldguide.data.folders import listing
from fieldguide.data.notes import join_notes, read_notes_table
from fieldguide.data.placed import example_rows
from fieldguide.data.read import read_source
from fieldguide.data.rows import Row, Source, printable
from fieldguide.data.settle import Settled, content_keys, settle_conversations
from fieldguide.errors import DataError, FieldguideError, SettingsError
from fieldguide.files import natural_key, read_json
from fieldguide.records import SPLITS, Example, Note, Problem
from fieldguide.settings import ImportSettings

_SHOWN_LABELS = 30  # rows of the summary's table
_WIDEST_LABEL = 40  # a longer one pushes its own numbers to the right, not everybody's


def import_pictures(
    source: Path | str,
    out: Path | str,
    settings: ImportSettings | None = None,
    *,
    notes: Path | str | None = None,
    fixes: Path | str | None = None,
    splits_from: Path | str | None = None,
    images: Path | str | None = None,
    announce: Callable[[str], None] = print,
) -> Dataset:
    """Import labelled pictures, or conversations about pictures, into a data set folder.

    Args:
        source: a folder of pictures, a table that names them, or a file of conversations.
        out: the data set folder to write. A data set already there is replaced, but its splits are kept.
        notes: a table of notes about the labels.
        fixes: a table of decisions about single pictures (file, action, label).
        splits_from: a data set whose pictures keep their split here.
        images: the folder of the pictures that a table or file names, if they do not lie beside it.
        announce: called with each line meant for the user: what was inferred, then what was done.

    Returns:
        The data set as written.

    Raises:
        DataError: when a table is wrong, nothing can be imported, or `out` holds something else.
        SettingsError: when a setting is impossible.
    """
    settings = settings or ImportSettings()
    if faults := settings.faults():
        raise SettingsError("; ".join(faults))
    source, out = Path(os.path.abspath(source)), Path(os.path.abspath(out))
    check_free(out)
    folder = Path(os.path.abspath(images)) if images is not None else None
    if folder and not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures", "check the spelling of --images")
    found = _read(source, settings, folder)
    decisions = read_fixes(fixes) if fixes else ()
    all_notes, note_problems = read_notes_table(notes) if notes else ((), ())
    previous = _previous_splits(out, splits_from, settings, announce)
    inferred = found.inferred | _taken_from_training(found.rows, settings)
    announce(f"reading {printable(source)}")
    for what, sentence in inferred.items():
        announce(f"  {what}: {sentence}")

    paths = list(dict.fromkeys(path for row in found.rows for path in row.pictures))
    examined = dict(zip(paths, examine_pictures(paths, settings), strict=True))
    if paths and all(result.error for result in examined.values()):
        first = next(iter(examined.values()))
        raise DataError(
            f"{source}: none of {len(paths)} pictures can be read", f"{first.path.name}: {first.error}"
        )
    arranged: Arrangement | Settled
    if isinstance(found, Conversations):
        arranged, more = settle_conversations(found, decisions, examined, settings, previous)
        total = f"{found.total} conversations"
    else:
        arranged, more = _settle_pictures(found, decisions, examined, settings, previous)
        total = f"{len(paths)} pictures"
    problems = [*found.problems, *note_problems, *more, *arranged.problems]
    problems += label_problems([row.label for row in arranged.rows])
    problems += _missing_splits(arranged, settings)
    joined, more = _join(arranged.rows, all_notes)
    problems += more

    examples, copies = example_rows(arranged, examined, found.root, out, settings.copy)
    dataset = write_dataset(
        out,
        examples,
        joined,
        dataclasses.asdict(settings),
        problems,
        inferred,
        source=str(source),
        pictures=copies if settings.copy else None,
    )
    for line in summary(dataset, total, problems, without_notes=bool(all_notes)):
        announce(line)
    return dataset


def _read(source: Path, settings: ImportSettings, images: Path | None) -> Source | Conversations:
    if holds_conversations(source):
        return read_conversations(source, settings, images)
    return read_source(source, settings, images)


def _settle_pictures(
    found: Source,
    decisions: Sequence[Fix],
    examined: Mapping[Path, Examined],
    settings: ImportSettings,
    previous: Mapping[str, str],
) -> tuple[Arrangement, list[Problem]]:
    """One row for each picture content, grouped and split; and what was done to the others."""
    sha256s = {path: result.sha256 for path, result in examined.items() if not result.error}
    rows, certain, problems = apply_fixes(found.rows, decisions, found.root, sha256s)
    rows, more = _leave_out_bad_pictures(rows, examined, certain)
    problems += more
    rows, more = settle_duplicates(rows, sha256s, certain)
    problems += more
    if not rows:
        raise DataError(
            f"{found.root}: no picture is left to import", "; ".join(p.reason for p in problems[-3:])
        )
    return arrange(rows, examined, settings, previous), problems


def _taken_from_training(rows: Sequence[Row | Conversation], settings: ImportSettings) -> dict[str, str]:
    """What to say when the source gives training pictures but not all other splits."""
    given = {row.split for row in rows} - {""}
    shares = {"val": settings.val, "test": settings.test}
    taken = [f"{name} ({share:.0%})" for name, share in shares.items() if share > 0 and name not in given]
    if "train" not in given or not taken:
        return {}
    return {"splits not given": f"{' and '.join(taken)} taken from the training pictures"}


def _previous_splits(
    out: Path, splits_from: Path | str | None, settings: ImportSettings, announce: Callable[[str], None]
) -> dict[str, str]:
    """{sha256: split} of the data set at `out`, over it those of `splits_from`."""
    earlier: dict[str, str] = {}
    if (out / "examples.parquet").is_file():
        asked = {name: getattr(settings, name) for name in ("seed", "val", "test")}
        try:
            examples = read_examples(out / "examples.parquet")
            before = (
                read_json(out / "dataset.json")["settings"] if (out / "dataset.json").is_file() else asked
            )
            changed = [name for name, value in asked.items() if before.get(name, value) != value]
        except (FieldguideError, KeyError, TypeError, AttributeError) as error:
            announce(f"the data set at {printable(out)} cannot be read: pictures are split anew ({error})")
            examples, changed = (), []
        if changed:
            announce(f"{', '.join(changed)} changed since the last import: pictures are split anew")
        elif examples:
            earlier = _splits_by_content(examples)
            announce(f"keeping the splits of {_counted(examples)} of the data set at {printable(out)}")
    if splits_from is not None:
        examples = load_dataset(splits_from).examples
        announce(f"keeping the splits of {_counted(examples)} of {splits_from}")
        earlier |= _splits_by_content(examples)
    return earlier


def _splits_by_content(examples: Sequence[Example]) -> dict[str, str]:
    """{sha256 of a picture, or of what is asked where there is none: split}."""
    return {key: e.split for e in examples for key in content_keys(e.messages, sha256s_of(e))}


def _counted(examples: Sequence[Example]) -> str:
    pictures = all(example.image and not example.messages for example in examples)
    return f"{len(examples)} {'pictures' if pictures else 'examples'}"


def _leave_out_bad_pictures(
    rows: Sequence[Row], examined: Mapping[Path, Examined], certain: set[Path]
) -> tuple[list[Row], list[Problem]]:
    kept: list[Row] = []
    problems: dict[Path, Problem] = {}
    for row in rows:
        result = examined[row.image]
        if result.error:
            problems[row.image] = Problem(printable(row.name), result.error, "left out", "unreadable")
        elif result.blank and row.image not in certain:
            reason = "blank: all of one colour"
            problems[row.image] = Problem(printable(row.name), reason, "left out", "blank")
        else:
            kept.append(row)
    return kept, list(problems.values())


def _missing_splits(arranged: Arrangement | Settled, settings: ImportSettings) -> list[Problem]:
    """Labels without training or test pictures: nothing can be learnt, or nothing measured."""
    have: dict[str, set[str]] = {}
    rows: Sequence[Row | Conversation] = arranged.rows
    for row, split in zip(rows, arranged.splits, strict=True):
        have.setdefault(row.label, set()).add(split)
    wanted = {
        "train": "training",
        **({"test": "testing"} if settings.test or "test" in arranged.splits else {}),
    }
    return [
        Problem(label, f"no picture of this label is for {wanted[split]}: too few groups", "kept", "split")
        for label in sorted(have, key=natural_key)
        for split in wanted
        if label and split not in have[label]
    ]


def _join(rows: Sequence[Row | Conversation], notes: Sequence[Note]) -> tuple[list[Note], list[Problem]]:
    if not notes:
        return [], []
    joined, missing, left = join_notes({row.label for row in rows if row.label}, notes)
    problems = [Problem(label, "no note about this label", "kept", "no_note") for label in missing]
    problems += [Problem(note.label, "a note, but no picture", "not used", "no_picture") for note in left]
    return list(joined.values()), problems


def summary(
    dataset: Dataset, total: str, problems: Sequence[Problem], without_notes: bool = False
) -> list[str]:
    """What was imported, in a few lines: counts by split and label, problems by kind, where to read more.

    Args:
        total: what the source held: "150 pictures".
    """
    counts = dataset.info["counts"]
    by_split = ", ".join(f"{counts['splits'][split]} {split}" for split in SPLITS)
    lines = [f"imported {counts['examples']} of {total} in {counts['groups']} groups: {by_split}"]
    labels = {label: row for label, row in counts["labels"].items() if label}
    width = min(max((cell_len(label) for label in labels), default=0), _WIDEST_LABEL)
    for label in list(labels)[:_SHOWN_LABELS]:
        numbers = "  ".join(f"{labels[label][split]:5d} {split}" for split in SPLITS)
        lines.append(f"  {label}{' ' * (width - cell_len(label))}  {numbers}")
    if len(labels) > _SHOWN_LABELS:
        lines.append(f"  … {len(labels)} labels in all")
    if without_notes:
        for kind, words in (("no_note", "labels without notes"), ("no_picture", "notes without pictures")):
            names = [problem.file for problem in problems if problem.kind == kind]
            if names:
                lines.append(f"{words}: {listing(names)}")
    if problems:
        kinds = Counter(problem.kind.replace("_", " ") for problem in problems)
        tally = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        lines.append(f"to look at: {tally}; all in {printable(dataset.folder / 'problems.csv')}")
    return lines
