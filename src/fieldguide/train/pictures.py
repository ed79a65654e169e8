"""Pictures of training examples, read when their batch comes; a frozen tower sees each of them once.

The tower's output for a picture lies in one safetensors file, under the hash of the picture's bytes, in a
folder named after all it depends on: weights, layers that are read, the processor's settings, the decoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fieldguide.errors import PictureError
from fieldguide.files import atomic_path, cache_dir, fingerprint, sha256_file
from fieldguide.images import DECODER_VERSION, load_picture
from fieldguide.model.hub import HubModel, HubPictures, Prepared, Shown
from fieldguide.model.towers import layers_read, tower_states
from fieldguide.progress import progress_bar
from fieldguide.train.sharing import divide, speaks

IN_MEMORY = 64_000_000  # bytes: larger files are hashed and decoded from disk
PIXELS = ("pixel_values", "pixel_attention_mask")  # what only the tower reads


class TowerStore:
    """Stored outputs of one frozen tower.

    Args:
        model: whose tower it is; its family must allow it (`Family.caches`).
        weights: identity of the model's weights.
        cache: folder of all feature caches; None for the user cache.
    """

    def __init__(self, model: HubModel, weights: str, cache: Path | None = None) -> None:
        self.model = model
        network = model.bare
        parts = {
            "weights": weights,
            "layers": layers_read(network.config),
            "processor": model.processor.image_processor.to_dict(),
            "decoder": DECODER_VERSION,
            "type": str(network.dtype),
        }
        self.key = fingerprint(_plain(parts))[:16]
        self.folder = (cache or cache_dir() / "features") / f"tower-{self.key}"
        # An encoder of timm does not say; LLaVA reads the number of tiles, not their size.
        self._patch = int(getattr(network.config.vision_config, "patch_size", 1))

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Shown | None:
        """What is stored of a picture; None when it is not there, or damaged."""
        path = self.path(key)
        try:
            stored = load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            path.unlink(missing_ok=True)
            return None
        tokens = tuple(stored.pop("tokens").tolist())
        states, shape = stored.pop("states"), stored.pop("shape").tolist()
        # Only the number of tiles is read of the pixels, but they must not look like padding, which is zero.
        pixels = torch.ones(()).expand(*shape[:-2], self._patch, self._patch)
        return Shown(tokens, {"pixel_values": pixels, **stored}, states)

    def write(self, key: str, shown: Shown) -> Shown:
        """Run the tower on a picture, store its output, and return what `read` would."""
        states = tower_states(self.model.bare, self.model.family, self.model.joined([shown]))
        kept = {name: value.contiguous() for name, value in shown.inputs.items() if name not in PIXELS}
        stored: dict[str, Tensor] = {
            "tokens": torch.tensor(shown.tokens, dtype=torch.int32),
            "states": states.cpu().contiguous(),
            "shape": torch.tensor(shown.inputs["pixel_values"].shape),
            **kept,
        }
        with atomic_path(self.path(key)) as temporary:
            save_file(stored, temporary)
        found = self.read(key)
        return found if found is not None else replace(shown, states=states)


def _plain(value: object) -> object:
    """Settings as JSON can hold them."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _bytes_of(path: Path, key: str) -> bytes | Path:
    """A picture file whose bytes are those its key was taken of.

    Raises:
        PictureError: when they are others: what is stored of them would be taken for what was imported.
    """
    try:
        if path.stat().st_size > IN_MEMORY:
            found, source = sha256_file(path), path
        else:
            source = path.read_bytes()  # type: ignore[assignment]
            found = hashlib.sha256(source).hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise PictureError(str(path), (error.strerror or str(error)).lower()) from error
    if key and found != key:
        raise PictureError(str(path), "changed since it was imported")
    return source


@dataclass(frozen=True)
class LazyPictures:
    """The pictures of many examples; only those that are asked for are in memory.

    Attributes:
        paths, keys: of each example's pictures: files, and the SHA-256 of their bytes.
        store: of the tower's outputs; None where the tower runs each time.
    """

    model: HubModel
    paths: tuple[tuple[Path, ...], ...]
    keys: tuple[tuple[str, ...], ...]
    store: TowerStore | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, chosen: Tensor | slice) -> HubPictures:
        """Some examples' pictures, read now."""
        numbers = range(len(self))[chosen] if isinstance(chosen, slice) else chosen.tolist()
        return HubPictures(tuple(self.prepare(number) for number in numbers))

    def to(self, device: torch.device) -> LazyPictures:
        """The same: a batch goes to the device when it is read."""
        return self

    def prepare(self, number: int) -> Prepared:
        """One example's pictures.

        Raises:
            PictureError: when one cannot be read.
        """
        pairs = zip(self.paths[number], self.keys[number], strict=True)
        return self.model.side_by_side([self._show(path, key) for path, key in pairs])

    def _show(self, path: Path, key: str) -> Shown:
        found = self.store.read(key) if self.store is not None else None
        if found is not None:
            return found
        shown = self.model.show(load_picture(_bytes_of(path, key)).image)
        return self.store.write(key, shown) if self.store is not None else shown

    def look_through(
        self, announce: Callable[[str], None], description: str, together: bool = False
    ) -> tuple[dict[int, int], dict[int, str]]:
        """See every picture once, filling the store.

        Args:
            together: whether all processes that were started together call this, and divide the work.

        Returns:
            prompt positions of each example's pictures; and for examples that cannot be read, the reason.
        """

        def work(numbers: Sequence[int]) -> dict[int, int | tuple[str, str]]:
            found: dict[int, int | tuple[str, str]] = {}
            with progress_bar("examples", speaks()) as bar:
                task = bar.add_task(description, total=len(numbers))
                for number in numbers:
                    try:
                        found[number] = len(self.prepare(number).tokens)
                    except PictureError as error:
                        found[number] = (error.reason, str(error))
                    bar.advance(task)
            return found

        every = range(len(self))
        found = divide(every, work) if together else work(every)
        visual: dict[int, int] = {}
        failed: dict[int, str] = {}
        for number in every:
            seen = found[number]
            if isinstance(seen, int):
                visual[number] = seen
            else:
                failed[number] = seen[0]
                announce(f"left out: {seen[1]}")
        return visual, failed

    def only(self, numbers: Sequence[int]) -> LazyPictures:
        """Some of the examples."""
        return replace(
            self, paths=tuple(self.paths[i] for i in numbers), keys=tuple(self.keys[i] for i in numbers)
        )
