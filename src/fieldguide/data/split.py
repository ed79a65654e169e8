"""Groups of pictures that belong together, and splits that cannot leak between them.

Pictures are joined into one group by near-duplicate pairs, by a column the user named, and by bursts (same
camera, seconds apart). A group lies on one side as a whole. `place_groups` is the only entry: it gives every
picture its group and split, or says why it was left out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fieldguide.data.ties import Tie
from fieldguide.files import natural_key
from fieldguide.records import SPLITS

_STRENGTH = {"test": 0, "val": 1, "train": 2}  # of two that clash, the first stays where it is


@dataclass(frozen=True)
class Clash:
    """Why a picture was left out: it would have joined groups of different splits."""

    other: int  # index of the picture it belongs together with
    split: str  # where that one lies
    reason: str  # "near-duplicate", "same burst", "same group"


@dataclass(frozen=True)
class Placement:
    """Group and split of each picture, by index; both "" for pictures left out."""

    groups: tuple[str, ...]
    splits: tuple[str, ...]
    left_out: dict[int, Clash]


def place_groups(
    sha256s: Sequence[str],
    labels: Sequence[str],
    ties: Iterable[Tie],
    *,
    val: float,
    test: float,
    seed: int = 0,
    given: Sequence[str] = (),
    previous: Mapping[str, str] | None = None,
    user_groups: Sequence[str] = (),
) -> Placement:
    """Group pictures and choose a split for each group.

    A group's place depends on nothing but `seed` and the group's key (its smallest sha256, or the user's
    value), so adding pictures moves none. That forbids exact stratification: a rule under which no addition
    ever moves anything must look at each group alone. The trade made here: the shares hold on average, and
    only a label that the hash left without training, test or validation pictures is repaired, by moving the
    group nearest to the border. Such a repair can be undone by pictures added later, as can the key of a
    group that grows; therefore `previous` splits are never changed, and a re-import moves none at all.

    Args:
        sha256s: one a picture, all different.
        labels: one a picture, "" for none.
        ties: pictures that must share a side.
        val, test: shares of the groups, the rest is for training.
        given: the split the source gives to each picture, "" for none. Splits the source does not give
            (with a share above 0) are taken from its training pictures.
        previous: {sha256: split} of an earlier import.
        user_groups: the user's group value of each picture, "" for none.

    Returns:
        The placement. A picture tied to pictures of different fixed splits is left out; of two pictures with
        different fixed splits that are tied, the one for testing, then that for validation, stays.
    """
    given = given or [""] * len(sha256s)
    allowed = _allowed_splits(sha256s, given, previous or {}, {"val": val, "test": test})
    union, left_out = _unite(sha256s, list(ties), allowed)
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(sha256s)):
        if index not in left_out:
            members[union.root(index)].append(index)
    groups = [
        _Group(_key(found, sha256s, user_groups), tuple(found), union.allowed[r])
        for r, found in members.items()
    ]
    open_splits = _open_splits(given, {"val": val, "test": test})
    shares = {split: share for split, share in (("test", test), ("val", val)) if split in open_splits}
    for group in groups:
        group.choose(shares, seed)
    _repair(groups, labels, shares)
    names, splits = [""] * len(sha256s), [""] * len(sha256s)
    for group in groups:
        for index in group.members:
            names[index], splits[index] = group.key, group.split
    left_out = {index: Clash(c.other, splits[c.other], c.reason) for index, c in left_out.items()}
    return Placement(tuple(names), tuple(splits), left_out)


def _open_splits(given: Sequence[str], shares: Mapping[str, float]) -> set[str]:
    """The splits that the hash may fill: all but those the source gives itself, and always "train"."""
    return {"train"} | {split for split, share in shares.items() if share > 0 and split not in given}


def _allowed_splits(
    sha256s: Sequence[str], given: Sequence[str], previous: Mapping[str, str], shares: Mapping[str, float]
) -> list[frozenset[str]]:
    """Where each picture may go: its earlier place, the place its source gives, or anywhere."""
    open_splits = frozenset(_open_splits(given, shares))
    allowed = []
    for sha256, split in zip(sha256s, given, strict=True):
        may = open_splits if split == "train" else frozenset((split,)) if split else frozenset(SPLITS)
        before = previous.get(sha256, "")
        allowed.append(frozenset((before,)) if before in may else may)
    return allowed


class _Union:
    """Union-find over pictures; each set knows the splits that all its members allow."""

    def __init__(self, allowed: Sequence[frozenset[str]]) -> None:
        self.parent = list(range(len(allowed)))
        self.allowed = list(allowed)

    def root(self, index: int) -> int:
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]
            index = self.parent[index]
        return index

    def join(self, one: int, two: int) -> None:
        one, two = sorted((self.root(one), self.root(two)))
        if one != two:
            self.parent[two] = one
            self.allowed[one] &= self.allowed[two]


def _unite(
    sha256s: Sequence[str], ties: Sequence[Tie], allowed: Sequence[frozenset[str]]
) -> tuple[_Union, dict[int, Clash]]:
    """Join tied pictures one by one, the most firmly placed first; leave out who would bridge two sides."""
    left_out = _split_by_source(ties, allowed)
    ties_of: dict[int, list[int]] = defaultdict(list)
    for number, tie in enumerate(ties):
        for index in tie.members:
            ties_of[index].append(number)
    union = _Union(allowed)
    present: dict[int, int] = {}  # tie -> a member already joined
    for index in sorted(range(len(sha256s)), key=lambda i: (_firmness(allowed[i]), sha256s[i])):
        if index in left_out:
            continue
        neighbours = {number: present[number] for number in ties_of[index] if number in present}
        common = allowed[index]
        clash: Clash | None = None
        for number, neighbour in neighbours.items():
            there = union.allowed[union.root(neighbour)]
            if not common & there:
                clash = Clash(neighbour, "", ties[number].reason)
                break
            common &= there
        if clash:
            left_out[index] = clash
            continue
        for number in ties_of[index]:
            present.setdefault(number, index)
        for neighbour in neighbours.values():
            union.join(index, neighbour)
    return union, left_out


def _split_by_source(ties: Sequence[Tie], allowed: Sequence[frozenset[str]]) -> dict[int, Clash]:
    """Whole groups that were put on two sides before: only what lies in the firmest split is kept.

    Also pictures tied to that side through others of the group are left out, not just direct neighbours.
    Pictures that are free to go anywhere do not count here: one that ties two sides is itself at fault.
    """
    union = _Union(allowed)
    placed = [tuple(i for i in tie.members if len(allowed[i]) < len(SPLITS)) for tie in ties]
    reasons: dict[int, str] = {}
    for members, tie in zip(placed, ties, strict=True):
        for index in members:
            union.join(members[0], index)
            reasons.setdefault(index, tie.reason)
    left_out: dict[int, Clash] = {}
    torn: dict[int, list[int]] = defaultdict(list)
    for index in reasons:
        if not union.allowed[union.root(index)]:
            torn[union.root(index)].append(index)
    for members_of in torn.values():
        firmest = min(members_of, key=lambda index: (_firmness(allowed[index]), index))
        (split,) = allowed[firmest]
        for index in members_of:
            if split not in allowed[index]:
                left_out[index] = Clash(firmest, "", reasons[index])
    return left_out


def _firmness(allowed: frozenset[str]) -> tuple[int, int]:
    return len(allowed), min(_STRENGTH[split] for split in allowed)


def _key(members: Sequence[int], sha256s: Sequence[str], user_groups: Sequence[str]) -> str:
    """A name for the group that depends on its content alone."""
    named = [user_groups[index] for index in members if user_groups and user_groups[index]]
    if named:  # the user's value does not change when a picture joins the group
        return min(_group_key(name) for name in set(named))
    return min(sha256s[index] for index in members)[:16]


def _group_key(name: str) -> str:
    """Of the user's value; one that is such a key, of a data set that was exported, stays what it is."""
    if re.fullmatch("[0-9a-f]{16}", name):
        return name
    return hashlib.sha256(f"group:{name}".encode()).hexdigest()[:16]


def stable_share(seed: int, key: str, purpose: str = "split") -> float:
    """A number in [0, 1) that depends on `seed`, `key` and `purpose` alone, the same on every machine."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class _Group:
    def __init__(self, key: str, members: tuple[int, ...], allowed: frozenset[str]) -> None:
        self.key, self.members, self.allowed = key, members, allowed
        self.split, self.share = "", 0.0

    def choose(self, shares: Mapping[str, float], seed: int) -> None:
        """Take the only allowed split, else the one whose interval of [0, 1) the key's hash falls into."""
        self.share = stable_share(seed, self.key)
        if len(self.allowed) == 1:
            (self.split,) = self.allowed
            return
        self.split = "train" if "train" in self.allowed else min(self.allowed, key=_STRENGTH.__getitem__)
        start = 0.0
        for split, share in shares.items():
            if start <= self.share < start + share and split in self.allowed:
                self.split = split
            start += share


def _repair(groups: Sequence[_Group], labels: Sequence[str], shares: Mapping[str, float]) -> None:
    """Give each label with enough groups at least one in test (3 groups), train (3) and val (4)."""
    of_label: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        for label in {labels[index] for index in group.members}:
            of_label[label].append(group)
    counts = {label: Counter(group.split for group in found) for label, found in of_label.items()}
    for wanted, least in (("test", 3), ("train", 3), ("val", 4)):
        if wanted != "train" and not shares.get(wanted):
            continue
        for label in sorted(of_label, key=natural_key):
            found = of_label[label]
            if len(found) < least or counts[label][wanted]:
                continue
            for group in sorted(found, key=lambda g: (_distance(g, wanted), g.key)):
                if _may_move(group, wanted, labels, counts):
                    for other in {labels[index] for index in group.members}:
                        counts[other][group.split] -= 1
                        counts[other][wanted] += 1
                    group.split = wanted
                    break


def _distance(group: _Group, wanted: str) -> tuple[int, float]:
    """Training groups give first, those nearest to the border; to training gives who is farthest from it."""
    return int(group.split != "train"), 1 - group.share if wanted == "train" else group.share


def _may_move(group: _Group, wanted: str, labels: Sequence[str], counts: Mapping[str, Counter[str]]) -> bool:
    if wanted not in group.allowed or len(group.allowed) == 1:
        return False
    return all(counts[labels[index]][group.split] > 1 for index in group.members)


def number_folds(groups: Sequence[str], labels: Sequence[str], folds: int, seed: int = 0) -> tuple[int, ...]:
    """Number `folds` cross-validation folds, 0 to folds-1, balanced by label; a group shares one fold.

    Large groups are dealt first, each to the fold with the fewest pictures of its labels, then the fewest
    pictures; the stable hash of the group decides the order and ties. -1 for pictures without a group.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        if group:
            members[group].append(index)
    by_label = [Counter[str]() for _ in range(folds)]
    totals = [0] * folds
    numbers = [-1] * len(groups)
    order = sorted(members, key=lambda key: (-len(members[key]), stable_share(seed, key, "fold"), key))
    for key in order:
        mine = Counter(labels[index] for index in members[key])
        start = int(stable_share(seed, key, "fold start") * folds)
        fold = min(
            range(folds),
            key=lambda f: (
                sum(by_label[f][label] * n for label, n in mine.items()),
                totals[f],
                (f - start) % folds,
            ),
        )
        by_label[fold].update(mine)
        totals[fold] += len(members[key])
        for index in members[key]:
            numbers[index] = fold
    return tuple(numbers)
