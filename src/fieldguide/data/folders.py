"""Folder layouts: which part of a picture's path is its split, its label, or only packaging.

photos/cat/1.jpg                   label "cat"
photos/train/images/cat/2019/1.jpg split "train", label "cat", folder "train/images/cat/2019"
photos/7_img_117.jpg               label "7", from the file name
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fieldguide.data.rows import Found, Row, clean_label, printable, row_name, split_of
from fieldguide.errors import DataError, SettingsError
from fieldguide.files import natural_key
from fieldguide.records import Problem

# Folder names that only hold pictures together. The second kind may also be a label ("photo" beside
# "drawing"), so it counts as packaging only where it has no sibling.
_WRAPPERS = frozenset(("images", "image", "imgs", "img", "pictures", "pics", "jpegimages"))
_LONE_WRAPPERS = frozenset(("photos", "photo", "data", "dataset", "jpg", "jpeg", "png", "raw"))
# What cameras and exporters begin file names with: no label.
_CAMERA_WORDS = frozenset((
    "img", "image", "images", "photo", "picture", "pic", "dsc", "dscn", "dscf", "pxl", "mvi", "vid", "frame",
    "file", "scan", "screenshot", "untitled", "whatsapp", "p", "x", "thumb",
))  # fmt: skip
_BEFORE_UNDERSCORE = re.compile(r"([^_]+)_.+")
_BEFORE_NUMBER = re.compile(r"(.+?)[ ._-]*\(?(?<!\d)\d+\)?")  # "cat (12)", "cat.12", "cat-12", "cat12"
NO_LABEL_HINT = (
    "put the pictures of each label into a folder of its own, give --label-pattern with one (group) around "
    "the label, or import a table with an image and a label column"
)


@dataclass(frozen=True)
class Place:
    """What a picture's folders say about it."""

    split: str
    label: str  # "" when it lies outside every label folder
    deeper: bool  # whether there are more folders below the label's


@dataclass(frozen=True)
class Levels:
    """How the folder levels of a source are to be read."""

    looked_through: tuple[str, ...]  # folder names above the labels that are neither split nor label
    splits: tuple[str, ...]  # folder names read as splits

    def place(self, folders: Sequence[str]) -> Place:
        """Read the folder names between the source and a picture."""
        split, rest = _strip(folders, self.looked_through)
        if not rest:
            return Place(split, "", False)
        # "cat/train/1.jpg": the split may also lie below the label
        inner = next((split_of(name) for name in rest[1:] if split_of(name)), "")
        return Place(split or inner, clean_label(printable(rest[0])), len(rest) > 1)


def find_levels(paths: Sequence[Sequence[str]]) -> Levels:
    """Decide from all pictures' folder names which levels are splits or packaging.

    A level is looked through where its name says so, or where it is the only folder and holds nothing but
    further folders (as unpacked archives have it). A name such as "test" or "images" never becomes a label.
    """
    looked_through: list[str] = []
    while True:
        rests = [_strip(path, looked_through)[1] for path in paths]
        firsts = {rest[0] for rest in rests if rest}
        if len(firsts) != 1:
            break
        name = firsts.pop()
        if name.lower() not in _LONE_WRAPPERS and not _only_folders_inside(rests):
            break
        looked_through.append(name)
    splits = {name for path in paths for name in path if split_of(name)}
    return Levels(tuple(looked_through), tuple(sorted(splits, key=natural_key)))


def _only_folders_inside(rests: Sequence[Sequence[str]]) -> bool:
    """Whether the lone first folder of all paths leads on to split folders or to several folders."""
    if any(split_of(rest[1]) for rest in rests if len(rest) > 1):
        return True
    cores = [[name for name in rest if name.lower() not in _WRAPPERS] for rest in rests]
    common = 0
    while len({core[common] if common < len(core) else None for core in cores}) == 1 and common < len(
        cores[0]
    ):
        common += 1
    return all(len(core) > common for core in cores)


def _strip(folders: Sequence[str], looked_through: Sequence[str]) -> tuple[str, Sequence[str]]:
    split, at = "", 0
    waiting = list(looked_through)
    while at < len(folders):
        name = folders[at]
        if split_of(name):
            split = split or split_of(name)
        elif waiting and name == waiting[0]:
            waiting.pop(0)
        elif name.lower() not in _WRAPPERS:
            break
        at += 1
    return split, folders[at:]


def folder_rows(found: Found, root: Path) -> tuple[list[Row], dict[str, str], list[Problem]]:
    """Rows with split and label as the folders say; the label is "" for pictures outside label folders."""
    paths = {picture: picture.relative_to(root).parts[:-1] for picture in found.pictures}
    levels = find_levels(list(paths.values()))
    rows, problems = [], []
    for picture, folders in paths.items():
        place = levels.place(folders)
        name = row_name(picture, root)
        meta = {"folder": printable(Path(name).parent.as_posix())} if place.deeper else {}
        rows.append(Row(picture, name, label=place.label, split=place.split, meta=meta))
    labels = sorted({row.label for row in rows if row.label}, key=natural_key)
    folders_used = len(set(paths.values()))
    inferred = {"pictures": f"{len(rows)} in {folders_used} folder{'s' * (folders_used > 1)}"}
    if labels:
        inferred["labels"] = f"{len(labels)} sub-folders: {listing(labels)}"
        problems += _empty_label_folders(found, root, levels)
    if levels.splits:
        inferred["splits"] = f"folders {', '.join(printable(name) for name in levels.splits)}"
    through = [printable(name) for name in levels.looked_through]
    if through:
        inferred["looked through"] = f"folders {', '.join(through)} (neither label nor split)"
    return rows, inferred, problems


def _empty_label_folders(found: Found, root: Path, levels: Levels) -> list[Problem]:
    filled = {folder for picture in found.pictures for folder in picture.relative_to(root).parents}
    problems = []
    for folder in found.folders:
        inside = folder.relative_to(root)
        place = levels.place(inside.parts)
        if place.label and not place.deeper and inside not in filled:
            reason = f"the folder of label {place.label!r} holds no picture"
            problems.append(Problem(printable(inside.as_posix()), reason, "no such label", "empty_class"))
    return problems


def listing(names: Sequence[str], most: int = 8) -> str:
    """The first names of a list, as words."""
    shown = ", ".join(names[:most])
    return f"{shown}, … ({len(names)} in all)" if len(names) > most else shown


def labels_by_pattern(names: Sequence[str], pattern: str) -> list[str]:
    """Labels from relative paths by the user's regular expression; "" where it does not match.

    The group named `label`, else the first group, is the label. A pattern with "/" is searched in the whole
    relative path, any other in the file name.

    Raises:
        SettingsError: when the pattern is not a regular expression with a group.
        DataError: when it matches no file.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"label_pattern={pattern!r} is not a regular expression ({error})") from error
    if not expression.groups:
        raise SettingsError(f"label_pattern={pattern!r} has no group", r"such as '^([^_]+)_' with brackets")
    group: str | int = "label" if "label" in expression.groupindex else 1
    labels = []
    for name in names:
        match = expression.search(name if "/" in pattern else name.rsplit("/", 1)[-1])
        labels.append(clean_label(printable(match[group] or "")) if match else "")
    if not any(labels):
        raise DataError(f"label_pattern={pattern!r} matches none of {len(names)} names, such as {names[0]!r}")
    return labels


def labels_in_names(names: Sequence[str]) -> tuple[list[str], str] | None:
    """Find labels in file names: the text before a number, or before the first "_".

    Returns:
        The labels ("" where the rule does not match) and the rule in words, or None when no rule gives
        plausible labels: at least two, each repeated, together covering nearly all files.
    """
    stems = [name.rsplit("/", 1)[-1].rsplit(".", 1)[0] for name in names]
    by_number = [_match(_BEFORE_NUMBER, stem) for stem in stems]
    by_underscore = [_match(_BEFORE_UNDERSCORE, stem) for stem in stems]
    candidates = [
        (labels, rule)
        for labels, rule in (
            (by_number, "text before the number"),
            (by_underscore, 'text before the first "_"'),
        )
        if _plausible(labels)
    ]
    if not candidates:
        return None
    if len(candidates) == 2 and len(set(by_number)) <= len(set(by_underscore)):
        return candidates[1]  # "7_img_117": same classes, and "7" says it better than "7_img"
    return candidates[0]  # "white_king_12": finer than "white"


def _match(rule: re.Pattern[str], stem: str) -> str:
    match = rule.fullmatch(stem)
    return clean_label(printable(match[1]).strip(" ._-")) if match else ""


def _plausible(labels: Sequence[str]) -> bool:
    counts = Counter(label for label in labels if label)
    named = sum(counts.values())
    if len(counts) < 2 or named < 0.9 * len(labels):
        return False
    if all(label.lower() in _CAMERA_WORDS or re.fullmatch(r"\d{6,}", label) for label in counts):
        return False
    repeated = sum(count > 1 for count in counts.values())
    return repeated >= 0.8 * len(counts) and named >= 3 * len(counts)
