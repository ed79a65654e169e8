"""The feature cache: the frozen encoder sees every picture once, whatever it is used for afterwards.

Features are stored under the hash of a picture's bytes, in one folder for each combination of weights,
preprocessing and runtime. A folder holds immutable safetensors shards; each appears whole under its own name
and lists its keys in its header, so there is no index that could disagree, several processes may add shards
at once, and a kill -9 loses at most the shard that was being filled.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from fieldguide.errors import FieldguideError, PictureError
from fieldguide.files import atomic_path, cache_dir, sha256_file
from fieldguide.images import load_picture
from fieldguide.progress import progress_bar
from fieldguide.train.sharing import divide, first_says, speaks

T = TypeVar("T")
R = TypeVar("R")
SHARD_PICTURES = 256  # pictures a shard: about 10 MB with the starter
SHARD_SECONDS = 60.0  # a shard is also closed after this long, so that a kill never costs more
_IN_MEMORY = 64_000_000  # bytes: larger files are hashed and decoded from disk
_STALE_SECONDS = 3600.0  # an unfinished file older than this belongs to no living process


class Encoder(Protocol):
    """What the cache needs of a vision encoder (see `model.vision.VisionEncoder`).

    An encoder that can run in several ways also has `runtime_name`; features of different runtimes are kept
    apart, because they are equal to 1e-3 and not to the last bit.
    """

    key: str
    grid_shape: tuple[int, int]
    pooled_size: int
    shrink_to: int

    def prepare(self, image: Image.Image) -> np.ndarray:
        """RGB picture → the array that `encode` stacks."""

    def encode(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, H, W, 3) → grid (N, P, C) float32, pooled (N, D) float32."""


@dataclass(frozen=True)
class FeatureTable:
    """Features of a list of pictures, in its order, without those that could not be read."""

    keys: tuple[str, ...]  # SHA-256 of each picture's bytes
    grid: np.ndarray  # (N, P, C) float32
    pooled: np.ndarray  # (N, D) float32
    failed: dict[str, str]  # SHA-256, or the path where there is none → reason


def feature_folder(encoder: Encoder, cache: Path | None = None) -> Path:
    """Where the features of this encoder, with this preprocessing and runtime, are kept."""
    runtime = getattr(encoder, "runtime_name", "")
    return (cache or cache_dir() / "features") / (f"{encoder.key}-{runtime}" if runtime else encoder.key)


def embed_pictures(
    pictures: Sequence[tuple[Path, str]],
    encoder: Encoder,
    *,
    cache: Path | None = None,
    batch_size: int = 16,
    announce: Callable[[str], None] = lambda line: None,
    together: bool = False,
) -> FeatureTable:
    """Features of the pictures, computed where the cache does not hold them yet.

    Args:
        pictures: (path, SHA-256 of its bytes or "" when not known); may hold duplicates.
        encoder: the frozen encoder.
        cache: folder of all feature caches; None for the user cache.
        batch_size: pictures handed to the encoder at once.
        announce: told how many pictures are to be computed.
        together: whether all processes that were started together call this, and divide the work.

    A picture that cannot be read, or whose bytes are not those its SHA-256 was taken of, is left out of the
    table and named in `failed`.
    """
    folder = feature_folder(encoder, cache)
    folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    keys = [sha256 or _hash(path, failed) for path, sha256 in pictures]
    store = Store(folder, encoder)
    missing: dict[str, Path] = {}
    for (path, _), key in zip(pictures, keys, strict=True):
        if key and key not in store.places:
            missing.setdefault(key, path)
    if together:
        missing = first_says(missing)
    if missing:
        announce(f"embedding {len(missing)} of {len(set(keys))} pictures")

        def work(mine: Sequence[tuple[str, Path]]) -> dict[str, str]:
            return _compute(dict(mine), encoder, store, batch_size)

        items = tuple(missing.items())
        failed |= divide(items, work) if together else work(items)
        store.refresh()
    present = [key for key in keys if key in store.places]
    grid, pooled = store.gather(present)
    return FeatureTable(tuple(present), grid, pooled, failed)


# --- computing ----------------------------------------------------------------------------------------


def _compute(missing: dict[str, Path], encoder: Encoder, store: Store, batch_size: int) -> dict[str, str]:
    """Store the features of pictures; those that cannot be read, with the reason."""
    from fieldguide.model.runtime import threads

    failed: dict[str, str] = {}
    shard = ShardWriter(store)
    try:
        with (
            ThreadPoolExecutor(threads(), thread_name_prefix="decode") as pool,
            progress_bar("pictures", speaks()) as bar,
        ):
            task = bar.add_task("embedding", total=len(missing))
            # Decoding runs two batches ahead, in the gaps that the encoder's threads leave.
            decoded = _ahead(pool, lambda item: _decode(*item, encoder), missing.items(), 3 * batch_size)
            while batch := list(islice(decoded, batch_size)):
                good = [(key, array) for key, array, _ in batch if array is not None]
                failed.update({key: reason for key, array, reason in batch if array is None})
                if good:
                    grid, pooled = encoder.encode(np.stack([array for _, array in good]))
                    shard.add([key for key, _ in good], grid, pooled)
                bar.advance(task, len(batch))
    finally:
        shard.close()  # also after Ctrl-C: finished pictures are kept
    return failed


def _ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Results of `work` in the order of `items`, at most `window` of them computed ahead."""
    waiting: deque[Future[R]] = deque()
    source = iter(items)
    try:
        waiting.extend(pool.submit(work, item) for item in islice(source, window))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(source, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def _decode(key: str, path: Path, encoder: Encoder) -> tuple[str, np.ndarray | None, str]:
    try:
        source: Path | bytes = path
        if path.stat().st_size > _IN_MEMORY:
            found = sha256_file(path)
        else:
            source = path.read_bytes()
            found = hashlib.sha256(source).hexdigest()
        if found != key:
            return key, None, "changed since it was imported"
        return key, encoder.prepare(load_picture(source, shrink_to=encoder.shrink_to).image), ""
    except PictureError as error:
        return key, None, error.reason
    except OSError as error:
        return key, None, (error.strerror or str(error)).lower()


def _hash(path: Path, failed: dict[str, str]) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        failed[str(path)] = (error.strerror or str(error)).lower()
        return ""


# --- storing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    grid: np.ndarray  # (n, P, C), memory-mapped
    pooled: np.ndarray  # (n, D), memory-mapped


class Store:
    """One folder of shards: which keys it holds, and their features."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self.folder = folder
        self.grid_shape = encoder.grid_shape
        self.pooled_size = encoder.pooled_size
        self.places: dict[str, tuple[_Shard, int]] = {}
        for leftover in folder.glob(".*.tmp"):
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink(missing_ok=True)
        self._seen: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that are there and were not yet, of other processes too."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name not in self._seen:
                self.read(path)

    def read(self, path: Path) -> None:
        """Take in one shard. One that is cut short or of another shape is removed, and so computed again."""
        self._seen.add(path.name)
        try:
            keys, shard = _map_shard(path, self.grid_shape, self.pooled_size)
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            return
        for row, key in enumerate(keys):
            self.places.setdefault(key, (shard, row))

    def gather(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """grid (N, P, C) and pooled (N, D) of the keys, copied out of the shards."""
        grid = np.empty((len(keys), *self.grid_shape), np.float32)
        pooled = np.empty((len(keys), self.pooled_size), np.float32)
        for number, key in enumerate(keys):
            shard, row = self.places[key]
            grid[number], pooled[number] = shard.grid[row], shard.pooled[row]
        return grid, pooled


class ShardWriter:
    """Collects features and writes a shard whenever enough are there."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._start()

    def _start(self) -> None:
        self._keys: list[str] = []
        self._grids: list[np.ndarray] = []
        self._pooled: list[np.ndarray] = []
        self._since = time.monotonic()

    def add(self, keys: Sequence[str], grid: np.ndarray, pooled: np.ndarray) -> None:
        """Add (n, P, C) and (n, D) features.

        Raises:
            FieldguideError: when they are not the finite numbers of the promised shape: never cache those.
        """
        expected = (len(keys), *self.store.grid_shape), (len(keys), self.store.pooled_size)
        if (grid.shape, pooled.shape) != expected:
            raise FieldguideError(f"the encoder gave {grid.shape} and {pooled.shape}, not {expected}")
        if not (np.isfinite(grid).all() and np.isfinite(pooled).all()):
            raise FieldguideError("the encoder gave numbers that are not finite")
        self._keys.extend(keys)
        self._grids.append(grid.astype(np.float32, copy=False))
        self._pooled.append(pooled.astype(np.float32, copy=False))
        if len(self._keys) >= SHARD_PICTURES or time.monotonic() - self._since > SHARD_SECONDS:
            self.close()

    def close(self) -> None:
        """Write what has been collected, if anything."""
        if not self._keys:
            return
        from safetensors.numpy import save_file

        path = self.store.folder / f"shard-{uuid.uuid4().hex}.safetensors"
        tensors = {"grid": np.concatenate(self._grids), "pooled": np.concatenate(self._pooled)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"keys": json.dumps(self._keys)})
        self.store.read(path)
        self._start()


def _map_shard(path: Path, grid_shape: tuple[int, int], pooled_size: int) -> tuple[list[str], _Shard]:
    """Keys and memory-mapped tensors of a safetensors file, without reading the tensors."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise ValueError("cut short")
        header = json.loads(file.read(length))
    keys = json.loads(header["__metadata__"]["keys"])
    arrays = {}
    for name, shape in (("grid", (len(keys), *grid_shape)), ("pooled", (len(keys), pooled_size))):
        entry = header[name]
        if entry["dtype"] != "F32" or tuple(entry["shape"]) != shape:
            raise ValueError(f"{name} is {entry['dtype']} {entry['shape']}")
        # numpy refuses to map beyond the end of a file that was cut short
        arrays[name] = np.memmap(path, np.float32, "r", 8 + length + entry["data_offsets"][0], shape)
    return keys, _Shard(arrays["grid"], arrays["pooled"])
