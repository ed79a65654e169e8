"""Two protocols: Ollama's own, and OpenAI's chat completions, which vLLM and llama.cpp's server speak too."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fieldguide.errors import FieldguideError, ModelMissing
from fieldguide.remote.exchange import Offer, Question, Reply
from fieldguide.remote.logprobs import Token
from fieldguide.remote.prompts import answer_schema
from fieldguide.remote.sending import Refused, Sender, Unreachable
from fieldguide.remote.settings import RemoteSettings


class Server(Protocol):
    """A protocol, with the model it is spoken to about."""

    sender: Sender
    model: str
    path: str  # questions go there

    def identity(self) -> dict[str, Any]:
        """What tells this model from others that may have its name later.

        Raises:
            FieldguideError: when nothing answers, the key is refused, or the model is not there.
        """
        ...

    def body(self, question: Question, picture: Any, media: str, offer: Offer) -> dict[str, Any]:
        """A request. `picture` is base64 text, or whatever stands for it in a cache key."""
        ...

    def reply(self, body: Mapping[str, Any], seconds: float) -> Reply:
        """Read a reply's body.

        Raises:
            ValueError: when it is none.
        """
        ...

    def explain(self, refused: Refused) -> FieldguideError | None:
        """The error to end the run with; None where only this picture was refused."""
        ...


class Ollama:
    """Ollama's `/api/chat`."""

    path = "/api/chat"

    def __init__(self, sender: Sender, model: str, settings: RemoteSettings) -> None:
        self.sender, self.model, self.settings = sender, model, settings

    def identity(self) -> dict[str, Any]:
        try:
            models = self.sender.get("/api/tags").get("models") or []
        except Unreachable as error:
            raise Unreachable(
                f"nothing answers at {self.sender.base_url}", "start it with `ollama serve`"
            ) from error
        except Refused as refused:
            raise self.explain(refused) or refused from refused
        wanted = self.model if ":" in self.model.rpartition("/")[2] else f"{self.model}:latest"
        known = {str(one.get("name") or one.get("model")): one for one in models if isinstance(one, dict)}
        if wanted not in known:
            raise self._missing()
        return {"digest": known[wanted].get("digest", "")}

    def _missing(self) -> ModelMissing:
        return ModelMissing(
            f"{self.model}: not among the models of {self.sender.base_url}", f"ollama pull {self.model}"
        )

    def body(self, question: Question, picture: Any, media: str, offer: Offer) -> dict[str, Any]:
        settings = self.settings
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": turn.text} for turn in question.turns
        ]
        messages[0]["images"] = [picture]
        options: dict[str, Any] = {"num_predict": settings.max_tokens}
        if offer.temperature:
            options["temperature"] = settings.temperature
        if offer.seed:
            options["seed"] = settings.seed
        body: dict[str, Any] = {
            "model": self.model,
            "messages": _with_system(settings, messages),
            "stream": False,
            "options": options,
        }
        if question.order and offer.schema:
            body["format"] = answer_schema(question.order)
        if question.order and offer.top_logprobs:
            body.update(logprobs=True, top_logprobs=offer.top_logprobs)
        return body

    def reply(self, body: Mapping[str, Any], seconds: float) -> Reply:
        message = body.get("message")
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError("a reply without message.content")
        return Reply(
            message["content"],
            _tokens(body.get("logprobs")),
            _count(body.get("prompt_eval_count")),
            _count(body.get("eval_count")),
            seconds,
            body.get("done_reason") == "length",
        )

    def explain(self, refused: Refused) -> FieldguideError | None:
        if refused.status == 404 and "not found" in refused.said:
            return self._missing()
        return _refused_key(self.sender.base_url, self.settings.api_key_env, refused)


class OpenAI:
    """OpenAI's `/chat/completions`."""

    path = "/chat/completions"

    def __init__(self, sender: Sender, model: str, settings: RemoteSettings) -> None:
        self.sender, self.model, self.settings = sender, model, settings

    def identity(self) -> dict[str, Any]:
        """vLLM tells the folder behind a name, llama.cpp sizes of the file; OpenAI only the name."""
        try:
            listed = self.sender.get("/models").get("data")
        except Unreachable as error:
            hint = "start the server, such as `vllm serve MODEL` or `llama-server`, or correct base_url"
            raise Unreachable(f"nothing answers at {self.sender.base_url}", hint) from error
        except Refused as refused:
            if refused.status in (404, 405, 501):
                return {}  # the list is no part of what a server must have
            raise self.explain(refused) or refused from refused
        models = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        named = [one for one in models if one.get("id") == self.model]
        if not named and len(models) == 1 and models[0].get("owned_by") == "llamacpp":
            named = models  # it serves one file, whatever name it is asked by
        return {name: named[0][name] for name in ("id", "root", "meta") if named and named[0].get(name)}

    def body(self, question: Question, picture: Any, media: str, offer: Offer) -> dict[str, Any]:
        settings = self.settings
        url = f"data:{media};base64,{picture}" if isinstance(picture, str) else picture
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": turn.text} for turn in question.turns
        ]
        messages[0]["content"] = [
            {"type": "text", "text": question.turns[0].text},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": _with_system(settings, messages),
            offer.tokens_field: settings.max_tokens,
        }
        if offer.temperature:
            body["temperature"] = settings.temperature
        if offer.seed:
            body["seed"] = settings.seed
        if question.order and offer.schema:
            schema = {"name": "answer", "strict": True, "schema": answer_schema(question.order)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if question.order and offer.top_logprobs:
            body.update(logprobs=True, top_logprobs=offer.top_logprobs)
        return body

    def reply(self, body: Mapping[str, Any], seconds: float) -> Reply:
        choices = body.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ValueError("a reply without choices")
        message = choices[0].get("message")
        text = (message.get("content") or message.get("refusal") or "") if isinstance(message, dict) else None
        if not isinstance(text, str):
            raise ValueError("a reply without message.content")
        usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
        logprobs = choices[0].get("logprobs")
        return Reply(
            text,
            _tokens(logprobs.get("content") if isinstance(logprobs, dict) else None),
            _count((usage or {}).get("prompt_tokens")),
            _count((usage or {}).get("completion_tokens")),
            seconds,
            choices[0].get("finish_reason") == "length",
        )

    def explain(self, refused: Refused) -> FieldguideError | None:
        if refused.status == 404:
            return ModelMissing(
                f"{self.model}: {self.sender.base_url} does not have it ({refused.said})",
                "correct the name after `openai:`, or base_url; the server lists its models at /models",
            )
        name = self.settings.api_key_env or "OPENAI_API_KEY"
        return _refused_key(self.sender.base_url, name, refused)


def _refused_key(base_url: str, variable: str, refused: Refused) -> FieldguideError | None:
    if refused.status in (401, 403):
        where = (
            f"put a valid key into ${variable}" if variable else "name the variable with the key: api_key_env"
        )
        return FieldguideError(f"{base_url}: the key is missing or refused (HTTP {refused.status})", where)
    if refused.status == 402:
        return FieldguideError(refused.message, "add credit, or use another key: the replies so far are kept")
    return None


def _with_system(settings: RemoteSettings, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": settings.system}] if settings.system.strip() else []
    return [*system, *messages]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _tokens(listed: Any) -> tuple[Token, ...]:
    """Tokens of either protocol, whose entries are alike; () where there are none or they are damaged."""
    if not isinstance(listed, list):
        return ()
    try:
        return tuple(
            Token(
                _bytes(entry),
                float(entry["logprob"]),
                tuple((_bytes(other), float(other["logprob"])) for other in entry.get("top_logprobs") or ()),
            )
            for entry in listed
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


def _bytes(entry: Mapping[str, Any]) -> bytes:
    return bytes(entry["bytes"]) if entry.get("bytes") else str(entry["token"]).encode()


def base64_text(data: bytes) -> str:
    """As both protocols take pictures."""
    return base64.b64encode(data).decode("ascii")
