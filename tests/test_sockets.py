"""The guard of `conftest.py` that keeps tests off the network works."""

from __future__ import annotations

import socket
from typing import Any

import pytest


@pytest.fixture(scope="module")
def asked() -> OSError:
    """What a fixture that is older than its tests meets when it asks for a host."""
    with pytest.raises(OSError, match="may not reach") as caught:
        socket.getaddrinfo("huggingface.co", 443)
    return caught.value


def test_sockets_reach_this_machine_only() -> None:
    with pytest.raises(OSError, match="may not reach example"):
        socket.getaddrinfo("example.org", 443)
    with pytest.raises(OSError, match="may not reach example"):
        socket.create_connection(("example.org", 443), timeout=1)
    for family, host in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family) as outside:
            outside.settimeout(1)
            for connect in (outside.connect, outside.connect_ex):
                with pytest.raises(OSError, match="may not reach"):
                    connect((host, 443))


def test_loopback_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as client:
            client.sendall(b"hello")
            accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(5) == b"hello"


def test_fixtures_are_watched_too_and_what_was_refused_is_known(asked: OSError, guard: Any) -> None:
    assert "huggingface.co" in str(asked)
    assert "huggingface.co" in guard.refused
    with pytest.raises(OSError, match="may not reach"):
        socket.getaddrinfo(b"example.org", 443)
    assert guard.refused[-1] == "example.org"


def test_the_guard_holds_when_sockets_are_patched(guard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins of pytest put back the methods of sockets after every test."""
    monkeypatch.setattr(socket.socket, "connect", socket.SocketType.connect, raising=False)
    with socket.socket() as outside, pytest.raises(OSError, match="may not reach 192"):
        outside.connect(("192.0.2.1", 443))
    with socket.socket(type=socket.SOCK_DGRAM) as outside, pytest.raises(OSError, match="may not reach 192"):
        outside.sendto(b"hello", ("192.0.2.1", 53))
    assert guard.refused[-2:] == ["192.0.2.1", "192.0.2.1"]
