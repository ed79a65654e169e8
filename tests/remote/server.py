"""A server on this machine that speaks Ollama's and OpenAI's protocol, and misbehaves as it is told to."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

DIGEST = "8dd30f6b0cb19f555f2c7a7ebda861449ea2cc76bf1f44e262931f45fc81d081"


class Asked:
    """One question as it arrived."""

    def __init__(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> None:
        self.path, self.headers, self.body = path, headers, body

    @property
    def user(self) -> dict[str, Any]:
        return next(m for m in self.body["messages"] if m["role"] == "user")

    @property
    def words(self) -> str:
        content = self.user["content"]
        return (
            content if isinstance(content, str) else next(p["text"] for p in content if p["type"] == "text")
        )

    @property
    def picture_bytes(self) -> bytes:
        if "images" in self.user:
            return base64.b64decode(self.user["images"][0], validate=True)
        url = next(p["image_url"]["url"] for p in self.user["content"] if p["type"] == "image_url")
        head, _, data = url.partition(",")
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        return base64.b64decode(data, validate=True)

    @property
    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.picture_bytes)).convert("RGB")

    @property
    def options(self) -> list[str]:
        """The labels as listed in the prompt."""
        return [line[2:] for line in self.words.splitlines() if line.startswith("- ")]

    @property
    def schema(self) -> dict[str, Any] | None:
        if "format" in self.body:
            return self.body["format"]
        return self.body.get("response_format", {}).get("json_schema", {}).get("schema")


class FakeServer:
    """Listens on 127.0.0.1; `behave` may answer in place of the protocol.

    Attributes:
        reply: from a question to the reply's text.
        behave: from a question to (status, headers, body), or None for the protocol; "drop" for a connection
            that breaks. A body that is bytes is sent as it is.
        asked: all questions, refused ones included.
    """

    def __init__(self) -> None:
        self.reply: Callable[[Asked], str] = lambda asked: '{"label": "cat"}'
        self.behave: Callable[[Asked], Any] = lambda asked: None
        self.tokens: Callable[[Asked, str], list[dict[str, Any]] | None] = lambda asked, text: None
        self.models = [{"name": "llava:latest", "model": "llava:latest", "digest": DIGEST, "size": 1}]
        self.key = ""
        self.delay = 0.0
        self.asked: list[Asked] = []
        self.times: list[float] = []
        self.busy, self.most_busy = 0, 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                outer.get(self)

            def do_POST(self) -> None:
                outer.post(self)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        self.http = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def send(self, to: Any, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        to.send_response(status)
        to.send_header("Content-Type", "application/json")
        to.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            to.send_header(name, value)
        to.end_headers()
        to.wfile.write(data)

    def authorised(self, to: Any) -> bool:
        if self.key and to.headers.get("Authorization") != f"Bearer {self.key}":
            given = to.headers.get("Authorization", "")
            message = f"Incorrect API key provided: {given}"
            kind = {"type": "invalid_request_error", "code": "invalid_api_key"}
            self.send(to, 401, {"error": {"message": message, **kind}})
            return False
        return True

    def get(self, to: Any) -> None:
        if not self.authorised(to):
            return
        if to.path == "/api/tags":
            self.send(to, 200, {"models": self.models})
        elif to.path == "/v1/models":
            one = {
                "id": "llava",
                "object": "model",
                "created": time.time(),
                "owned_by": "vllm",
                "root": "hf/x",
            }
            self.send(to, 200, {"object": "list", "data": [one]})
        else:
            self.send(to, 404, b"404 page not found")

    def post(self, to: Any) -> None:
        body = json.loads(to.rfile.read(int(to.headers["Content-Length"])))
        asked = Asked(to.path, dict(to.headers), body)
        with self.lock:
            self.asked.append(asked)
            self.times.append(time.monotonic())
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            if self.authorised(to):
                self.answer(to, asked)
        finally:
            with self.lock:
                self.busy -= 1

    def answer(self, to: Any, asked: Asked) -> None:
        time.sleep(self.delay)
        told = self.behave(asked)
        if told == "drop":
            to.close_connection = True
            to.connection.close()
            return
        if told is not None:
            status, headers, body = told
            self.send(to, status, body, headers)
            return
        text = self.reply(asked)
        self.send(to, 200, self.wrapped(asked, text))

    def wrapped(self, asked: Asked, text: str) -> dict[str, Any]:
        tokens = self.tokens(asked, text) if asked.body.get("logprobs") else None
        if asked.path == "/api/chat":
            return {
                "model": asked.body["model"], "created_at": "2025-11-14T22:17:56.598562Z",
                "message": {"role": "assistant", "content": text}, "done": True, "done_reason": "stop",
                "total_duration": 5, "prompt_eval_count": 600, "eval_count": 10,
                **({"logprobs": tokens} if tokens else {}),
            }  # fmt: skip
        choice = {
            "index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": {"content": tokens, "refusal": None} if tokens else None,
        }  # fmt: skip
        usage = {"prompt_tokens": 600, "completion_tokens": 10, "total_tokens": 610}
        about = {"id": "chatcmpl-1", "object": "chat.completion", "model": "llava"}
        return {**about, "choices": [choice], "usage": usage}


def token(text: str, likely: float, *others: tuple[str, float]) -> dict[str, Any]:
    """A token with its log-probability and alternatives, in the form of both protocols."""
    import math

    def entry(said: str, p: float) -> dict[str, Any]:
        return {"token": said, "logprob": math.log(p), "bytes": list(said.encode())}

    return {**entry(text, likely), "top_logprobs": [entry(text, likely), *(entry(s, p) for s, p in others)]}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
