"""A model behind a server, against a real server on this machine: what is sent, read, kept and told."""

from __future__ import annotations

import json
import logging
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server import DIGEST, Asked, FakeServer, sha256, token

from fieldguide.errors import FieldguideError, GuideError, ModelMissing, PictureError, SettingsError
from fieldguide.images import load_picture
from fieldguide.records import Note
from fieldguide.remote.cache import reply_cache_path
from fieldguide.remote.model import RemoteModel, open_remote
from fieldguide.remote.settings import RemoteSettings, load_remote_settings
from fieldguide.remote.stats import RunStats

Remote = Callable[..., RemoteModel]
KINDS = pytest.mark.parametrize("kind", ["ollama", "openai"])
LABELS = ("cat", "catfish", "dog", "snow leopard", "leopard")


def free(text: str) -> Callable[[Asked], str]:
    return lambda asked: text


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


# ---- what is sent


@KINDS
def test_the_server_gets_the_picture_that_was_meant(
    remote: Remote, server: FakeServer, photos: list[Path], kind: str
) -> None:
    remote(kind).classify(photos)
    got = {pixels(asked.picture).tobytes() for asked in server.asked}
    assert got == {pixels(load_picture(path).image).tobytes() for path in photos}
    assert {asked.picture_bytes[:4] for asked in server.asked} == {b"\x89PNG"}


def test_pictures_are_turned_and_bounded(remote: Remote, server: FakeServer, make_picture: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    path = make_picture("turned.jpg", 3, (400, 300), exif=exif, quality=95)
    remote(picture_side=100).classify([path])
    sent = server.asked[0].picture
    assert sent.size == (75, 100)
    expected = load_picture(path).image.resize((75, 100), Image.Resampling.LANCZOS)
    assert abs(pixels(sent) - pixels(expected)).mean() < 3
    remote(picture_side=0, picture_format="jpeg").classify([path])
    assert server.asked[1].picture_bytes[:2] == b"\xff\xd8"
    assert server.asked[1].picture.size == (300, 400)
    assert abs(pixels(server.asked[1].picture) - pixels(load_picture(path).image)).mean() < 2


def test_what_ollama_is_asked(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    remote("ollama", system="Be brief.", temperature=0.5, max_tokens=7, seed=3).classify(photos[:1])
    [asked] = server.asked
    assert asked.path == "/api/chat"
    assert asked.body["model"] == "llava"
    assert asked.body["stream"] is False
    assert asked.body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert asked.body["options"] == {"temperature": 0.5, "num_predict": 7, "seed": 3}
    assert sorted(asked.body["format"]["properties"]["label"]["enum"]) == sorted([*LABELS, "none of these"])
    assert (asked.body["logprobs"], asked.body["top_logprobs"]) == (True, 20)


def test_what_openai_is_asked(
    remote: Remote, server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-of-mine")
    server.key = "secret-of-mine"
    remote("openai", api_key_env="MY_KEY", max_tokens=7).classify(photos[:1])
    [asked] = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["Authorization"] == "Bearer secret-of-mine"
    assert (asked.body["temperature"], asked.body["max_tokens"], asked.body["seed"]) == (0.0, 7, 0)
    form = asked.body["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["strict"] is True
    assert form["json_schema"]["schema"]["additionalProperties"] is False
    assert form["json_schema"]["schema"]["required"] == ["label"]


def test_labels_come_in_another_order_for_every_picture_and_never_as_an_example(
    remote: Remote, server: FakeServer, photos: list[Path]
) -> None:
    remote(cache=False).classify(photos)
    first = {sha256(asked.picture_bytes): asked.options for asked in server.asked}
    assert all(sorted(options) == sorted(LABELS) for options in first.values())
    assert len({tuple(options) for options in first.values()}) > 1
    for asked in server.asked:
        words = asked.words.replace("\n".join(f"- {label}" for label in asked.options), "")
        assert not any(label in words for label in LABELS), "a label outside the list pulls answers to itself"
        assert asked.schema["properties"]["label"]["enum"] == [*asked.options, "none of these"]
    server.asked.clear()
    remote(cache=False, labels=LABELS[::-1]).classify(photos[::-1])
    assert {sha256(asked.picture_bytes): asked.options for asked in server.asked} == first
    server.asked.clear()
    remote(cache=False, seed=1).classify(photos)
    assert {sha256(asked.picture_bytes): asked.options for asked in server.asked} != first


# ---- what is read


@KINDS
def test_answers_come_in_the_order_of_the_pictures(
    remote: Remote, server: FakeServer, photos: list[Path], kind: str
) -> None:
    names = {pixels(load_picture(path).image).tobytes(): LABELS[n % 5] for n, path in enumerate(photos)}

    def reply(asked: Asked) -> str:
        time.sleep(0.03 * (len(server.asked) % 3))
        return json.dumps({"label": names[pixels(asked.picture).tobytes()]})

    server.reply = reply
    answers = remote(kind).classify(photos)
    assert [(a.image, a.label, a.error) for a in answers] == [
        (str(path), LABELS[n % 5], "") for n, path in enumerate(photos)
    ]
    assert {a.probability for a in answers} == {None}
    assert [[s.label for s in a.scores] for a in answers] == [[a.label] for a in answers]


@KINDS
def test_replies_off_the_list_are_kept_word_for_word(
    remote: Remote, server: FakeServer, photos: list[Path], kind: str
) -> None:
    said = iter(["It is a wolf!", "A cat or a dog, perhaps.", '{"label": "none of these"}', "a dog"])
    server.reply = lambda asked: next(said)
    model = remote(kind, concurrency=1)
    answers = model.classify(photos[:4])
    assert [a.text for a in answers] == [
        "It is a wolf!", "A cat or a dog, perhaps.", '{"label": "none of these"}', "",
    ]  # fmt: skip
    assert [(a.label, a.off_list, a.error, a.scores) for a in answers[:3]] == [("", True, "", ())] * 3
    assert (answers[3].label, answers[3].off_list) == ("dog", False)
    assert (model.stats.off_list, model.stats.ambiguous) == (2, 1)


def test_unreadable_pictures_are_answers_with_an_error(
    remote: Remote, server: FakeServer, photos: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"<!DOCTYPE html>")
    model = remote()
    answers = model.classify([bad, photos[0], tmp_path / "gone.png", tmp_path])
    assert [a.error for a in answers] == [
        "a web page, not a picture (the download failed?)", "", "no such file", "a folder, not a picture",
    ]  # fmt: skip
    assert len(server.asked) == 1
    assert (model.stats.pictures, model.stats.unreadable, model.stats.asked) == (4, 3, 1)
    with pytest.raises(PictureError, match="no such file"):
        model.ask(tmp_path / "gone.png")


def spelled(*tokens: dict[str, Any]) -> Callable[[Asked, str], list[dict[str, Any]]]:
    return lambda asked, text: list(tokens)


@KINDS
def test_probabilities_where_the_server_tells_those_of_the_tokens(
    remote: Remote, server: FakeServer, photos: list[Path], kind: str
) -> None:
    server.reply = free('{"label": "cat"}')
    server.tokens = spelled(
        token('{"', 1.0), token("label", 1.0), token('":', 1.0), token(' "', 0.9),
        token("cat", 0.8, ("dog", 0.1), ("wolf", 0.05)), token('"}', 0.5, ("fish", 0.25)),
    )  # fmt: skip
    [answer] = remote(kind).classify(photos[:1])
    assert answer.label == "cat"
    assert [s.label for s in answer.scores] == ["cat", "catfish", "dog"]
    assert [s.probability for s in answer.scores] == pytest.approx([0.4, 0.2, 0.1])
    assert answer.probability == pytest.approx(0.4)
    [again] = remote(kind).classify(photos[:1])
    assert again == answer, "the cache keeps what the tokens tell"
    assert len(server.asked) == 1
    assert [s.label for s in remote(kind).classify(photos[:1], top_k=2)[0].scores] == ["cat", "catfish"]


def test_no_probability_is_made_up(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    server.reply = free("It is a cat.")
    server.tokens = spelled(token("It is a ", 0.9), token("cat", 0.9, ("dog", 0.05)), token(".", 1.0))
    [answer] = remote(structured="off").classify(photos[:1])
    assert (answer.label, answer.probability, answer.text) == ("cat", None, "It is a cat.")
    server.reply = free('{"label": "dog"}')  # tokens of another text
    [answer] = remote(cache=False).classify(photos[:1])
    assert (answer.label, answer.probability) == ("dog", None)


# ---- what servers refuse


REFUSALS = [
    (400, {"error": {"message": "response_format is not supported by this model", "code": 400}}),
    (422, {"detail": [{"loc": ["body", "response_format"], "msg": "Extra inputs are not permitted"}]}),
    (404, {"error": {"message": "json_schema is not available"}}),
    (500, {"error": "failed to parse grammar"}),
    (400, {"error": "json: cannot unmarshal object into Go struct field ChatRequest.format of type string"}),
]


@KINDS
@pytest.mark.parametrize(("status", "body"), REFUSALS)
def test_a_server_without_schemas_is_asked_without_once_for_the_run(
    remote: Remote, server: FakeServer, photos: list[Path], kind: str, status: int, body: Any
) -> None:
    server.behave = lambda asked: (status, {}, body) if asked.schema else None
    server.reply = free("cat")
    said: list[str] = []
    answers = remote(kind, said=said).classify(photos)
    assert [a.label for a in answers] == ["cat"] * 6
    assert sum(asked.schema is not None for asked in server.asked) == 1
    assert sum("JSON schema" in line for line in said) == 1
    assert all("with the label alone" in asked.words for asked in server.asked if not asked.schema)
    asked = len(server.asked)
    model = remote(kind, said=said)
    assert [a.label for a in model.classify(photos)] == ["cat"] * 6
    assert len(server.asked) == asked, "the second run begins with what the first one learnt"
    with pytest.raises(FieldguideError, match="takes no JSON schema"):
        remote(kind, structured="schema").classify(photos)


def test_fewer_log_probabilities_and_then_none(
    remote: Remote, server: FakeServer, photos: list[Path]
) -> None:
    def behave(asked: Asked) -> Any:
        if asked.body.get("top_logprobs", 0) > most:
            return 400, {}, {"error": {"message": f"top_logprobs is greater than max allowed: {most}"}}
        return None

    server.behave, most = behave, 5
    remote("openai", cache=False).classify(photos)
    assert Counter(asked.body.get("top_logprobs") for asked in server.asked) == {20: 1, 5: 6}
    server.asked.clear()
    most = -1
    server.behave = lambda asked: behave(asked) if "logprobs" in asked.body else None
    assert [a.label for a in remote("openai", cache=False).classify(photos)] == ["cat"] * 6
    assert Counter(asked.body.get("top_logprobs") for asked in server.asked) == {20: 1, 5: 1, None: 6}


def test_newer_models_of_openai(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    def behave(asked: Asked) -> Any:
        if "max_tokens" in asked.body:
            told = (
                "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            )
            return 400, {}, {"error": {"message": told}}
        if "temperature" in asked.body:
            return 400, {}, {"error": {"message": "Unsupported value: 'temperature' does not support 0.0"}}
        return None

    server.behave = behave
    said: list[str] = []
    assert [a.label for a in remote("openai", said=said).classify(photos)] == ["cat"] * 6
    assert len(server.asked) == 8
    assert any("temperature" in line for line in said)


def test_an_image_format_is_no_schema(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    """One picture that the server refuses is that picture's error, and changes nothing for the others."""
    server.behave = lambda asked: (
        (400, {}, {"error": {"message": "unsupported image format"}}) if len(server.asked) == 2 else None
    )
    answers = remote("openai", concurrency=1).classify(photos)
    assert [a.label for a in answers] == ["cat", "", "cat", "cat", "cat", "cat"]
    assert "unsupported image format" in answers[1].error
    assert all(asked.schema for asked in server.asked)


# ---- errors that end a run


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with pytest.raises(FieldguideError, match="nothing answers at") as caught:
        open_remote("ollama:llava", LABELS, RemoteSettings(base_url=address))
    assert caught.value.hint == "start it with `ollama serve`"
    assert "\n" not in str(caught.value)
    with pytest.raises(FieldguideError, match="nothing answers at"):
        open_remote("openai:llava", LABELS, RemoteSettings(base_url=address))


def test_a_model_that_is_not_there(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    server.models = []
    with pytest.raises(ModelMissing) as caught:
        remote("ollama")
    assert caught.value.hint == "ollama pull llava"
    server.behave = lambda asked: (404, {}, {"error": {"message": "The model `llava` does not exist."}})
    with pytest.raises(ModelMissing, match="does not exist"):
        remote("openai").classify(photos)
    assert len(server.asked) == 1


def test_keys_that_are_missing_or_refused(
    remote: Remote, server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FieldguideError, match="OPENAI_API_KEY") as caught:
        open_remote("openai:gpt-4o-mini", LABELS)
    assert caught.value.hint == "export OPENAI_API_KEY=…"
    server.key = "right"
    monkeypatch.setenv("MY_KEY", "wrong-and-secret")
    with pytest.raises(FieldguideError, match="key is missing or refused") as caught:
        remote("openai", api_key_env="MY_KEY")
    assert "wrong-and-secret" not in str(caught.value)
    assert "MY_KEY" in caught.value.hint
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with pytest.raises(FieldguideError, match="holds no key"):
        remote("openai", api_key_env="MY_KEY")


def test_openais_key_goes_to_openai_only(
    remote: Remote, server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai")
    remote("openai").classify(photos[:1])
    assert "Authorization" not in server.asked[0].headers


def test_used_up_quota_ends_the_run_at_once(
    remote: Remote, server: FakeServer, photos: list[Path], slept: list[float]
) -> None:
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    server.behave = lambda asked: (429, {}, body) if len(server.asked) > 2 else None
    with pytest.raises(FieldguideError, match="quota"):
        remote("openai", concurrency=1).classify(photos)
    assert len(server.asked) == 3
    assert slept == []


def test_a_server_that_only_fails_ends_the_run(
    remote: Remote, server: FakeServer, photos: list[Path]
) -> None:
    server.behave = lambda asked: (400, {}, {"error": "model does not see pictures"})
    with pytest.raises(FieldguideError, match=r"3 pictures in a row got no answer.*does not see pictures"):
        remote().classify(photos)
    assert len(server.asked) == 3
    with pytest.raises(FieldguideError, match="does not see pictures"):
        remote().ask(photos[0])


def test_settings_and_names_that_are_wrong(tmp_path: Path) -> None:
    for spec in ("llava", "ollama:", "gguf:x", ""):
        with pytest.raises(SettingsError, match="ollama:NAME"):
            open_remote(spec, LABELS)
    with pytest.raises(SettingsError, match=r"concurrency=0.*structured") as caught:
        open_remote("ollama:llava", LABELS, RemoteSettings(concurrency=0, structured="maybe"))
    with pytest.raises(SettingsError) as caught:
        open_remote(
            "ollama:llava", LABELS, RemoteSettings(base_url="http://me:hush@host", api_key_env="sk-abc123")
        )
    assert "hush" not in str(caught.value)
    assert "abc123" not in str(caught.value)
    with pytest.raises(SettingsError, match="different"):
        open_remote("ollama:llava", ["cat", "cat"])


def test_settings_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "llava.toml"
    path.write_text('model = "ollama:llava"\nsystem = "Be brief."\ntimeout = 5\n[synonyms]\ncat = ["puss"]\n')
    settings = load_remote_settings(path, {"seed": 4, "question": None})
    assert settings == RemoteSettings(
        model="ollama:llava", system="Be brief.", timeout=5.0, seed=4, synonyms={"cat": ["puss"]}
    )
    path.write_text('modle = "x"\nseed = "1"\n[synonyms]\ncat = "puss"\n')
    with pytest.raises(SettingsError, match=r"modle.*seed.*synonyms") as caught:
        load_remote_settings(path)
    assert str(path) in str(caught.value)
    with pytest.raises(SettingsError, match="no such settings file"):
        load_remote_settings(tmp_path / "gone.toml")


# ---- the cache


@KINDS
def test_a_second_run_asks_nothing(remote: Remote, server: FakeServer, photos: list[Path], kind: str) -> None:
    first = remote(kind)
    answers = first.classify(photos)
    again = remote(kind)
    assert again.classify(photos) == answers
    assert len(server.asked) == 6
    assert (first.stats.asked, first.stats.from_cache) == (6, 0)
    assert (again.stats.asked, again.stats.from_cache, again.stats.tokens_in) == (0, 6, 0)
    remote(kind, cache=False).classify(photos[:2])
    assert len(server.asked) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"system": "Other."}, {"question": "Which animal?"}, {"temperature": 0.3}, {"seed": 5},
        {"max_tokens": 50},
        {"picture_side": 20}, {"picture_format": "jpeg"}, {"structured": "off"}, {"top_logprobs": 0},
        {"labels": (*LABELS, "fox")}, {"kind": "openai"},
    ],
)  # fmt: skip
def test_whatever_changes_a_reply_is_asked_anew(
    remote: Remote, server: FakeServer, photos: list[Path], change: dict[str, Any]
) -> None:
    one = remote()
    one.classify(photos[:1])
    other = remote(**change)
    other.classify(photos[:1])
    assert len(server.asked) == 2
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("change", [{"concurrency": 1}, {"timeout": 9.0}, {"retries": 0}, {"price_in": 3.0}])
def test_what_changes_no_reply_does_not_count(
    remote: Remote, server: FakeServer, photos: list[Path], change: dict[str, Any]
) -> None:
    one = remote()
    one.classify(photos[:1])
    other = remote(**change)
    other.classify(photos[:1])
    assert len(server.asked) == 1
    assert one.fingerprint == other.fingerprint


def test_another_model_of_the_same_name_is_asked_anew(
    remote: Remote, server: FakeServer, photos: list[Path]
) -> None:
    remote().classify(photos[:1])
    server.models[0]["digest"] = DIGEST[::-1]
    remote().classify(photos[:1])
    assert len(server.asked) == 2


def test_a_picture_that_changed_under_its_name_is_asked_anew(
    remote: Remote, server: FakeServer, photos: list[Path], make_picture: Any
) -> None:
    remote().classify(photos[:1])
    make_picture("photos/0.png", 77)
    remote().classify(photos[:1])
    assert len(server.asked) == 2


def test_pictures_share_no_reply_where_the_order_of_labels_is_the_same(
    remote: Remote, server: FakeServer, photos: list[Path]
) -> None:
    remote(labels=["cat"]).classify(photos)
    assert len(server.asked) == 6
    remote(labels=()).ask(photos[0], "What is it?")
    remote(labels=()).ask(photos[1], "What is it?")
    assert len(server.asked) == 8


def test_only_good_replies_are_kept(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    server.behave = lambda asked: (500, {}, {"error": "model runner has unexpectedly stopped"})
    answers = remote(retries=0, concurrency=1).classify(photos[:2])
    assert all("model runner" in a.error for a in answers)
    server.behave = lambda asked: None
    server.reply = free("")
    assert [a.off_list for a in remote().classify(photos[:2])] == [True, True]
    server.reply = free("cat")
    assert [a.label for a in remote().classify(photos[:2])] == ["cat", "cat"]


def test_a_stopped_run_goes_on_where_it_was(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    def behave(asked: Asked) -> Any:
        if len(server.asked) > 3:
            raise_in_main.set()
        return None

    raise_in_main = threading.Event()
    server.behave = behave
    model = remote(concurrency=1)
    named = model._named

    def stopping(path: Path, top_k: int, stop: threading.Event) -> Any:
        if raise_in_main.is_set():
            raise KeyboardInterrupt
        return named(path, top_k, stop)

    model._named = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        model.classify(photos)
    assert len(server.asked) == 4
    again = remote()
    assert [a.label for a in again.classify(photos)] == ["cat"] * 6
    assert (again.stats.asked, again.stats.from_cache) == (2, 4)


def test_many_processes_may_share_the_cache(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    one, other = remote(), remote()
    threads = [threading.Thread(target=model.classify, args=(photos,)) for model in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.stats.asked + one.stats.from_cache == other.stats.asked + other.stats.from_cache == 6
    with sqlite3.connect(reply_cache_path()) as database:
        assert database.execute("SELECT count(*) FROM replies").fetchone() == (6,)


def test_a_damaged_cache_is_named(remote: Remote, own_cache: Path) -> None:
    reply_cache_path().parent.mkdir(parents=True)
    reply_cache_path().write_bytes(b"not a database" * 100)
    with pytest.raises(FieldguideError, match=r"replies\.sqlite"):
        remote()


def test_the_key_is_in_no_file_log_or_message(
    remote: Remote, server: FakeServer, photos: list[Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    secret = "hush-4711-hush"
    monkeypatch.setenv("MY_KEY", secret)
    server.key = secret
    said: list[str] = []
    server.behave = lambda asked: (
        (400, {}, {"error": f"{asked.headers['Authorization']} is odd"}) if len(server.asked) == 2 else None
    )
    with caplog.at_level(logging.DEBUG):
        model = remote("openai", said=said, api_key_env="MY_KEY", concurrency=1)
        answers = model.classify(photos)
    assert all(asked.headers["Authorization"] == f"Bearer {secret}" for asked in server.asked)
    assert "is odd" in answers[1].error
    assert caplog.records
    shown = (caplog.text, *capsys.readouterr(), repr(answers), *said, repr(model.info), model.stats.to_text())
    assert all(secret not in text for text in shown)
    files = [path for path in own_cache.rglob("*") if path.is_file()]
    assert files
    assert all(secret.encode() not in path.read_bytes() for path in files)
    shorter = RemoteSettings(base_url=server.url, api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "another")
    server.key = "another"
    renewed = open_remote("openai:llava", LABELS, shorter, announce=said.append)
    renewed.classify(photos[:1])
    assert renewed.stats.from_cache == 1, "another key gives no other answers"
    renewed.close()


# ---- ask, estimate, stats


def test_ask_names_and_then_answers_with_the_notes_beside(
    remote: Remote, server: FakeServer, photos: list[Path]
) -> None:
    notes = {"cat": Note("cat", "Felis catus", ("puss",), ("whiskers",), ("dog",), "Dogs bark.", "Purrs.")}
    server.reply = lambda asked: "It has whiskers." if len(asked.body["messages"]) > 2 else "puss"
    model = remote(notes=notes, structured="off")
    answer = model.ask(photos[0])
    assert (answer.label, answer.text) == ("cat", "It has whiskers.")
    _, why = server.asked
    assert [m["role"] for m in why.body["messages"]] == ["system", "user", "assistant", "user"]
    assert why.body["messages"][2]["content"] == "cat"
    for fact in ("whiskers", "dog", "Dogs bark.", "Purrs.", "How can you tell?"):
        assert fact in why.body["messages"][3]["content"]
    assert pixels(why.picture).tobytes() == pixels(load_picture(photos[0]).image).tobytes()
    assert "format" not in why.body
    assert model.ask(photos[0], "Is it old?").text == "It has whiskers."
    assert len(server.asked) == 3, "the naming is in the cache"
    server.reply = free("dog")
    assert remote(notes=notes, structured="off").ask(photos[1]).text == "", "no notes, no question: no words"


def test_without_labels_it_answers_in_words(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    server.reply = free(" A cat on a mat. ")
    model = remote(labels=())
    answer = model.ask(photos[0], "What is on the mat?")
    assert (answer.text, answer.label, answer.off_list) == ("A cat on a mat.", "", False)
    assert server.asked[0].words == "What is on the mat?"
    with pytest.raises(GuideError, match="no labels"):
        model.classify(photos)


def test_synonyms_of_settings_and_notes_are_understood(
    remote: Remote, server: FakeServer, photos: list[Path]
) -> None:
    notes = {"dog": Note("dog", "Canis familiaris", ("hound",))}
    said = iter(["moggy", "A hound.", "canis familiaris", "mutt"])
    server.reply = lambda asked: next(said)
    model = remote(notes=notes, synonyms={"cat": ["moggy"]}, structured="off", concurrency=1)
    assert [a.label for a in model.classify(photos[:4])] == ["cat", "dog", "dog", ""]
    with pytest.raises(SettingsError, match="no label"):
        remote(synonyms={"cow": ["moo"]})


def test_estimate_and_cost(remote: Remote, server: FakeServer, photos: list[Path]) -> None:
    server.delay = 0.1
    said: list[str] = []
    model = remote(said=said, price_in=2.0, price_out=10.0, concurrency=2)
    estimate = model.estimate(photos)
    assert (estimate.pictures, estimate.cached) == (5, 1)
    assert 0.25 < estimate.seconds < 2
    assert (estimate.tokens_in, estimate.tokens_out) == (3000, 50)
    assert estimate.cost == pytest.approx(5 * (600 * 2 + 10 * 10) / 1e6)
    assert len(server.asked) == 1
    model.stats = RunStats()
    model.classify(photos)
    assert len(server.asked) == 6
    stats = model.stats
    assert (stats.pictures, stats.asked, stats.from_cache) == (6, 5, 1)
    assert (stats.tokens_in, stats.tokens_out) == (3000, 50)
    assert stats.cost == pytest.approx(estimate.cost)
    assert stats.seconds > 0.2
    assert sum("pictures to ask about" in line for line in said) == 1
    slow = remote(requests_per_minute=60, cache=True).estimate(photos)
    assert (slow.pictures, slow.cached) == (0, 6)
    assert remote(requests_per_minute=60, max_tokens=9).estimate(photos).seconds >= 5
