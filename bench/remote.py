"""Does the client keep a server as busy as it may be?

    python bench/remote.py [--delay 0.05] [--pictures 160] [--rounds 3]

A server that answers after a fixed time, whoever asks, is asked about pictures in two ways in turn: by bare
requests of prepared bodies over as many connections, which is the floor, and by the client: pictures decoded,
made smaller and encoded, questions and schemas made, replies read, checked and cached.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from fieldguide.remote.model import open_remote
from fieldguide.remote.settings import RemoteSettings

LABELS = ["cat", "dog", "horse", "cow", "sheep", "hen", "butterfly"]
RESULTS = Path(__file__).parent / "results" / "remote.json"


def serve(delay: float, port: multiprocessing.Queue[int]) -> None:
    """Answers every question with a label after `delay` seconds; runs until it is ended."""
    reply = {"choices": [{"message": {"role": "assistant", "content": "dog"}, "finish_reason": "stop"}]}
    body = json.dumps({**reply, "usage": {"prompt_tokens": 100, "completion_tokens": 2}}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.send(json.dumps({"data": [{"id": "m"}]}).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(delay)
            self.send(body)

        def send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None: ...

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    port.put(server.server_port)
    server.serve_forever()


def bare(url: str, files: list[Path], concurrency: int) -> float:
    """Pictures a second by nothing but requests; the bodies are of about the size that the client sends."""
    bodies = [
        json.dumps({"picture": file.read_bytes().hex()[: file.stat().st_size * 4 // 3]}).encode()
        for file in files
    ]
    limits = httpx.Limits(max_connections=concurrency)
    with httpx.Client(limits=limits, timeout=60) as client, ThreadPoolExecutor(concurrency) as pool:
        began = time.perf_counter()
        list(pool.map(lambda body: client.post(f"{url}/chat/completions", content=body).json(), bodies))
        return len(files) / (time.perf_counter() - began)


def ours(url: str, files: list[Path], concurrency: int) -> float:
    """Pictures a second by the client, its cache empty."""
    model = open_remote(
        "openai:m", LABELS, RemoteSettings(base_url=url, concurrency=concurrency), announce=lambda line: None
    )
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FIELDGUIDE_CACHE"] = cache
        began = time.perf_counter()
        answers = model.classify(files)
        seconds = time.perf_counter() - began
    assert all(answer.label == "dog" for answer in answers)
    return len(files) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--pictures", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=400)
    arguments = parser.parse_args()
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    process = multiprocessing.Process(target=serve, args=(arguments.delay, port), daemon=True)
    process.start()
    url, results = f"http://127.0.0.1:{port.get()}/v1", {}
    with tempfile.TemporaryDirectory() as temporary:
        files = []
        for number in range(arguments.pictures):
            coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            files.append(Path(temporary) / f"{number}.jpg")
            Image.fromarray(coarse).resize((arguments.side, arguments.side * 3 // 4)).save(files[-1])
        for concurrency in (4, 16):
            pairs = [
                (bare(url, files, concurrency), ours(url, files, concurrency))
                for _ in range(arguments.rounds)
            ]
            floor, client = np.median(pairs, axis=0)
            ratio = float(np.median([ours_ / bare_ for bare_, ours_ in pairs]))
            most = concurrency / arguments.delay
            results[concurrency] = {"most": most, "bare": floor, "client": client, "client / bare": ratio}
            print(
                f"{concurrency} at a time: at most {most:.0f} pictures a second, bare requests {floor:.1f}, "
                f"client {client:.1f}: {ratio:.3f} of bare"
            )
    process.terminate()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
