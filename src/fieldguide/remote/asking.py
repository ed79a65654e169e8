"""Asks a server one question about one picture, unless the cache holds the reply.

A cache key is the hash of the very request that would be sent, with the picture's hash and preparation in the
picture's place, and of what the server tells of the model. So whatever changes a reply changes its key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from fieldguide.errors import FieldguideError
from fieldguide.files import fingerprint
from fieldguide.remote.cache import ReplyCache
from fieldguide.remote.exchange import Offer, Question, Reply
from fieldguide.remote.logprobs import Token
from fieldguide.remote.pictures import Shot
from fieldguide.remote.sending import Refused
from fieldguide.remote.servers import Server, base64_text
from fieldguide.remote.settings import RemoteSettings

KEY_VERSION = "1"
REMEMBERED = (
    7 * 86_400
)  # seconds for which a server is not asked again for what it refused: it may be updated


class Asker:
    """One model, asked by many threads.

    Args:
        server: where the model is.
        settings: how it is asked.
        identity: what the server told of the model.
        cache: None to ask anew and keep nothing.
        announce: is told, once, what the server refuses.
    """

    def __init__(
        self,
        server: Server,
        settings: RemoteSettings,
        identity: dict[str, Any],
        cache: ReplyCache | None,
        announce: Callable[[str], None],
    ) -> None:
        self.server, self.settings, self.cache, self.announce = server, settings, cache, announce
        self.identity = identity
        self.about = {
            "version": KEY_VERSION,
            "url": server.sender.base_url,
            "path": server.path,
            "model": server.model,
            "identity": identity,
        }
        self._lock = threading.Lock()
        self._offer = Offer(settings.structured != "off", settings.top_logprobs)
        self._remember_refusals()

    def key(self, question: Question, shot: Shot, offer: Offer | None = None) -> str:
        """Under which the reply is kept."""
        prepared = shot.preparation(self.settings.picture_side, self.settings.picture_format)
        stand_in = {"sha256": shot.sha256, **prepared}
        body = self.server.body(question, stand_in, "", offer or self._offer)
        return fingerprint({**self.about, "body": body})

    def cached(self, question: Question, shot: Shot) -> Reply | None:
        """The reply, if the cache has it."""
        found = self.cache.get(self.key(question, shot)) if self.cache else None
        return _from_dict(found) if found else None

    def as_json(self) -> bool:
        """Whether labels are asked for by a JSON schema at present."""
        return self._offer.schema

    def ask(
        self,
        question: Callable[[bool], Question],
        shot: Shot,
        stop: threading.Event,
        retried: Callable[[], None] = lambda: None,
    ) -> tuple[Reply, bool]:
        """The reply, and whether it came from the cache.

        Args:
            question: the question, given whether its reply will be held to a JSON schema.
            shot: the picture.
            stop: once set, nothing more is sent.
            retried: is called at every try but the first.

        Raises:
            PictureError: when the picture cannot be read.
            Refused: when the server refuses this picture.
            FieldguideError: when it refuses all of them, or does not reply.
        """
        sent: tuple[str, str] | None = None
        while True:
            offer = self._offer
            asked = question(offer.schema)
            key = self.key(asked, shot, offer)
            if self.cache and (found := self.cache.get(key)):
                return _from_dict(found), True
            if sent is None:
                media, data = shot.encoded(self.settings.picture_side, self.settings.picture_format)
                sent = media, base64_text(data)
            body = self.server.body(asked, sent[1], sent[0], offer)
            try:
                received = self.server.sender.post(self.server.path, body, stop, retried, self._check)
            except Refused as refused:
                self._ask_for_less(offer, asked, refused)
                continue
            reply = self.server.reply(received.body, received.seconds)
            if self.cache and reply.text.strip():  # an empty reply is no answer worth keeping
                self.cache.put(key, _to_dict(reply))
            return reply, False

    def _check(self, body: dict[str, Any]) -> object:
        return self.server.reply(body, 0.0)

    def _ask_for_less(self, used: Offer, asked: Question, refused: Refused) -> None:
        """Make a smaller offer from now on; raises where that is not what the server refused."""
        explained = self.server.explain(refused) if refused.status != 404 else None
        less = None
        if explained is None and refused.status in (400, 404, 415, 422, 500, 501):
            if used != self._offer:
                return  # another thread has just learnt it
            less = used.without(refused.said)
        if less is None or (not asked.order and less[0].schema != used.schema):
            raise explained or self.server.explain(refused) or refused
        smaller, lacks = less
        if self.settings.structured == "schema" and not smaller.schema:
            raise FieldguideError(
                f"{self.server.sender.base_url}: takes no JSON schema ({refused.said})",
                'set structured = "auto" to read free replies instead',
            )
        with self._lock:
            if self._offer != used:
                return
            self._offer = smaller
            if self.cache:
                self.cache.put(self._refusals_key(), asdict(smaller))
        self.announce(f"{self.server.sender.base_url} refuses a part of the request; from here on: {lacks}")

    def _refusals_key(self) -> str:
        return fingerprint(
            {**self.about, "refusals": asdict(Offer()), "structured": self.settings.structured}
        )

    def _remember_refusals(self) -> None:
        """Begin where an earlier run ended, or its replies would not be found in the cache."""
        found = self.cache.get(self._refusals_key()) if self.cache else None
        if not found or time.time() - found.pop("written") > REMEMBERED:
            return
        known = Offer(**found)
        wanted = self._offer
        self._offer = replace(
            known,
            schema=wanted.schema and known.schema,
            top_logprobs=min(wanted.top_logprobs, known.top_logprobs),
        )
        if self._offer != wanted:
            lacks = (
                "a JSON schema" if self._offer.schema != wanted.schema else "log-probabilities or a setting"
            )
            self.announce(f"{self.server.sender.base_url} refused it before, and is asked without: {lacks}")


def _to_dict(reply: Reply) -> dict[str, Any]:
    tokens = [[t.text.hex(), t.logprob, [[o.hex(), p] for o, p in t.others]] for t in reply.tokens]
    return {**asdict(replace(reply, tokens=())), "tokens": tokens}


def _from_dict(found: dict[str, Any]) -> Reply:
    tokens = tuple(
        Token(bytes.fromhex(text), logprob, tuple((bytes.fromhex(o), p) for o, p in others))
        for text, logprob, others in found["tokens"]
    )
    return Reply(**{name: value for name, value in found.items() if name != "written"} | {"tokens": tokens})
