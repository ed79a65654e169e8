"""What all tests share: no network, pictures made on the spot, real data where it is there."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# A busy machine must not fail a property: no deadlines, here nor in single tests.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

ROOT = Path(__file__).resolve().parents[1]
OPT_IN = ("network", "gpu")
LOOPBACK = ("localhost", "::1", "0.0.0.0", "::", "", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests for network or GPU unless `-m` names them; and starter tests without weights."""
    asked = config.getoption("markexpr", "")
    left_out = [item for item in items if any(item.get_closest_marker(m) and m not in asked for m in OPT_IN)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if os.environ.get("CI", "").lower() == "true":
        return  # there they must run: without weights they fail, and say why
    if any(item.get_closest_marker("starter") for item in items) and (missing := _missing_weights()):
        for item in items:
            if item.get_closest_marker("starter"):
                item.add_marker(pytest.mark.skip(reason=missing))


def _missing_weights() -> str:
    from fieldguide.errors import ModelMissing
    from fieldguide.model.starter import starter_folder

    try:
        starter_folder("language"), starter_folder("encoder")
    except ModelMissing as error:
        return f"needs the starter weights: {error.hint}"
    return ""


class Guard:
    """Lets sockets reach this machine only; `refused` names whatever else was asked for, also where the error
    was swallowed. Other processes that a test starts are not watched.

    It listens to Python's audit events, which nothing else in the process can undo."""

    def __init__(self) -> None:
        self.open = True  # before and after the tests, and for those marked `network`
        self.refused: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, details: tuple[Any, ...]) -> None:
        if self.open or not event.startswith("socket."):
            return
        if event in ("socket.getaddrinfo", "socket.gethostbyname"):
            self.check(details[0])
        elif event in ("socket.connect", "socket.sendto"):
            sock, address = details
            if sock.family in (socket.AF_INET, socket.AF_INET6) and address:
                self.check(address[0])

    def check(self, host: Any) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in LOOPBACK and not str(name).startswith("127."):
            self.refused.append(str(name))
            raise OSError(f"tests may not reach {name}: mark the test `network`")


@pytest.fixture(scope="session", autouse=True)
def guard() -> Iterator[Guard]:
    """Watches the sockets of the whole session: fixtures that outlive a test run under it too."""
    made = Guard()
    made.open = False
    yield made
    made.open = True


@pytest.fixture(autouse=True)
def _network_where_marked(request: pytest.FixtureRequest, guard: Guard) -> Iterator[None]:
    guard.open = request.node.get_closest_marker("network") is not None
    yield
    guard.open = False


@pytest.fixture(scope="session", autouse=True)
def _few_heat_maps() -> Iterator[None]:
    """A report tries heat maps on several pictures, at sixty answers each: here one is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fieldguide.report.deletion.PICTURES", 1)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pictures that lie beside the repository; they are not part of it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real pictures in ../shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def draw() -> Callable[..., Image.Image]:
    """`draw(seed, size=(64, 48))`: a smooth colour picture, another one for every seed."""

    def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)

    return picture


@pytest.fixture
def make_picture(tmp_path: Path, draw: Callable[..., Image.Image]) -> Callable[..., Path]:
    """`make_picture("cat/1.jpg", seed)`: writes a picture below tmp_path, as its extension says; the path."""

    def make(name: str, seed: int = 0, size: tuple[int, int] = (64, 48), **save: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(seed, size).save(path, **save)
        return path

    return make
