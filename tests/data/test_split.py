"""Splits: disjoint, whole groups on one side, nothing moves when pictures are added."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.data.split import Placement, number_folds, place_groups
from fieldguide.data.ties import Tie, burst_ties, group_ties


def shas(count: int, prefix: str = "") -> list[str]:
    return [hashlib.sha256(f"{prefix}{n}".encode()).hexdigest() for n in range(count)]


def place(count: int, labels: list[str] | None = None, **more: object) -> Placement:
    arguments: dict[str, object] = {"ties": [], "val": 0.1, "test": 0.2, **more}
    return place_groups(shas(count), labels or ["a"] * count, **arguments)  # type: ignore[arg-type]


pairs = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=20)
shares = st.sampled_from([0.0, 0.1, 0.3])
splits = st.lists(st.sampled_from(["", "", "train", "val", "test"]), min_size=30, max_size=30)


def ties_of(found: list[tuple[int, int]]) -> list[Tie]:
    return [Tie(pair, "near-duplicate") for pair in found if pair[0] != pair[1]]


@given(pairs, shares, shares, st.integers(0, 5), splits, splits)
@settings(max_examples=200)
def test_no_tie_ever_crosses_splits(
    found: list[tuple[int, int]], val: float, test: float, seed: int, given_: list[str], before: list[str]
) -> None:
    """Cases 27 and 28: every picture has one split, and what belongs together shares it."""
    ties = ties_of(found)
    previous = {sha: split for sha, split in zip(shas(30), before, strict=True) if split}
    labels = ["ab"[n % 2] for n in range(30)]
    result = place(30, labels, ties=ties, val=val, test=test, seed=seed, given=given_, previous=previous)
    for index in range(30):
        if index in result.left_out:
            assert (result.splits[index], result.groups[index]) == ("", "")
            clash = result.left_out[index]
            assert clash.split != given_[index] or before[index]
            assert any(index in tie.members for tie in ties)
            assert result.splits[clash.other] == clash.split != ""
        else:
            assert result.splits[index] in ("train", "val", "test")
    for tie in ties:
        kept = [index for index in tie.members if index not in result.left_out]
        assert len({result.splits[index] for index in kept}) <= 1
        assert len({result.groups[index] for index in kept}) <= 1
    by_group = defaultdict(set)
    for group, split in zip(result.groups, result.splits, strict=True):
        by_group[group].add(split)
    assert all(len(found_) == 1 for found_ in by_group.values())


@given(pairs, splits)
def test_given_splits_are_respected(found: list[tuple[int, int]], given_: list[str]) -> None:
    result = place(30, ties=ties_of(found), given=given_)
    for index, split in enumerate(given_):
        if index in result.left_out:
            assert split != "test"  # the picture for testing always stays
        elif split and not (split == "train" and not {"val", "test"} <= set(given_)):
            assert result.splits[index] == split


@given(st.integers(1, 30), pairs, st.lists(st.sampled_from("abc"), min_size=30, max_size=30))
def test_previous_splits_never_move(count: int, found: list[tuple[int, int]], labels: list[str]) -> None:
    old = [pair for pair in found if max(pair) < count]
    first = place(count, labels[:count], ties=ties_of(old))
    previous = dict(zip(shas(count), first.splits, strict=True))
    second = place(30, labels, ties=ties_of(found), previous=previous)
    for index in range(count):
        assert second.splits[index] == first.splits[index]
    for index, clash in second.left_out.items():
        assert index >= count  # only a new picture can be the bridge
        assert clash.other != index


@given(st.integers(0, 3), st.sampled_from("abcd"))
def test_adding_pictures_moves_none_without_previous(seed: int, label: str) -> None:
    """The hash alone holds the places, once every label has pictures in every split."""
    labels = ["abcd"[n % 4] for n in range(240)]
    before = place(240, labels, seed=seed)
    assert all(set(Counter(s for s, x in zip(before.splits, labels, strict=True) if x == y)) ==
               {"train", "val", "test"} for y in "abcd")  # fmt: skip
    after = place(300, labels + [label] * 60, seed=seed)
    unrepaired = place(240, [""] * 240, seed=seed)
    moved = [n for n in range(240) if after.splits[n] != before.splits[n]]
    assert all(before.splits[n] != unrepaired.splits[n] for n in moved)  # only a repair may be undone


@given(st.integers(0, 20), st.integers(3, 12), st.integers(3, 12))
def test_every_label_with_enough_groups_is_in_every_split(seed: int, first: int, second: int) -> None:
    labels = ["a"] * first + ["b"] * second
    result = place(first + second, labels, seed=seed)
    for label, count in (("a", first), ("b", second)):
        mine = {split for split, other in zip(result.splits, labels, strict=True) if other == label}
        assert {"train", "test"} <= mine
        assert count < 4 or "val" in mine


def test_shares_hold_on_average() -> None:
    counts = Counter(place(5000).splits)
    assert counts["test"] / 5000 == pytest.approx(0.2, abs=0.02)
    assert counts["val"] / 5000 == pytest.approx(0.1, abs=0.015)
    assert Counter(place(100, val=0.0, test=0.0).splits) == {"train": 100}


def test_another_seed_is_another_split() -> None:
    """Case 28: and the three splits of one seed never share a picture."""
    one, two = place(200, seed=1), place(200, seed=2)
    assert one.splits != two.splits
    assert place(200, seed=1) == one


def test_missing_splits_come_from_given_training_pictures() -> None:
    given_ = ["train"] * 80 + ["test"] * 20
    counts = Counter(place(100, given=given_).splits)
    assert counts["test"] == 20
    assert 2 <= counts["val"] <= 20
    assert counts["train"] == 80 - counts["val"]
    assert Counter(place(100, given=given_, val=0.0).splits) == {"train": 80, "test": 20}


def test_duplicate_across_given_splits_keeps_the_test_picture() -> None:
    given_ = ["train", "test", "val", "train", "val", "train"]
    ties = [Tie((0, 1), "near-duplicate"), Tie((2, 3), "near-duplicate"), Tie((4, 1), "near-duplicate")]
    result = place(6, given=given_, ties=ties)
    assert set(result.left_out) == {0, 3, 4}
    assert result.left_out[0].split == "test"
    assert result.splits[1:3] == ("test", "val")


def test_a_group_that_the_source_tore_apart_is_left_out_as_a_whole() -> None:
    """Train – train – test: the far training picture shows the same thing as the one for testing."""
    ties = [Tie((0, 1), "near-duplicate"), Tie((1, 2), "near-duplicate")]
    result = place(3, given=["train", "train", "test"], ties=ties)
    assert set(result.left_out) == {0, 1}
    assert (result.left_out[0].other, result.left_out[0].split) == (2, "test")


def test_a_chain_of_new_pictures_cannot_bridge() -> None:
    """Train – new – new – test: one of the new ones goes, the other finds a side."""
    previous = {shas(4)[0]: "train", shas(4)[3]: "test"}
    ties = [Tie((0, 1), "near-duplicate"), Tie((1, 2), "near-duplicate"), Tie((2, 3), "near-duplicate")]
    result = place(4, ties=ties, previous=previous)
    assert len(result.left_out) == 1
    assert result.splits[0] == "train"
    assert result.splits[3] == "test"


def test_group_values_hold_their_place_when_pictures_join() -> None:
    few, many = ["tom", "tom", "felix"], ["tom", "tom", "felix", "tom", "felix", "felix"]
    before = place(3, ties=group_ties(few), user_groups=few, val=0.3, test=0.3)
    after = place(6, ties=group_ties(many), user_groups=many, val=0.3, test=0.3)
    assert before.groups == after.groups[:3]
    assert len(set(after.groups)) == 2


def test_bursts() -> None:
    """Case 26: frames a moment apart, by the same camera, are one group, however long the run."""
    taken = ["2024-05-01T10:00:00", "2024-05-01T10:00:05.5", "2024-05-01T10:00:02.9", "", "nonsense",
             "2024-05-01T10:00:03", "2024-05-01T11:00:00"]  # fmt: skip
    cameras = ["A", "A", "A", "A", "A", "B", "A"]
    assert burst_ties(taken, cameras, 3.0) == [Tie((0, 2, 1), "same burst")]
    assert burst_ties(taken, cameras, 0) == []
    frames = [f"2024-05-01T10:{n // 60:02d}:{n % 60:02d}" for n in range(0, 600, 2)]
    result = place(300, ties=burst_ties(frames, [""] * 300, 3.0))
    assert len(set(result.groups)) == len(set(result.splits)) == 1


@given(pairs, st.integers(2, 6), st.integers(0, 3))
def test_folds(found: list[tuple[int, int]], folds: int, seed: int) -> None:
    labels = ["ab"[n % 2] for n in range(30)]
    groups = place(30, labels, ties=ties_of(found)).groups
    numbers = number_folds(groups, labels, folds, seed)
    assert set(numbers) <= set(range(folds))
    assert len({(group, fold) for group, fold in zip(groups, numbers, strict=True)}) == len(set(groups))


def test_folds_are_balanced_by_label() -> None:
    labels = ["a"] * 50 + ["b"] * 25
    numbers = number_folds(place(75, labels).groups, labels, 5)
    for label, each in (("a", 10), ("b", 5)):
        counts = Counter(fold for fold, other in zip(numbers, labels, strict=True) if other == label)
        assert set(counts.values()) == {each}
