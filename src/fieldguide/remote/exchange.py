"""What passes between the model and its server, whatever the protocol: a question, an offer, a reply."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from fieldguide.records import Turn
from fieldguide.remote.logprobs import Token

_NO_SCHEMA = re.compile(r"response_format|schema|guided|grammar|structured|request\.format|invalid format")


@dataclass(frozen=True)
class Offer:
    """What a request makes use of; a server that refuses a part of it is asked without."""

    schema: bool = True
    top_logprobs: int = 20
    temperature: bool = True
    seed: bool = True
    tokens_field: str = "max_tokens"  # or max_completion_tokens, which newer models of OpenAI want

    def without(self, said: str) -> tuple[Offer, str] | None:
        """Less, by what the server said: a smaller offer, and what it lacks; None where nothing fits."""
        said = said.lower()
        if self.top_logprobs and re.search(r"log_?prob", said):
            fewer = 5 if self.top_logprobs > 5 else 0  # older vLLM lists five
            return replace(self, top_logprobs=fewer), f"{fewer or 'no'} log-probabilities"
        if self.schema and _NO_SCHEMA.search(said):
            return replace(self, schema=False), "no JSON schema: replies are read as free text"
        if self.tokens_field == "max_tokens" and "max_completion_tokens" in said:
            return replace(self, tokens_field="max_completion_tokens"), "max_completion_tokens for max_tokens"
        if self.temperature and "temperature" in said:
            return replace(self, temperature=False), "the server's own temperature"
        if self.seed and re.search(r"\bseed\b", said):
            return replace(self, seed=False), "no seed"
        return None


@dataclass(frozen=True)
class Question:
    """A conversation about one picture that waits for the next reply.

    The first turn is the user's, and shows the picture.
    """

    turns: tuple[Turn, ...]
    order: tuple[str, ...] = ()  # the labels to choose among, as listed; () for a reply in words


@dataclass(frozen=True)
class Reply:
    """What a server replied."""

    text: str
    tokens: tuple[Token, ...] = ()  # with log-probabilities, where it told them
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    cut: bool = False  # it ended because max_tokens was reached
