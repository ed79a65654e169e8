"""Which perceptual hashes lie close together: exact, in bounded memory, for millions of pictures.

A picture's signature is 80 hex digits: its 64-bit pHash (16 digits, what other tools call "phash"), then the
256-bit pHash of the same picture (64 digits). The short one finds candidates, the long one confirms them:
on drawings, handwriting and stars the short hash alone calls many different pictures equal. Pictures without
a signature ("": blank ones) resemble nothing. What it misses: mirrored, turned or clearly cropped copies, and
edited copies of pictures without any texture, whose long hash is mostly noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

SIGNATURE_DIGITS = 80
# For 8 of 64 bits, 34 of 256. Measured on handwriting, photographs, drawings and galaxies: other compression,
# size, brightness or contrast changes at most 22 of the 256 (38 for tiny pictures), a watermark 20 to 40; the
# closest pictures of different things differ in 36.
_LONG_BITS = 34 / 8
_TILE = 1024  # rows and columns compared at once
_FLUSH = 200_000  # pairs gathered before their groups are joined


def near_duplicate_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """All pairs of 64-bit hashes that differ in at most `distance` bits.

    Equal hashes are linked to the first of them only, and only that first one is paired with others; so the
    pairs say all about nearness without growing with the square of the copies.

    Args:
        hashes: (N,) uint64.
        distance: 0 to 63 bits.

    Returns:
        (P, 2) int64, each row i < j, rows sorted.
    """
    hashes = np.asarray(hashes, dtype=np.uint64)
    values, first, copy_of = np.unique(hashes, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[copy_of] != np.arange(len(hashes)))
    found = [np.stack([first[copy_of[copies]], copies], 1)]
    for left, right in _close(values, distance):
        found.append(np.sort(np.stack([first[left], first[right]], 1), axis=1))
    pairs = np.concatenate(found).astype(np.int64)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def near_duplicates(signatures: Sequence[str], distance: int) -> list[tuple[int, int]]:
    """Link pictures that look the same; linked directly or through others, they belong to one group.

    Enough pairs to connect every group, not all of them: at most one for each picture.

    Args:
        signatures: one for each picture, "" for none.
        distance: bits of the 64-bit hash that may differ; the 256-bit hash must agree as well in proportion.

    Returns:
        Index pairs i < j, sorted.
    """
    where, short, long = _parse(signatures)
    order = np.lexsort((*long.T, short))
    same = (short[order][1:] == short[order][:-1]) & (long[order][1:] == long[order][:-1]).all(1)
    run = np.concatenate([[0], np.cumsum(~same)]).astype(np.int64) if len(order) else order
    # lexsort is stable: the first of each run of equal signatures is the first picture that has it
    kept = order[np.flatnonzero(np.concatenate([[True], ~same]))] if len(order) else order
    links = [(int(kept[r]), int(i)) for r, i in zip(run, order, strict=True) if kept[r] != i]
    forest = _Forest(len(kept))
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    limit = _long_limit(distance)
    for left, right in _close(short[kept], distance, settled=forest.settled):
        apart = forest.group[left] != forest.group[right]
        left, right = left[apart], right[apart]
        alike = _differing(long[kept[left]], long[kept[right]]) <= limit
        waiting.append((left[alike], right[alike]))
        if sum(len(part) for part, _ in waiting) >= _FLUSH:
            forest.add(waiting)
            waiting = []
    forest.add(waiting)
    links += [(int(kept[a]), int(kept[b])) for a, b in forest.links]
    return sorted((int(min(where[a], where[b])), int(max(where[a], where[b]))) for a, b in links)


def near_matches(new: Sequence[str], known: Sequence[str], distance: int) -> list[tuple[int, int]]:
    """The first known picture that each new one looks like: pairs (index in new, index in known)."""
    where_new, short_new, long_new = _parse(new)
    where_known, short_known, long_known = _parse(known)
    if not len(short_new) or not len(short_known):
        return []
    values, first = np.unique(np.concatenate([short_new, short_known]), return_inverse=True)
    holders: list[list[list[int]]] = [[[], []] for _ in values]
    for index, value in enumerate(first):
        old = index >= len(short_new)
        holders[value][old].append(index - len(short_new) if old else index)
    has_new, has_known = (np.array([bool(holder[old]) for holder in holders]) for old in (0, 1))
    best: dict[int, int] = {}

    def compare(ours: list[int], theirs: list[int]) -> None:
        for i in ours:
            alike = np.flatnonzero(_differing(long_new[i][None], long_known[theirs]) <= _long_limit(distance))
            for k in alike[:1]:
                j = int(where_known[theirs[k]])
                best[int(where_new[i])] = min(j, best.get(int(where_new[i]), j))

    for value in np.flatnonzero(has_new & has_known):
        compare(*holders[value])
    for left, right in _close(values, distance):
        across = (has_new[left] & has_known[right]) | (has_known[left] & has_new[right])
        for a, b in zip(left[across], right[across], strict=True):
            compare(holders[a][0], holders[b][1])
            compare(holders[b][0], holders[a][1])
    return sorted(best.items())


def _long_limit(distance: int) -> int:
    return int(distance * _LONG_BITS)


def _differing(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Bits in which rows of 4 × uint64 differ."""
    return np.bitwise_count(left ^ right).sum(axis=1)


def _parse(signatures: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indices (M,) of those that are there, short hashes (M,) uint64, long hashes (M, 4) uint64)."""
    there = [index for index, text in enumerate(signatures) if text]
    data = b"".join(bytes.fromhex(_checked(signatures[index])) for index in there)
    words = np.frombuffer(data, dtype=">u8").astype(np.uint64).reshape(-1, SIGNATURE_DIGITS // 16)
    return np.array(there, dtype=np.int64), words[:, 0], words[:, 1:]


def _checked(text: str) -> str:
    if len(text) != SIGNATURE_DIGITS:
        raise ValueError(f"a perceptual signature has {SIGNATURE_DIGITS} hex digits, not {len(text)}")
    return text


# ---- the search ----


def _close(
    hashes: np.ndarray, distance: int, settled: Callable[[np.ndarray], bool] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks (left, right) of index pairs within `distance` bits, every pair exactly once.

    Multi-index search (Norouzi, Punjani, Fleet: Fast Search in Hamming Space with Multi-Index Hashing, 2012)
    in the form of combinations: cut the 64 bits into distance + r bands; hashes within `distance` agree
    in at least r of them, so it suffices to compare hashes that agree in some r bands. `settled` may say that
    nothing more need be known about the hashes of one bucket.
    """
    if len(hashes) < 2:
        return
    needed = _bands_that_agree(len(hashes), distance)
    edges = np.linspace(0, 64, distance + needed + 1).round().astype(int)
    masks = [
        np.uint64(((1 << int(end)) - 1) ^ ((1 << int(start)) - 1)) for start, end in itertools.pairwise(edges)
    ]
    for chosen in itertools.combinations(range(len(masks)), needed):
        key_mask = np.bitwise_or.reduce([masks[band] for band in chosen])
        # A pair also turns up under other bands in which it agrees: take it under the first ones only.
        earlier = [masks[band] for band in range(chosen[-1]) if band not in chosen]
        for left, right in _within_buckets(hashes, key_mask, distance, settled):
            differing = hashes[left] ^ hashes[right]
            new = np.ones(len(left), bool)
            for mask in earlier:
                new &= (differing & mask) != 0
            if new.any():
                yield left[new], right[new]


def _bands_that_agree(count: int, distance: int) -> int:
    """The r that makes `_close` cheapest: many bands make small buckets but many sorts."""

    def cost(r: int) -> float:  # sorting one hash takes about as long as comparing ten pairs
        bits = 64 * r / (distance + r)
        return math.comb(distance + r, r) * (count * 10 + count**2 / 2 ** (bits + 1))

    return min(range(1, max(2, min(7, 65 - distance))), key=cost)


def _within_buckets(
    hashes: np.ndarray, key_mask: np.uint64, distance: int, settled: Callable[[np.ndarray], bool] | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs within `distance` among hashes that are equal under `key_mask`."""
    keys = hashes & key_mask
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    ends = np.append(starts[1:], len(keys))
    small = ends - starts <= 24
    # Small buckets all at once: compare each hash with the 1st, 2nd, 3rd … after it in its bucket.
    active = np.concatenate([[], *_ranges(starts[small], ends[small])]).astype(np.int64)
    last = np.repeat(ends[small], ends[small] - starts[small])
    for step in range(1, 24):
        keep = active + step < last
        active, last = active[keep], last[keep]
        if not len(active):
            break
        near = np.bitwise_count(ordered[active] ^ ordered[active + step]) <= distance
        if near.any():
            yield order[active[near]], order[active[near] + step]
    for start, end in zip(starts[~small], ends[~small], strict=True):
        yield from _within_one(ordered[start:end], order[start:end], distance, settled)


def _ranges(starts: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """All positions of the ranges, ascending, as a list of at most one array."""
    lengths = ends - starts
    if not len(lengths):
        return []
    offsets = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return [offsets + np.arange(lengths.sum())]


def _within_one(
    bucket: np.ndarray, places: np.ndarray, distance: int, settled: Callable[[np.ndarray], bool] | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs within `distance` in one large bucket, a tile of the triangle at a time."""
    if settled and settled(places):
        return
    for top in range(0, len(bucket), _TILE):
        rows = bucket[top : top + _TILE, None]
        for side in range(top, len(bucket), _TILE):
            if settled and settled(np.append(places[top : top + _TILE], places[side : side + _TILE])):
                continue
            near = np.bitwise_count(rows ^ bucket[None, side : side + _TILE]) <= distance
            if side == top:
                near = np.triu(near, 1)
            left, right = np.nonzero(near)
            if len(left):
                yield places[left + top], places[right + side]


class _Forest:
    """Groups that grow together as pairs come in, and the pairs that joined them."""

    def __init__(self, size: int) -> None:
        self.group = np.arange(size)  # the group of each item
        self.links: list[tuple[int, int]] = []

    def settled(self, items: np.ndarray) -> bool:
        groups = self.group[items]
        return bool((groups == groups[0]).all())

    def add(self, blocks: list[tuple[np.ndarray, np.ndarray]]) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

        if not blocks:
            return
        left, right = (np.concatenate([block[side] for block in blocks]) for side in (0, 1))
        ends = np.sort(np.stack([self.group[left], self.group[right]], 1), axis=1)
        apart = np.flatnonzero(ends[:, 0] != ends[:, 1])
        size = len(self.group)
        codes, first = np.unique(ends[apart, 0] * size + ends[apart, 1], return_index=True)
        ends = np.stack([codes // size, codes % size], 1)
        if not len(ends):
            return
        # The weight is the number of the pair, so that the tree says which pairs it is made of.
        graph = coo_array((apart[first] + 1.0, (ends[:, 0], ends[:, 1])), shape=(size, size)).tocsr()
        chosen = minimum_spanning_tree(graph).data.astype(np.int64) - 1
        self.links += [(int(a), int(b)) for a, b in zip(left[chosen], right[chosen], strict=True)]
        joined = connected_components(graph, directed=False)[1]
        self.group = joined.astype(np.int64)[self.group]  # scipy's int32 would overflow in the codes above
