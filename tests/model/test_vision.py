"""The vision encoder: preprocessing, its key, and that every runtime computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldguide.errors import FieldguideError, ModelMissing, SettingsError
from fieldguide.files import read_json
from fieldguide.model import runtime as runtimes
from fieldguide.model import vision
from fieldguide.model.runtime import TOLERANCE, choose, difference, sample_pictures
from fieldguide.model.vision import VisionEncoder, encoder_key, load_encoder
from fieldguide.settings import EmbedSettings


class Linear:
    """A runtime for tests: colour means times a factor."""

    def __init__(self, factor: float = 1.0, name: str = "torch") -> None:
        self.factor, self.name = factor, name

    def run(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pooled = pictures.mean((1, 2), dtype=np.float64).astype(np.float32) * np.float32(self.factor)
        return pooled[:, None], pooled


def small_encoder() -> VisionEncoder:
    return VisionEncoder(Linear(), weights_sha256="w", grid=1, channels=3, pooled_size=3, size=32)


@pytest.mark.parametrize("size", [(32, 32), (100, 20), (7, 300), (640, 480)])
def test_prepare_gives_a_square_of_bytes(size: tuple[int, int]) -> None:
    array = small_encoder().prepare(Image.new("RGB", size, (10, 200, 30)))
    assert array.shape == (32, 32, 3)
    assert array.dtype == np.uint8
    assert (array == (10, 200, 30)).all()


def test_prepare_keeps_the_whole_picture_upright() -> None:
    image = Image.new("RGB", (200, 100))
    image.paste((255, 0, 0), (0, 0, 100, 50))  # red at the top left
    array = small_encoder().prepare(image)
    assert array[4, 4].tolist() == [255, 0, 0]
    assert array[4, 28].tolist() == array[28, 4].tolist() == [0, 0, 0]


def test_prepare_is_close_to_pillow() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    pillow = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), np.int16)
    assert np.abs(small_encoder().prepare(image) - pillow).max() <= 2


def test_the_key_holds_weights_decoder_and_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 39: whatever changes the numbers changes the key, so that no old feature is used."""
    keys = {
        encoder_key("w", 4, 260),
        encoder_key("v", 4, 260),
        encoder_key("w", 2, 260),
        encoder_key("w", 4, 224),
    }
    for name in ("DECODER_VERSION", "PREPARATION", "NETWORK"):
        with monkeypatch.context() as patch:
            patch.setattr(vision, name, "another")
            keys.add(encoder_key("w", 4, 260))
    assert len(keys) == 7
    assert encoder_key("w", 4, 260) in keys


def test_no_pictures_no_features() -> None:
    grid, pooled = small_encoder().encode(np.zeros((0, 32, 32, 3), np.uint8))
    assert grid.shape == (0, 1, 3)
    assert pooled.shape == (0, 3)


def test_errors_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path))
    with pytest.raises(ModelMissing) as caught:
        load_encoder(EmbedSettings())
    assert caught.value.hint == "fieldguide models get starter"
    with pytest.raises(SettingsError, match="no vision encoder is called 'clip'"):
        load_encoder(EmbedSettings(encoder="clip"))


def builders(**made: Linear) -> Callable[..., dict[str, Callable[[], Linear]]]:
    return lambda *arguments: {name: (lambda runtime=runtime: runtime) for name, runtime in made.items()}


def test_the_fastest_right_runtime_is_chosen_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path))
    fast, wrong = Linear(1 + 1e-7, "onnxruntime"), Linear(1.1, "openvino")
    monkeypatch.setattr(runtimes, "candidates", builders(torch=Linear(), onnxruntime=fast, openvino=wrong))
    rates = {"torch": 10.0, "onnxruntime": 20.0, "openvino": 99.0}
    measured: list[str] = []
    monkeypatch.setattr(
        runtimes, "rate", lambda runtime, size: measured.append(runtime.name) or rates[runtime.name]
    )
    monkeypatch.setattr(runtimes, "_version", lambda name: "1")
    lines: list[str] = []
    assert choose(None, 8, tmp_path / "x", "identity", announce=lines.append) is fast
    assert any("openvino is not used: openvino differs from PyTorch by" in line for line in lines)
    assert read_json(tmp_path / "runtimes.json")
    assert runtimes.measured_rates() == {"torch": 10.0, "onnxruntime": 20.0}
    measured.clear()
    assert choose(None, 8, tmp_path / "x", "identity", announce=lines.append) is fast
    assert not measured, "remembered"
    assert choose(None, 8, tmp_path / "x", "identity", "torch").name == "torch"
    with pytest.raises(FieldguideError, match="differs"):
        choose(None, 8, tmp_path / "x", "identity", "openvino")
    monkeypatch.setattr(runtimes, "candidates", builders(torch=Linear()))
    with pytest.raises(FieldguideError, match="openvino is not installed"):
        choose(None, 8, tmp_path / "x", "identity", "openvino")


def test_a_damaged_memory_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path))
    (tmp_path / "runtimes.json").write_text("{ not json")
    monkeypatch.setattr(runtimes, "candidates", builders(torch=Linear()))
    assert choose(None, 8, tmp_path / "x", "identity", announce=lambda line: None).name == "torch"


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    return load_encoder(EmbedSettings())


@pytest.mark.starter
def test_the_starter_is_right_and_offline(encoder: VisionEncoder) -> None:
    """Case 43: passes with all sockets to the outside blocked."""
    assert encoder.grid_shape == (16, 520)
    assert encoder.pooled_size == 1280
    pictures = sample_pictures(3, encoder.size)
    grid, pooled = encoder.encode(pictures)
    assert grid.shape == (3, 16, 520)
    assert pooled.shape == (3, 1280)
    assert grid.dtype == pooled.dtype == np.float32
    reference = load_encoder(EmbedSettings(runtime="torch"))
    assert reference.runtime_name == "torch"
    assert reference.key == encoder.key
    assert difference(encoder.runtime, reference.runtime, encoder.size) < TOLERANCE


@pytest.mark.starter
def test_features_do_not_depend_on_the_batch(encoder: VisionEncoder) -> None:
    pictures = sample_pictures(5, encoder.size)
    together = encoder.encode(pictures)
    for number in range(5):
        alone = encoder.encode(pictures[number : number + 1])
        assert np.array_equal(together[0][number], alone[0][0])
        assert np.array_equal(together[1][number], alone[1][0])


@pytest.mark.starter
def test_the_grid_is_adaptive_pooling_of_the_stages() -> None:
    import torch

    from fieldguide.model.network import build_network
    from fieldguide.model.starter import starter_folder

    network = build_network(starter_folder("encoder") / "model.safetensors", vision.STAGES, 3, vision.SIZE)
    pictures = torch.from_numpy(sample_pictures(1, vision.SIZE))
    taps, _ = network._taps(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert [tap.shape[1] for tap in taps] == [48, 120, 352]
    expected = torch.cat([torch.nn.functional.adaptive_avg_pool2d(tap, 3).flatten(2) for tap in taps], 1)
    grid, pooled = network(pictures)
    torch.testing.assert_close(grid, expected.transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert grid.shape == (1, 9, 520)
    assert pooled.shape == (1, 1280)
