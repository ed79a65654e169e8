"""The label trie against brute force: every label reached by its own decisions, and by no other's."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.answer.trie import LabelTrie
from fieldguide.errors import GuideError
from fieldguide.model.prompt import Prompt
from fieldguide.testing import tiny_tokenizer

END = 0
label_tokens = st.lists(st.integers(1, 4), max_size=6).map(lambda ids: (*ids, END))
label_sets = st.lists(label_tokens, min_size=1, max_size=40, unique=True)


def trie_of(sequences: list[tuple[int, ...]]) -> LabelTrie:
    return LabelTrie({f"label {number}": ids for number, ids in enumerate(sequences)})


def walk(trie: LabelTrie, sequence: tuple[int, ...]) -> int:
    """Where a sequence leads when it is followed token by token: a label's number, or -1."""
    target = trie.start
    while target >= 0:
        branch = trie.branches[target]
        if sequence[: len(branch.path)] != branch.path or sequence[len(branch.path)] not in branch.tokens:
            return -1
        target = branch.to[branch.tokens.index(sequence[len(branch.path)])]
    return ~target


@given(label_sets)
def test_every_label_is_reached_by_its_own_tokens(sequences: list[tuple[int, ...]]) -> None:
    trie = trie_of(sequences)
    assert [walk(trie, sequence) for sequence in sequences] == list(range(len(sequences)))


@given(label_sets)
def test_branches_are_the_places_where_more_than_one_token_may_follow(
    sequences: list[tuple[int, ...]],
) -> None:
    following: dict[tuple[int, ...], set[int]] = {}
    below: dict[tuple[int, ...], int] = {}
    for sequence in sequences:
        for depth, token in enumerate(sequence):
            following.setdefault(sequence[:depth], set()).add(token)
            below[sequence[:depth]] = below.get(sequence[:depth], 0) + 1
    expected = {path: (sorted(tokens), below[path]) for path, tokens in following.items() if len(tokens) > 1}
    branches = trie_of(sequences).branches
    assert {branch.path: (list(branch.tokens), branch.size) for branch in branches} == expected
    assert len(branches) == len(expected)


@given(label_sets)
def test_a_branch_stands_before_those_below_it_and_routes_retrace_the_labels(
    sequences: list[tuple[int, ...]],
) -> None:
    trie = trie_of(sequences)
    assert all(target > number for number, b in enumerate(trie.branches) for target in b.to if target >= 0)
    for number, route in enumerate(trie.routes):
        for branch_number, place in route:
            branch = trie.branches[branch_number]
            assert sequences[number][: len(branch.path) + 1] == (*branch.path, branch.tokens[place])
        depths = [len(trie.branches[branch_number].path) for branch_number, _ in route]
        assert depths == sorted(set(depths))


def test_a_label_may_begin_another() -> None:
    """Case 32: "cat" beside "catfish" is a decision like any other."""
    trie = LabelTrie({"cat": [5, END], "catfish": [5, 6, 7, END]})
    [branch] = trie.branches
    assert (branch.path, branch.tokens, branch.to) == ((5,), (END, 6), (~0, ~1))


def test_one_label_needs_no_decision() -> None:
    trie = LabelTrie({"cat": [5, END]})
    assert (trie.start, trie.branches, trie.routes) == (~0, [], ((),))


def test_labels_that_are_the_same_to_the_tokenizer_are_refused_by_name() -> None:
    with pytest.raises(GuideError, match="'Cat' and 'cat' have the same tokens"):
        LabelTrie({"dog": [3, END], "Cat": [5, END], "cat": [5, END]})


def test_tokens_without_an_end_are_refused_where_one_begins_another() -> None:
    with pytest.raises(GuideError, match="'catfish' and 'cat' have tokens of which one begins the other's"):
        LabelTrie({"catfish": [5, 6], "cat": [5]})


def test_no_labels_are_refused() -> None:
    with pytest.raises(GuideError, match="at least one label"):
        LabelTrie({})


def test_ten_thousand_labels_are_ready_in_seconds() -> None:
    """Case 34, tokens included. It takes less than a second; the limit is for a busy machine."""
    draw, prompt = random.Random(0), Prompt(tiny_tokenizer())
    genera = ["".join(draw.choices("aeioulmnrst", k=9)).capitalize() for _ in range(2_000)]
    labels = [f"{draw.choice(genera)} species {number}" for number in range(10_000)]
    start = time.process_time()
    trie = LabelTrie({label: prompt.answer(label) for label in labels})
    assert len(trie.routes) == len(trie) == 10_000
    assert time.process_time() - start < 20
