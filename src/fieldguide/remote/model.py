"""A model behind a server, asked as a guide is asked.

    model = open_remote("ollama:llava", ["cat", "dog"], RemoteSettings())
    for answer in model.classify(["1.jpg", "2.jpg"]):
        print(answer.label or answer.text)

A reply that names none of the labels, or several, is kept word for word and never made into a label.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fieldguide.errors import FieldguideError, GuideError, PictureError, SettingsError
from fieldguide.files import fingerprint
from fieldguide.progress import console, progress_bar
from fieldguide.records import Answer, LabelScore, Note, Turn
from fieldguide.remote.asking import Asker
from fieldguide.remote.cache import ReplyCache
from fieldguide.remote.connect import connect
from fieldguide.remote.crew import in_threads
from fieldguide.remote.exchange import Question, Reply
from fieldguide.remote.logprobs import label_probabilities
from fieldguide.remote.pictures import Shot, read_shot
from fieldguide.remote.prompts import choices, follow_up, naming_words, other_names, shuffled
from fieldguide.remote.replies import Reading, ReplyReader
from fieldguide.remote.sending import NoReply, Refused, Unreachable
from fieldguide.remote.settings import RemoteSettings, check_settings
from fieldguide.remote.stats import Estimate, Meter, RunStats

PREPARING = 2  # threads that prepare pictures while all requests are on their way
BATCH = 32  # pictures a request at a time
TOP_K = 5
FIRST_FAILURES, FAILURES = 3, 8  # pictures in a row without a reply that end a run: at its start, later
_NOT_OF_ANSWERS = (
    "concurrency", "requests_per_minute", "timeout", "retries", "price_in", "price_out", "base_url",
    "api_key_env", "model",
)  # fmt: skip


def _announce(line: str) -> None:
    console.print(line, markup=False, highlight=False)


def open_remote(
    spec: str,
    labels: Sequence[str],
    settings: RemoteSettings | None = None,
    notes: Mapping[str, Note] | None = None,
    *,
    cache: bool | Path = True,
    announce: Callable[[str], None] = _announce,
    **sending: Any,
) -> RemoteModel:
    """Reach a model behind a server.

    Args:
        spec: ollama:NAME or openai:NAME; "" for `settings.model`.
        labels: what it may answer; without any it answers in words.
        settings: None for the defaults.
        notes: what is known of the labels. Their synonyms and scientific names are understood in replies.
        cache: whether replies are kept in the user cache, and taken from there; or a file of that kind.
        announce: is told what the server refuses and how long the work will take.

    Raises:
        SettingsError: when the settings or the labels are impossible.
        FieldguideError: when nothing answers, the key is missing or refused, or the model is not there; the
            error says what to do.
    """
    settings = settings or RemoteSettings()
    check_settings(settings)
    labels = tuple(labels)
    if len(set(labels)) < len(labels) or not all(label.strip() for label in labels):
        raise SettingsError("labels must be different from each other and not empty")
    server = connect(spec or settings.model, settings, **sending)
    replies = ReplyCache(cache if isinstance(cache, Path) else None) if cache else None
    try:
        identity = server.identity()
    except BaseException:
        server.sender.close()
        raise
    asker = Asker(server, settings, identity, replies, announce)
    return RemoteModel(asker, labels, dict(notes or {}), announce)


class RemoteModel:
    """Names pictures and answers questions about them as a `Guide` does; made by `open_remote`.

    Attributes:
        labels: what it may answer.
        notes: what is known of them.
    """

    def __init__(
        self, asker: Asker, labels: tuple[str, ...], notes: dict[str, Note], announce: Callable[[str], None]
    ) -> None:
        self.labels, self.notes = labels, notes
        self._asker, self._announce = asker, announce
        self._settings = asker.settings
        self._synonyms = other_names(labels, self._settings.synonyms, notes)
        self._reader = ReplyReader(labels, self._synonyms)
        self._meter, self._estimated = Meter(self._settings), False

    @property
    def stats(self) -> RunStats:
        """What was done so far; assign `RunStats()` to begin to count anew."""
        return self._meter.stats

    @stats.setter
    def stats(self, stats: RunStats) -> None:
        self._meter.stats = stats

    @property
    def fingerprint(self) -> str:
        """Identity of everything an answer depends on, besides the picture."""
        kept = {k: v for k, v in asdict(self._settings).items() if k not in _NOT_OF_ANSWERS}
        names = {label: list(names) for label, names in self._synonyms.items()}
        notes = {label: asdict(note) for label, note in self.notes.items()}
        return fingerprint(
            {
                **self._asker.about,
                "labels": sorted(self.labels),
                "settings": kept,
                "names": names,
                "notes": notes,
            }
        )

    @property
    def folder(self) -> Path:
        """A name fit for a folder of results; nothing lies there unless the caller puts it there."""
        return Path(re.sub(r"[^\w.-]+", "-", str(self._asker.about["model"])))

    @property
    def info(self) -> dict[str, Any]:
        """What a report says of it, in the form of `guide.json`."""
        about = self._asker.about
        card = {"name": about["model"], "role": "model behind a server", "source": about["url"],
                "sha256": str(self._asker.identity.get("digest", ""))}  # fmt: skip
        settings = {k: v for k, v in asdict(self._settings).items() if k not in ("api_key_env", "synonyms")}
        return {"labels": list(self.labels), "models": {"remote": card}, "settings": {"remote": settings}}

    def training_pictures(self) -> list[dict[str, Any]]:
        """Empty: nobody knows which pictures such a model has seen."""
        return []

    def close(self) -> None:
        """Close the connections and the cache."""
        self._asker.server.sender.close()
        if self._asker.cache:
            self._asker.cache.close()

    def classify(self, pictures: Sequence[Path | str], top_k: int = 0) -> list[Answer]:
        """Name many pictures; one that cannot be read is an Answer with `error`.

        A reply that names none of the labels, or several of them, is an Answer with `off_list`, without label
        and with the reply as its `text`. Probabilities are None unless the server told those of the label's
        tokens. Stopped by Ctrl-C, it keeps the replies it has for the next run.

        Args:
            pictures: files.
            top_k: labels listed in each answer; 0 for five. There may be fewer: none is invented.

        Raises:
            GuideError: when there are no labels.
            FieldguideError: when the server is gone, or has failed for several pictures in a row.
        """
        if not self.labels:
            raise GuideError(
                f"{self.folder}: has no labels to choose among, it answers in words", "use `ask`"
            )
        paths = [Path(picture) for picture in pictures]
        answers: list[Answer | None] = [None] * len(paths)
        stop, started, place = threading.Event(), time.monotonic(), 0
        try:
            with progress_bar("pictures") as bar:
                task = bar.add_task("Asking", total=len(paths))
                # One by one until the server has replied: one request finds out what it refuses and how long
                # a reply takes.
                while place < len(paths) and not self._meter.replied:
                    answers[place] = self._named(paths[place], top_k, stop)
                    place += 1
                    bar.advance(task)
                self._tell_estimate(len(paths) - place)
                rest = paths[place:]
                # More threads than requests: while those wait for the server, others prepare what comes next.
                # One request at a time keeps the order of the pictures.
                at_once = self._settings.concurrency
                threads = at_once + PREPARING if at_once > 1 else 1
                named = in_threads(lambda path: self._named(path, top_k, stop), rest, threads, stop)
                for at, answer in named:
                    answers[place + at] = answer
                    bar.advance(task)
        finally:
            stop.set()
            self._meter.count(seconds=time.monotonic() - started)
        return [answer for answer in answers if answer is not None]

    def ask(self, picture: Path | str, question: str = "", top_k: int = 0) -> Answer:
        """Name one picture and answer a question about it, by default how one can tell.

        As with a guide, there are words only where a question is asked or notes on the label are known; the
        notes are laid beside the question. Without labels, the words answer it and nothing is named.
        An `off_list` answer's `text` is the reply to the question, if one was asked.

        Raises:
            PictureError: when the picture cannot be read.
            FieldguideError: when the server gives no reply.
        """
        started, stop = time.monotonic(), threading.Event()
        self._meter.count(pictures=1)
        try:
            shot = read_shot(Path(picture))
            if not self.labels:
                words = question.strip() or self._settings.question
                return Answer(str(picture), text=self._words((Turn("user", words),), shot, stop))
            reply, asked = self._reply(shot, stop)
            answer = self._answer(str(picture), shot, reply, top_k)
            if not question.strip() and answer.label not in self.notes:
                return answer
            said = answer.label or reply.text
            asked_now = follow_up(self.notes.get(answer.label), question.strip() or self._settings.why)
            turns = (*asked.turns, Turn("assistant", said), Turn("user", asked_now))
            return replace(answer, text=self._words(turns, shot, stop))
        except PictureError:
            self._meter.count(unreadable=1)
            raise
        finally:
            self._meter.count(seconds=time.monotonic() - started)

    def estimate(self, pictures: Sequence[Path | str]) -> Estimate:
        """What naming these pictures will take. Asks about one of them when no reply has come yet.

        Raises:
            FieldguideError: when the server gives no reply.
        """
        todo, cached = [], 0
        for path in map(Path, pictures):
            try:
                shot = read_shot(path)
            except PictureError:
                continue
            found = self._asker.cached(self._question(shot, self._asker.as_json()), shot)
            if found:
                cached += 1
                self._meter.measure(found)
            else:
                todo.append(path)
        if not self._meter.measured and todo:
            # The reply is in the cache from now on, so asking costs nothing twice.
            first = self._named(todo[0], 0, threading.Event())
            if not first.error and self._asker.cache:
                todo, cached = todo[1:], cached + 1
        return self._meter.estimate(len(todo), cached)

    @property
    def batch_size(self) -> int:
        """Pictures to hand over at once: enough that the end of a batch, when threads idle, is rare."""
        return BATCH * self._settings.concurrency

    # ---- one picture

    def _named(self, path: Path, top_k: int, stop: threading.Event) -> Answer:
        self._meter.count(pictures=1)
        try:
            shot = read_shot(path)
            answer = self._answer(str(path), shot, self._reply(shot, stop)[0], top_k)
        except PictureError as error:
            self._meter.count(unreadable=1)
            return Answer(str(path), error=error.reason)
        except Unreachable as error:
            raise Unreachable(error.message, "start the server again: the replies so far are kept") from error
        except (Refused, NoReply) as error:
            if isinstance(error, NoReply) and error.hint:  # it asks to come back much later
                raise
            self._give_up_sometime(error)
            return Answer(str(path), error=f"no answer: {error.message}")
        return answer

    def _question(self, shot: Shot, as_json: bool) -> Question:
        order = shuffled(self.labels, self._settings.seed, shot.sha256)
        words = naming_words(self._settings.question, order, as_json=as_json)
        return Question((Turn("user", words),), order)

    def _reply(self, shot: Shot, stop: threading.Event) -> tuple[Reply, Question]:
        """The reply to "which of the labels is it", and the question as it was put."""
        put: list[Question] = []

        def question(as_json: bool) -> Question:
            put.append(self._question(shot, as_json))
            return put[-1]

        reply, cached = self._asker.ask(question, shot, stop, lambda: self._meter.count(retried=1))
        self._meter.record(reply, cached)
        return reply, put[-1]

    def _words(self, turns: tuple[Turn, ...], shot: Shot, stop: threading.Event) -> str:
        question = Question(turns)
        reply, cached = self._asker.ask(lambda _: question, shot, stop, lambda: self._meter.count(retried=1))
        self._meter.record(reply, cached)
        return reply.text.strip()

    def _answer(self, image: str, shot: Shot, reply: Reply, top_k: int) -> Answer:
        reading = self._reader.read(reply.text)
        if not reading.label:
            self._meter.count(**{"ambiguous" if reading.ambiguous else "off_list": 1})
            return Answer(image, probability=None, text=reply.text, off_list=True)
        scores = self._scores(shot, reply, reading)[: top_k or TOP_K]
        text = "" if reading.whole else reply.text.strip()
        return Answer(image, reading.label, scores[0].probability, scores, text)

    def _scores(self, shot: Shot, reply: Reply, reading: Reading) -> tuple[LabelScore, ...]:
        """The label of the reply first; then others with their probability, or else those the reply named."""
        told: dict[str, float] = {}
        if reading.whole:
            allowed = choices(shuffled(self.labels, self._settings.seed, shot.sha256))
            told = label_probabilities(reply.text, reply.tokens, reading.label, allowed)
        if not told:
            return tuple(LabelScore(label, None) for label in reading.named)
        others = sorted(
            (name for name in told if name in self.labels and name != reading.label), key=lambda n: -told[n]
        )
        return tuple(LabelScore(name, told[name]) for name in (reading.label, *others))

    def _give_up_sometime(self, error: FieldguideError) -> None:
        most = FAILURES if self._meter.replied else FIRST_FAILURES
        if (failed := self._meter.fail()) >= most:
            raise FieldguideError(
                f"{failed} pictures in a row got no answer, the last one: {error.message}",
                "look at the server's log; what was answered is kept, and a second run asks the rest",
            ) from error

    def _tell_estimate(self, pictures: int) -> None:
        """Once: batches of a long work would say it again and again."""
        if pictures > 1 and not self._estimated:
            self._estimated = True
            self._announce(self._meter.estimate(pictures, 0).to_text())
