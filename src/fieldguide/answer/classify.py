"""Names thousands of pictures, into one table; killed at any moment, it goes on where it was.

    classify_pictures(load_guide("fish.guide"), [Path("inbox")], Path("names.csv"))

Rows are kept in a ledger beside the table (`names.csv.ledger`) while they are computed. The table itself is
written last, whole or not at all, and then the ledger is deleted.
"""

from __future__ import annotations

import csv
import heapq
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fieldguide.answer.pooling import GroupOf, Member, pool_all
from fieldguide.data.rows import printable, walk
from fieldguide.errors import DataError, SettingsError
from fieldguide.files import atomic_path, fingerprint, sha256_file
from fieldguide.jobs.ledger import Ledger
from fieldguide.progress import progress_bar
from fieldguide.records import Answer, LabelScore

TOLD = ("familiarity", "in_guide")  # columns that are there where the guide tells them
LEAST_SURE = 20
ROWS_A_WRITE = 1000  # of a Parquet row group
_ERROR, _OFF_LIST = "", "\0"  # what rows without a label are counted under: no label can be one of them


class PictureNamer(Protocol):
    """What classifying needs of a guide."""

    @property
    def fingerprint(self) -> str:
        """Identity of everything that an answer depends on."""
        ...

    def classify(self, pictures: Sequence[Path], top_k: int = 5) -> list[Answer]:
        """One answer a picture, in their order; a picture that cannot be read has its error in it."""
        ...


@dataclass(frozen=True)
class Summary:
    """What was done."""

    out: Path
    pictures: int
    unreadable: int
    not_in_guide: int  # named all the same; `in_guide` is false in their rows
    resumed: int  # rows that an earlier run had finished
    labels: Mapping[str, int]  # pictures named so, most frequent first
    seconds: float
    off_list: int = 0  # answered, but with none of the labels
    least_sure: tuple[Path, ...] = ()  # of the pictures with a probability, the least likely answers first


def classify_pictures(
    guide: PictureNamer,
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    top_k: int = 5,
    batch_size: int = 16,
    group_of: GroupOf | None = None,
    announce: Callable[[str], None] = print,
) -> Summary:
    """Name all pictures of some files and folders.

    Args:
        guide: answers a batch of pictures.
        sources: files, and folders that are searched with all their sub-folders, hidden ones left out. There
            pictures are told by extension or first bytes; a file named here is always taken.
        out: the table; its extension chooses the form: .csv, .jsonl or .parquet. Columns: image, label,
            probability, runner_up_1, runner_up_1_probability, …, familiarity and in_guide if the guide tells
            them, error; and `reply`, the words themselves, where some reply named none of the labels. Where
            the guide is set to a coverage, label and runners-up are its set.
        top_k: labels a picture, the first included.
        batch_size: pictures answered, and kept, at once.
        group_of: puts pictures of one thing together (`answer.pooling.grouping`): each group also gets one
            answer, in a second table beside the first, such as names.groups.csv. All labels of each picture
            are read for it.
        announce: is told what is going on.

    Raises:
        SettingsError: when the form of the table is unknown or a number is below 1.
        DataError: when a source does not exist or there are no pictures.
        ResumeError: when the ledger beside the table belongs to other work.
    """
    started, out = time.monotonic(), Path(out)
    write = _writer(out)
    if top_k < 1 or batch_size < 1:
        raise SettingsError(f"top_k={top_k} and batch_size={batch_size} must be at least 1")
    if out.is_dir():
        raise SettingsError(f"{out}: is a folder", "name a table that can be written")
    read = top_k if group_of is None else max(top_k, len(getattr(guide, "labels", ())))
    pictures = find_pictures(sources)
    keys = {path: _key(path) for path in pictures}
    out.parent.mkdir(parents=True, exist_ok=True)
    with Ledger(ledger_path(out), fingerprint({"guide": guide.fingerprint, "top_k": read})) as ledger:
        done = ledger.done()
        todo = [path for path in pictures if keys[path] not in done]
        resumed = len(pictures) - len(todo)
        announce(f"{len(pictures):,} pictures" + (f", {resumed:,} of them already done" if resumed else ""))
        _answer(guide, todo, keys, ledger, read, batch_size, len(pictures))
        columns = _columns(ledger.rows(keys.values()), None if group_of is None else top_k)
        rows = (_row(path, ledger, keys, columns) for path in pictures)
        labels: Counter[str] = Counter()
        strange: Counter[bool] = Counter()
        with atomic_path(out) as temporary:
            write(temporary, columns, _counted(rows, labels, strange))
        doubtful = _least_sure(pictures, keys, ledger)
        grouped = (
            None if group_of is None else _write_groups(out, write, pictures, keys, ledger, group_of, top_k)
        )
        ledger.discard()
    unreadable, off_list = labels.pop(_ERROR, 0), labels.pop(_OFF_LIST, 0)
    summary = Summary(
        out,
        len(pictures),
        unreadable,
        strange[True],
        resumed,
        dict(labels.most_common()),
        time.monotonic() - started,
        off_list,
        doubtful,
    )
    remarks = [f"{unreadable:,} with an error"] if unreadable else []
    remarks += [f"{strange[True]:,} not in this guide"] if strange[True] else []
    remarks += [f"{off_list:,} with a reply that is none of the labels"] if off_list else []
    announce(", ".join([f"{out}: {summary.pictures:,} rows", *remarks]))
    if grouped is not None:
        announce(f"{groups_path(out)}: {grouped:,} groups")
    return summary


def find_pictures(sources: Sequence[Path | str]) -> list[Path]:
    """The pictures of some files and folders, in the order given, folders in natural order, each once.

    Raises:
        DataError: when a source does not exist or there are no pictures.
    """
    found: dict[Path, None] = {}
    for source in map(Path, sources):
        if source.is_dir():
            found.update(dict.fromkeys(walk(source).pictures))
        elif source.exists():
            found[source] = None
        else:
            raise DataError(f"{source}: no such file or folder", "check its spelling, or give the full path")
    if not found:
        raise DataError(
            f"no pictures in {', '.join(map(str, sources)) or 'nothing'}", "give pictures or folders of them"
        )
    return list(found)


def ledger_path(out: Path) -> Path:
    """Where finished rows are kept until the table is written."""
    return out.with_name(out.name + ".ledger")


def _key(path: Path) -> str:
    """Identity of a picture's present content: when the file changes, its row is computed anew."""
    try:
        status = path.stat()
    except OSError:
        return os.fspath(path)
    return f"{status.st_size} {status.st_mtime_ns} {path}"


def _answer(
    guide: PictureNamer,
    todo: Sequence[Path],
    keys: Mapping[Path, str],
    ledger: Ledger,
    top_k: int,
    batch_size: int,
    total: int,
) -> None:
    with progress_bar("pictures") as bar:
        task = bar.add_task("classify", total=total, completed=total - len(todo))
        for first in range(0, len(todo), batch_size):
            batch = todo[first : first + batch_size]
            answers = guide.classify(batch, top_k)
            # strict: a missing answer must not shift the rows
            ledger.put((keys[path], _payload(one)) for path, one in zip(batch, answers, strict=True))
            bar.advance(task, len(batch))


def _payload(answer: Answer) -> dict[str, Any]:
    if answer.error:
        return {"error": answer.error}
    if answer.off_list:
        return {"reply": answer.text}
    payload: dict[str, Any] = {"scores": [[score.label, score.probability] for score in answer.scores]}
    if answer.familiarity is not None:
        payload |= {name: getattr(answer, name) for name in TOLD}
    return payload


def _least_sure(pictures: Sequence[Path], keys: Mapping[Path, str], ledger: Ledger) -> tuple[Path, ...]:
    rows = zip(pictures, ledger.rows(keys[path] for path in pictures), strict=True)
    told = ((payload.get("scores"), path) for path, (_, payload) in rows)
    sure = ((scores[0][1], str(path), path) for scores, path in told if scores and scores[0][1] is not None)
    return tuple(path for _, _, path in heapq.nsmallest(LEAST_SURE, sure))


def groups_path(out: Path) -> Path:
    """The table of groups that belongs to a table of pictures."""
    return out.with_name(f"{out.stem}.groups{out.suffix}")


def _write_groups(
    out: Path,
    write: Write,
    pictures: Sequence[Path],
    keys: Mapping[Path, str],
    ledger: Ledger,
    group_of: GroupOf,
    top_k: int,
) -> int:
    """One row a group; how many there are."""
    members = []
    for path, (_, payload) in zip(pictures, ledger.rows(keys[path] for path in pictures), strict=True):
        scores = tuple(LabelScore(label, probability) for label, probability in payload.get("scores", ()))
        error = payload.get("error") or payload.get("reply") or ""
        content = sha256_file(path) if scores else ""
        members.append(Member(str(path), scores, error, payload.get("in_guide"), content))
    pooled = pool_all(members, group_of)
    runners = min(top_k, max((len(one.scores) for one in pooled), default=0))
    told = ["in_guide"] if any(one.in_guide is not None for one in pooled) else []
    names = [f"runner_up_{n}{end}" for n in range(1, runners) for end in ("", "_probability")]
    columns = ["group", "label", "probability", *names, "pictures", "repeated", "unanswered", *told]
    rows = []
    for one in pooled:
        row: dict[str, Any] = dict.fromkeys(columns)
        row |= {name: getattr(one, name) for name in ("pictures", "repeated", "unanswered", *told)}
        row |= {"group": printable(Path(one.group)), **_ranked(one.scores[:top_k])}
        rows.append(row)
    with atomic_path(groups_path(out)) as temporary:
        write(temporary, columns, rows)
    return len(rows)


def _ranked(scores: Sequence[LabelScore]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for place, score in enumerate(scores):
        row[f"runner_up_{place}" if place else "label"] = score.label
        row[f"runner_up_{place}_probability" if place else "probability"] = score.probability
    return row


def _columns(rows: Iterable[tuple[str, dict[str, Any]]], most_labels: int | None) -> list[str]:
    """As many runners-up as there are: a guide of three labels has two, whatever top_k says.

    Args:
        most_labels: in the table, where more are kept; None for all that are kept, such as sets of labels.
    """
    most, told = 0, set[str]()
    for _, payload in rows:
        most = max(most, len(payload.get("scores", ())[:most_labels]))
        told.update(name for name in (*TOLD, "reply") if name in payload)
    runners = [f"runner_up_{n}{end}" for n in range(1, most) for end in ("", "_probability")]
    known = [name for name in TOLD if name in told]
    return [
        "image",
        "label",
        "probability",
        *runners,
        *known,
        "error",
        *(["reply"] if "reply" in told else []),
    ]


def _row(path: Path, ledger: Ledger, keys: Mapping[Path, str], columns: Sequence[str]) -> dict[str, Any]:
    """A row of the table; None where there is nothing to say."""
    [(_, payload)] = ledger.rows([keys[path]])
    row: dict[str, Any] = dict.fromkeys(columns)
    row["image"] = printable(path)
    row |= {name: payload.get(name) for name in ("error", "reply", *TOLD) if name in columns}
    ranked = _ranked([LabelScore(label, probability) for label, probability in payload.get("scores", ())])
    return row | {name: value for name, value in ranked.items() if name in row}


def _counted(
    rows: Iterable[dict[str, Any]], labels: Counter[str], strange: Counter[bool]
) -> Iterator[dict[str, Any]]:
    for row in rows:
        labels[row["label"] or (_OFF_LIST if row.get("reply") is not None else _ERROR)] += 1
        strange[row.get("in_guide") is False] += 1
        yield row


# ---- forms of the table

Write = Callable[[Path, Sequence[str], Iterable[dict[str, Any]]], None]


def _writer(out: Path) -> Write:
    writers: dict[str, Write] = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    if out.suffix.lower() not in writers:
        raise SettingsError(
            f"{out}: the table must end in {', '.join(writers)}", f"try {out.with_suffix('.csv')}"
        )
    return writers[out.suffix.lower()]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)  # None becomes an empty cell


def _write_jsonl(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"familiarity": pa.float64(), "in_guide": pa.bool_()}
    kinds |= dict.fromkeys(("pictures", "repeated", "unanswered"), pa.int64())
    schema = pa.schema(
        [
            (name, pa.float64() if name.endswith("probability") else kinds.get(name, pa.string()))
            for name in columns
        ]
    )
    with pq.ParquetWriter(path, schema) as writer:
        waiting: list[dict[str, Any]] = []
        for row in rows:
            waiting.append(row)
            if len(waiting) == ROWS_A_WRITE:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, schema))
