"""Settings of a model behind a server: what an Ollama Modelfile holds, in TOML, and how to ask.

model = "ollama:llava"
system = "You are an expert on shore birds."
temperature = 0.0

[synonyms]
"common tern" = ["sea swallow"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fieldguide.errors import SettingsError
from fieldguide.settings import fill, read_toml

_CHOICES = {"structured": ("auto", "schema", "off"), "picture_format": ("auto", "png", "jpeg")}
_AT_LEAST = {
    "max_tokens": 1, "concurrency": 1, "top_logprobs": 0, "requests_per_minute": 0, "retries": 0,
    "picture_side": 0, "price_in": 0, "price_out": 0, "temperature": 0,
}  # fmt: skip


@dataclass(frozen=True)
class RemoteSettings:
    """How a model behind a server is asked."""

    model: str = ""  # ollama:NAME or openai:NAME; used where `open_remote` is given no other
    base_url: str = ""  # "" = $OLLAMA_HOST or http://localhost:11434; https://api.openai.com/v1
    api_key_env: str = ""  # of the variable with the key; "" = OPENAI_API_KEY for api.openai.com, else no key
    system: str = "You name what pictures show. You answer with what you can see and do not guess."
    question: str = "What is in this picture?"
    why: str = "How can you tell?"  # what `ask` asks about a label that has notes
    temperature: float = 0.0
    seed: int = 0  # of sampling, where the server takes one, and of the order of the labels
    max_tokens: int = 200  # of one reply
    structured: str = "auto"  # auto: a JSON schema if the server takes it; schema: or fail; off: free replies
    top_logprobs: int = 20  # alternatives asked for at each token; 0 = ask for no log-probabilities
    picture_side: int = 1024  # pixels of the longest side sent; 0 = as it is
    picture_format: str = "auto"  # png, jpeg; auto: PNG up to half a megapixel, JPEG above
    concurrency: int = 4  # requests at a time
    requests_per_minute: float = 0.0  # retries included; 0 = no limit
    timeout: float = 120.0  # seconds without a byte from the server
    retries: int = 5  # of one request, after the first try
    price_in: float = 0.0  # per million tokens, in whatever currency; 0 = free or unknown
    price_out: float = 0.0
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)  # {label: other names of it}

    def faults(self) -> list[str]:
        found = []
        for name, least in _AT_LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                found.append(f"{name}={getattr(self, name)} must be at least {least}")
        if self.top_logprobs > 20:
            found.append(f"top_logprobs={self.top_logprobs} must be at most 20, which servers allow")
        if not 0 < self.timeout < math.inf:
            found.append(f"timeout={self.timeout} must be above 0 seconds")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                found.append(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        if not self.question.strip():
            found.append("question must not be empty")
        for label, names in self.synonyms.items():
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                found.append(f"synonyms of {label!r} must be a list of texts")
        return found + self._address_faults()

    def _address_faults(self) -> list[str]:
        """Never quotes what may hold a secret: these lines are shown and logged."""
        found = []
        if self.base_url:
            try:
                parts = urlsplit(self.base_url)
                good = parts.scheme in ("http", "https") and bool(parts.hostname)
                secret = parts.username is not None or parts.password is not None or bool(parts.query)
            except ValueError:
                good, secret = False, False
            if secret:
                found.append(
                    "base_url must hold no password or query: put the key into api_key_env's variable"
                )
            elif not good:
                found.append("base_url must begin with http:// or https:// and name a host")
        name = self.api_key_env
        if name and (not name.replace("_", "a").isalnum() or name.startswith("sk-") or len(name) > 64):
            found.append("api_key_env must be the NAME of an environment variable, never the key itself")
        return found


def load_remote_settings(path: Path | str, overrides: Mapping[str, Any] | None = None) -> RemoteSettings:
    """Read a TOML file of settings and lay single values over it; a value of None is "not given".

    Raises:
        SettingsError: when the file is missing or not TOML; else listing every fault in it.
    """
    values = read_toml(path, "settings", "use RemoteSettings()")
    values.update({name: value for name, value in (overrides or {}).items() if value is not None})
    settings, faults = fill(RemoteSettings(), values)
    if faults:
        raise SettingsError(f"{path}: " + "; ".join(faults), "see docs/remote.md for every setting")
    checked: RemoteSettings = settings
    return checked


def check_settings(settings: RemoteSettings) -> None:
    """Refuse impossible settings.

    Raises:
        SettingsError: listing every fault.
    """
    if faults := settings.faults():
        raise SettingsError("; ".join(faults), "see docs/remote.md for every setting")
