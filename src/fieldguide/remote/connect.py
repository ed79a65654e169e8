"""From a model's name and address to its server and its key."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from fieldguide.errors import FieldguideError, SettingsError
from fieldguide.remote.sending import Sender
from fieldguide.remote.servers import Ollama, OpenAI, Server
from fieldguide.remote.settings import RemoteSettings

OPENAI_URL = "https://api.openai.com/v1"


def connect(spec: str, settings: RemoteSettings, **sending: Any) -> Server:
    """The server that a model's name stands for; nothing is sent yet.

    Args:
        spec: ollama:NAME or openai:NAME.
        sending: clock, wait and chance of the `Sender`, for tests.

    Raises:
        SettingsError: when the name has another form.
        FieldguideError: when the key is not there.
    """
    kind, colon, model = spec.strip().partition(":")
    if kind not in ("ollama", "openai") or not colon or not model.strip():
        raise SettingsError(
            f"{spec!r}: a model behind a server is called ollama:NAME or openai:NAME",
            "for example ollama:llava, or openai:gpt-4o-mini",
        )
    model = model.strip()
    if kind == "ollama":
        url = (settings.base_url or _ollama_host()).rstrip("/").removesuffix("/v1").rstrip("/")
        return Ollama(Sender(url, settings, _key(settings, url), **sending), model, settings)
    url = (settings.base_url or OPENAI_URL).rstrip("/")
    if urlsplit(url).path in ("", "/"):
        url += "/v1"
    return OpenAI(Sender(url, settings, _key(settings, url), **sending), model, settings)


def _ollama_host() -> str:
    """`$OLLAMA_HOST` as Ollama's own client reads it: host, host:port or URL."""
    host = os.environ.get("OLLAMA_HOST", "").strip()
    if not host:
        return "http://localhost:11434"
    if "://" not in host:
        host = f"http://{host}"
    parts = urlsplit(host)
    name = "127.0.0.1" if parts.hostname in (None, "0.0.0.0", "::") else str(parts.hostname)
    port = parts.port or {"http": 11434, "https": 443}.get(parts.scheme, 11434)
    return f"{parts.scheme}://{f'[{name}]' if ':' in name else name}:{port}{parts.path.rstrip('/')}"


def _key(settings: RemoteSettings, url: str) -> str:
    """The key for a server: of the variable that is named, and OpenAI's own for nobody but OpenAI."""
    name = settings.api_key_env
    if not name and urlsplit(url).hostname == "api.openai.com":
        name = "OPENAI_API_KEY"
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise FieldguideError(f"{url}: the variable {name} with the key is not set", f"export {name}=…")
    if not key.isascii() or not key.isprintable():
        raise FieldguideError(
            f"{url}: the variable {name} holds no key, but other characters", f"export {name}=…"
        )
    return key
