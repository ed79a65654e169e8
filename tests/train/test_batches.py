"""Batches: every row once an epoch, in an order that needs no state."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.train.batches import COARSE, POOL, collate, epoch_order
from fieldguide.train.rows import Row

MANY = 10**9  # tokens: no limit
lengths_of = st.lists(st.integers(1, 60), min_size=1, max_size=300)


@settings(max_examples=80)
@given(lengths_of, st.integers(1, 9), st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 50))
def test_every_row_comes_once_an_epoch_in_batches_that_are_small_enough(
    lengths: list[int], size: int, tokens: int, seed: int, epoch: int
) -> None:
    order = epoch_order(lengths, size, tokens, seed, epoch)
    assert sorted(row for batch in order for row in batch) == list(range(len(lengths)))
    for batch in order:
        assert 1 <= len(batch) <= size
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= tokens
    assert order == epoch_order(lengths, size, tokens, seed, epoch)


@settings(max_examples=30)
@given(lengths_of, st.integers(1, 9))
def test_batches_are_full_where_tokens_allow(lengths: list[int], size: int) -> None:
    assert len(epoch_order(lengths, size, MANY, 0, 0)) == -(-len(lengths) // size)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 60), min_size=30, max_size=200), st.integers(0, 1000), st.integers(0, 50))
def test_another_epoch_or_seed_has_another_order(lengths: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(lengths, 4, 100, seed, epoch)
    assert order != epoch_order(lengths, 4, 100, seed, epoch + 1)
    assert order != epoch_order(lengths, 4, 100, seed + 1, epoch)


def test_rows_of_like_length_are_together_but_not_in_the_order_of_length() -> None:
    lengths = [1 + (37 * i) % 101 for i in range(400)]
    order = epoch_order(lengths, 8, MANY, 0, 0)
    assert len(order) <= POOL  # one pool: sorted as a whole
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in order]
    assert max(spread) < 2 * COARSE
    assert sum(width < COARSE for width in spread) > 0.8 * len(spread)
    firsts = [lengths[batch[0]] for batch in order]
    assert firsts != sorted(firsts)


def test_rows_of_nearly_the_same_length_are_mixed() -> None:
    """Labels differ by a token or two: batches sorted by that would each hold a few labels only."""
    lengths = [8] * 100 + [9] * 100
    order = epoch_order(lengths, 8, MANY, 0, 0)
    assert sum(len({lengths[i] for i in batch}) == 2 for batch in order) > 0.8 * len(order)


def test_which_rows_meet_changes_between_epochs() -> None:
    lengths = [5] * 64
    together = [{frozenset(batch) for batch in epoch_order(lengths, 8, MANY, 0, epoch)} for epoch in range(2)]
    assert not together[0] & together[1]


rows_of = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=12), min_size=1, max_size=6
)


@settings(max_examples=100)
@given(rows_of)
def test_collating_pads_without_supervising_padding(contents: list[list[tuple[int, bool]]]) -> None:
    rows = [
        Row(10 + i, tuple(token for token, _ in content), tuple(taught for _, taught in content))
        for i, content in enumerate(contents)
    ]
    batch = collate(rows)
    assert batch.ids.shape == batch.supervised.shape == (len(rows), max(len(row.ids) for row in rows))
    assert batch.pictures.tolist() == [row.picture for row in rows]
    for i, row in enumerate(rows):
        assert tuple(batch.ids[i, : len(row.ids)].tolist()) == row.ids
        assert tuple(batch.supervised[i, : len(row.ids)].tolist()) == row.supervised
        assert not batch.supervised[i, len(row.ids) :].any()
    taught = [token for row in rows for token, yes in zip(row.ids, row.supervised, strict=True) if yes]
    assert batch.targets.tolist() == taught
    assert batch.targets.dtype == torch.long
