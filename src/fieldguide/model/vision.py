"""The frozen vision encoder: a picture → a grid of multi-scale features and one pooled vector."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fieldguide.errors import SettingsError
from fieldguide.files import fingerprint, sha256_file
from fieldguide.images import DECODER_VERSION
from fieldguide.model.runtime import Runtime, choose
from fieldguide.model.starter import starter_folder
from fieldguide.settings import EmbedSettings

SIZE = 260  # pixels a side the starter's encoder was trained on
NETWORK = "1"  # bump when the network gives other numbers from the same pixels
PREPARATION = "squash-bicubic-torch-1"  # bump when `prepare` makes other pixels
STAGES = (2, 4, 6)  # blocks whose outputs form the grid: timm's stages 2 to 4, at 1/8, 1/16, 1/32


class VisionEncoder:
    """Frozen network, its preprocessing, and the identity of both.

    `key` names what the features depend on (weights, preprocessing, decoder, grid) and not the machine:
    runtimes agree within 1e-3, and the cache keeps those of different runtimes apart.
    """

    def __init__(
        self, runtime: Runtime, *, weights_sha256: str, grid: int, channels: int, pooled_size: int, size: int
    ) -> None:
        self.runtime = runtime
        self.runtime_name = runtime.name
        self.size = size
        self.shrink_to = size
        self.grid_shape = (grid * grid, channels)
        self.pooled_size = pooled_size
        self.key = encoder_key(weights_sha256, grid, size)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """RGB picture of any size → (size, size, 3) uint8.

        The whole picture is kept, squeezed to a square: nothing at the rim is lost. (Linear probe on the
        grid, mean of four picture sets: squeezed 0.871, padded to a square 0.861, cropped 0.859.)
        """
        import torch

        pixels = np.array(image)  # (H, W, 3)
        if image.size == (self.size, self.size):
            return pixels
        # PyTorch's 8-bit resize: the same filter as Pillow's in a third of the time
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last in memory
        small = torch.nn.functional.interpolate(
            planes, (self.size, self.size), mode="bicubic", antialias=True
        )
        return small[0].permute(1, 2, 0).contiguous().numpy()

    def encode(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, size, size, 3) uint8 → grid (N, P, C) float32, row-major patches; pooled (N, D) float32.

        A picture's features do not depend on the others in the batch.
        """
        if not len(pictures):
            return np.zeros((0, *self.grid_shape), np.float32), np.zeros((0, self.pooled_size), np.float32)
        grid, pooled = self.runtime.run(np.ascontiguousarray(pictures))
        return grid, pooled


def encoder_key(weights_sha256: str, grid: int, size: int) -> str:
    """Identity of features: 16 hex digits of a hash over all they depend on."""
    parts = {
        "weights": weights_sha256,
        "network": NETWORK,
        "decoder": DECODER_VERSION,
        "preparation": PREPARATION,
        "size": size,
        "stages": STAGES,
        "grid": grid,
    }
    return fingerprint(parts)[:16]


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def load_encoder(
    settings: EmbedSettings | None = None, announce: Callable[[str], None] = _to_stderr
) -> VisionEncoder:
    """Load the vision encoder in the runtime that is fastest here.

    The first call on a machine measures the runtimes, which takes about half a minute.

    Raises:
        ModelMissing: when its weights have not been fetched.
        SettingsError: when the settings name an unknown encoder.
    """
    settings = settings or EmbedSettings()
    if settings.encoder != "starter":
        raise SettingsError(f"no vision encoder is called {settings.encoder!r}", "known: starter")
    weights = starter_folder("encoder") / "model.safetensors"
    return encoder_from(weights, settings, announce)


def encoder_from(weights: Path, settings: EmbedSettings, announce: Callable[[str], None]) -> VisionEncoder:
    """The encoder with the weights in a safetensors file."""
    from fieldguide.model.network import build_network  # loads torch and timm

    sha256 = sha256_file(weights)
    network = build_network(weights, STAGES, settings.grid, SIZE)
    identity = fingerprint([NETWORK, sha256, STAGES, settings.grid, SIZE])[:16]  # of the network alone
    onnx_file = weights.with_name(f"encoder-{identity}.onnx")
    runtime = choose(network, SIZE, onnx_file, identity, settings.runtime, announce)
    return VisionEncoder(
        runtime,
        weights_sha256=sha256,
        grid=settings.grid,
        channels=network.channels,
        pooled_size=network.pooled_size,
        size=SIZE,
    )
