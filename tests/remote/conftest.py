"""What the tests of models behind servers share: a server, a cache of their own, and no waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server import FakeServer

from fieldguide.remote.model import RemoteModel, open_remote
from fieldguide.remote.settings import RemoteSettings

LABELS = ("cat", "catfish", "dog", "snow leopard", "leopard")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    made = FakeServer()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def slept() -> list[float]:
    """Every pause that was asked for; none is really made."""
    return []


@pytest.fixture
def remote(server: FakeServer, slept: list[float]) -> Iterator[Callable[..., RemoteModel]]:
    """`remote(kind="ollama", labels=LABELS, said=list, cache=True, **settings)`: a model at the server."""
    opened: list[RemoteModel] = []

    def wait(stop: threading.Event, seconds: float) -> bool:
        slept.append(seconds)
        return stop.is_set()

    def make(
        kind: str = "ollama", labels: Any = LABELS, said: Any = None, cache: bool = True, notes: Any = None,
        **settings: Any,
    ) -> RemoteModel:  # fmt: skip
        settings.setdefault("base_url", server.url)
        model = open_remote(
            f"{kind}:llava", labels, RemoteSettings(**settings), notes, cache=cache, wait=wait,
            announce=(said.append if said is not None else lambda line: None),
        )  # fmt: skip
        opened.append(model)
        return model

    yield make
    for model in opened:
        model.close()


@pytest.fixture
def photos(make_picture: Callable[..., Path]) -> list[Path]:
    return [make_picture(f"photos/{number}.png", number) for number in range(6)]
