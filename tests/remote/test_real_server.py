"""A real server, `transformers serve`, with a model of the true class at tiny random size.

What it says is noise, and so off the list: every reply must be kept as it came, and none lost.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from fieldguide.remote.model import open_remote
from fieldguide.remote.settings import RemoteSettings
from fieldguide.testing.hub import save_tiny

NEEDED = ("fastapi", "uvicorn", "openai")
LABELS = ("cat", "dog", "horse")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason='needs a server: pip install "transformers[serving]"',
)


@dataclass(frozen=True)
class RealServer:
    url: str
    model: str
    log: Path

    def answered(self) -> int:
        """Questions that it has answered so far."""
        return len(
            re.findall(r"POST /v1/chat/completions\S* HTTP\S+ 200", self.log.read_text(errors="replace"))
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("served")
    model = save_tiny("llava", folder / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        Path(sys.executable).with_name("transformers"),
        "serve",
        model,
        "--port",
        port,
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = folder / "log.txt"
    with open(log, "w") as file:
        process = subprocess.Popen([str(part) for part in command], stdout=file, stderr=file, env=environment)
    try:
        url = f"http://localhost:{port}"
        for _ in range(600):
            if process.poll() is not None:
                break
            try:
                httpx.get(f"{url}/health", timeout=1)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        assert process.poll() is None, log.read_text(errors="replace")
        yield RealServer(f"{url}/v1", str(model), log)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def photos(make_picture: Callable[..., Path]) -> list[Path]:
    return [make_picture(f"photos/{number}.png", number) for number in range(16)]


def test_replies_are_kept_and_asked_for_once(served: RealServer, photos: list[Path]) -> None:
    settings = RemoteSettings(base_url=served.url, max_tokens=6, concurrency=3)
    before = served.answered()
    answers = open_remote(f"openai:{served.model}", LABELS, settings, announce=print).classify(photos[:6])
    assert [answer.image for answer in answers] == [str(photo) for photo in photos[:6]]
    assert [answer.error for answer in answers] == [""] * 6
    assert all(answer.off_list or answer.label in LABELS for answer in answers)
    assert all(answer.text for answer in answers if answer.off_list)
    assert served.answered() - before == 6
    again = open_remote(f"openai:{served.model}", LABELS, settings, announce=print).classify(photos[:6])
    assert again == answers
    assert served.answered() - before == 6, "what was answered must come from the cache"


def test_a_killed_run_resumes_with_no_row_lost_or_repeated(
    served: RealServer, photos: list[Path], tmp_path: Path
) -> None:
    settings = tmp_path / "asking.toml"
    settings.write_text(f'[remote]\nbase_url = "{served.url}"\nmax_tokens = 48\nconcurrency = 2\n')
    out = tmp_path / "names.csv"
    command = [
        sys.executable, "-m", "fieldguide", "classify", "--model", f"openai:{served.model}", "--labels",
        ",".join(LABELS), "--asking", settings, photos[0].parent, "-o", out, "--batch-size", "2",
    ]  # fmt: skip
    before = served.answered()
    running = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    for _ in range(1200):
        if served.answered() - before >= 3 or running.poll() is not None:
            break
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not out.exists()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert Counter(Path(row["image"]).name for row in rows) == {photo.name: 1 for photo in photos}
    assert all(row["label"] or row["reply"] for row in rows)
    # What was on its way when the process was killed is asked again, and nothing else.
    assert len(photos) <= served.answered() - before <= len(photos) + 2
