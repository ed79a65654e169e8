"""The search for near-duplicates: exact against brute force, and bounded."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.data import near
from fieldguide.data.near import SIGNATURE_DIGITS, near_duplicate_pairs, near_duplicates, near_matches


def bits(*positions: int) -> int:
    return sum(1 << position for position in positions)


# Hashes near each other, or equal, or far: a few centres with up to twelve bits turned over.
hashes_near_centres = st.lists(
    st.builds(
        lambda centre, turned: centre ^ bits(*turned),
        st.sampled_from([0, 2**64 - 1, 0x0123456789ABCDEF, 0xF0F0F0F0F0F0F0F0]),
        st.sets(st.integers(0, 63), max_size=12),
    ),
    max_size=60,
)


def brute_force(hashes: list[int], distance: int) -> set[tuple[int, int]]:
    """Pairs of first occurrences within `distance`, and every copy with its first occurrence."""
    first = [hashes.index(value) for value in hashes]
    return {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if (first[i] == i == first[j])
        or (first[i] == i and first[j] == j and (hashes[i] ^ hashes[j]).bit_count() <= distance)
    }


@settings(max_examples=200)
@given(hashes_near_centres, st.integers(0, 16))
def test_pairs_equal_brute_force(hashes: list[int], distance: int) -> None:
    pairs = near_duplicate_pairs(np.array(hashes, dtype=np.uint64), distance)
    assert pairs.shape == (len(pairs), 2)
    found = [tuple(pair) for pair in pairs.tolist()]
    assert found == sorted(brute_force(hashes, distance))


@pytest.mark.parametrize("distance", [0, 3, 8, 13])
def test_pairs_equal_brute_force_where_buckets_are_large(distance: int) -> None:
    random = np.random.default_rng(distance)
    hashes = random.integers(0, 2**64, 3000, dtype=np.uint64)
    for _ in range(5):  # a tight cluster, so that all of it falls into the same buckets
        hashes[:1200] = np.where(
            random.random(1200) < 0.7,
            np.uint64(77) ^ (np.uint64(1) << random.integers(0, 64, 1200).astype(np.uint64)),
            hashes[:1200],
        )
    hashes[1200:1400] ^= np.uint64(0b111)
    hashes = random.permutation(hashes)
    values, first = np.unique(hashes, return_index=True)
    close = np.triu(np.bitwise_count(values[:, None] ^ values[None]) <= distance, 1)
    expected = {
        tuple(sorted((int(first[a]), int(first[b])))) for a, b in zip(*np.nonzero(close), strict=True)
    }
    copies = {(int(np.flatnonzero(hashes == hashes[i])[0]), i) for i in range(len(hashes))}
    expected |= {pair for pair in copies if pair[0] != pair[1]}
    assert {tuple(pair) for pair in near_duplicate_pairs(hashes, distance).tolist()} == expected


def test_copies_cost_one_pair_each_not_their_square() -> None:
    hashes = np.repeat(np.array([5, 2**40, 7], dtype=np.uint64), [100_000, 1, 100_000])
    pairs = near_duplicate_pairs(hashes, 1)
    assert len(pairs) == 2 * 99_999 + 1
    assert (0, 100_001) in {tuple(pair) for pair in pairs.tolist()}


def test_no_hashes_and_one_hash_have_no_pairs() -> None:
    for hashes in ([], [7]):
        assert near_duplicate_pairs(np.array(hashes, dtype=np.uint64), 8).shape == (0, 2)
        assert near_duplicates([f"{value:080x}" for value in hashes], 8) == []


def signature(short: int, long: int = 0) -> str:
    return f"{short:016x}{long:064x}"


def components(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    group = list(range(count))
    for a, b in pairs:
        group = [group[a] if value == group[b] else value for value in group]
    return [group.index(value) for value in group]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=40), st.integers(0, 9))
def test_groups_equal_brute_force_on_both_hashes(turned: list[tuple[int, int]], distance: int) -> None:
    signatures = [signature((1 << short) - 1, (1 << 3 * long) - 1) for short, long in turned]
    alike = [
        (i, j)
        for j, (short_j, long_j) in enumerate(turned)
        for i, (short_i, long_i) in enumerate(turned[:j])
        if abs(short_i - short_j) <= distance and 3 * abs(long_i - long_j) <= int(distance * 34 / 8)
    ]
    found = near_duplicates(signatures, distance)
    assert set(found) <= set(alike)
    assert len(set(found)) == len(found) < max(1, len(turned))
    assert components(len(turned), found) == components(len(turned), alike)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=15),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=15),
)
def test_matches_name_the_first_known_look_alike(
    new: list[tuple[int, int]], known: list[tuple[int, int]]
) -> None:
    def text(pairs: list[tuple[int, int]]) -> list[str]:
        return [signature((1 << short) - 1, (1 << 3 * long) - 1) for short, long in pairs]

    expected = [
        (i, hits[0])
        for i, (short, long) in enumerate(new)
        if (hits := [j for j, (s, g) in enumerate(known) if abs(s - short) <= 8 and 3 * abs(g - long) <= 34])
    ]
    assert near_matches(text(new), text(known), 8) == expected


def test_pictures_without_a_signature_resemble_nothing() -> None:
    assert near_duplicates(["", signature(1), "", signature(1), ""], 8) == [(1, 3)]
    assert near_matches(["", signature(1)], ["", signature(9)], 8) == [(1, 1)]


def test_a_signature_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{SIGNATURE_DIGITS} hex digits, not 16"):
        near_duplicates(["0123456789abcdef"], 8)


def test_a_large_cluster_is_linked_in_bounded_memory() -> None:
    """Case 29: 8,000 pictures that all resemble each other make 32 million pairs; each needs but one link."""
    turned = np.random.default_rng(0).integers(0, 64, (8_000, 4)).astype(np.uint64)
    hashes = np.bitwise_xor.reduce(np.uint64(1) << turned, axis=1)
    signatures = [signature(value) for value in dict.fromkeys(hashes.tolist())]
    tracemalloc.start()
    links = near_duplicates(signatures, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(links) == len(signatures) - 1
    assert len(set(links)) == len(links)
    assert peak < 250_000_000


def test_groups_of_many_pictures_grow_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """More groups than fit twice into 31 bits, joined by one pair at a time."""
    monkeypatch.setattr(near, "_FLUSH", 1)
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 50_000, dtype=np.uint64)
    copies = hashes[:300] ^ np.uint64(bits(3, 30, 60))
    signatures = [signature(value) for value in np.concatenate([hashes, copies]).tolist()]
    assert near_duplicates(signatures, 3) == [(i, 50_000 + i) for i in range(300)]
