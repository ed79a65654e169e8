"""Prompts of mixed length and shifted positions, against one plain pass for each row alone (case 19)."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from ragged import QUESTION, Embedded, RaggedModel, embedded
from torch import nn

from fieldguide.answer import choose as choosing
from fieldguide.answer.calibrate import measure
from fieldguide.answer.choose import choose, choose_all, parts, score_all
from fieldguide.answer.forest import Forest
from fieldguide.answer.trie import LabelTrie
from fieldguide.model.local import Started

LABELS = ("cat", "catfish", "dog", "dogfish", 'cow, "brown"', "鱼", "c")
LENGTHS, OFFSETS = (3, 31, 1, 12, 12, 7), (0, -19, 0, 5, -4, 0)
KINDS = ("llama", "mistral", "qwen2_5_vl")
close = {"atol": 1e-5, "rtol": 0}


@cache
def model(kind: str) -> RaggedModel:
    return RaggedModel(kind)


@cache
def pictures() -> Embedded:
    return embedded(LENGTHS, OFFSETS)


@cache
def started(kind: str) -> Started:
    return model(kind).start(QUESTION, pictures())


def alone(row: int) -> Embedded:
    return pictures().rows(slice(row, row + 1))


def test_the_fixture_is_ragged_and_shifted() -> None:
    one = started("llama")
    fixed = one.lengths[0] - LENGTHS[0]
    assert one.ragged
    assert one.lengths == tuple(fixed + length for length in LENGTHS)
    assert one.keys[0][0].shape[2] == fixed + max(LENGTHS)
    assert one.next_positions[1] == fixed + 31 - 19
    shifted = Embedded(pictures().visual, (0,) * len(LENGTHS)).rows(slice(1, 2))
    ids = model("llama").prompt.words("catfish")
    moved = model("llama").plain(alone(1), ids) - model("llama").plain(shifted, ids)
    assert moved.abs().max() > 1e-3  # an offset left out would be noticed


@pytest.mark.parametrize("kind", KINDS)
def test_forest_reads_what_single_rows_read(kind: str) -> None:
    one, forest = model(kind), Forest(model(kind), started(kind))
    everything = list(range(len(one.tokenizer)))
    paths = [tuple(one.label_tokens(label)[:depth]) for label in LABELS for depth in (1, 3)]
    wanted = [(row, path) for path in paths for row in range(len(LENGTHS))]
    first, second = wanted[::2], wanted[1::2]  # in two goes: the second reads behind the first
    found = forest.logits(first, [everything] * len(first)) + forest.logits(
        second, [everything] * len(second)
    )
    for (row, path), logits in zip(first + second, found, strict=True):
        plain = one.plain(alone(row), list(path))[-1]
        torch.testing.assert_close(logits.float(), plain, **close)


@pytest.mark.parametrize("kind", KINDS)
def test_extend_reads_what_single_rows_read(kind: str) -> None:
    one = model(kind)
    rows = [5, 1, 1, 2, 0, 4]
    tokens = [one.label_tokens(label)[: 1 + place] for place, label in enumerate(LABELS[:6])]
    before = [part.clone() for pair in started(kind).keys for part in pair]
    logits = one.extend(started(kind), rows, tokens)
    for found, row, ids in zip(logits, rows, tokens, strict=True):
        torch.testing.assert_close(found, one.plain(alone(row), ids)[-1], **close)
    after = [part for pair in started(kind).keys for part in pair]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_generate_writes_what_single_rows_write(kind: str) -> None:
    one = model(kind)
    for row in range(len(LENGTHS)):
        said = one.generate(started(kind), row, one.prompt.words("It "), 8)
        read = one.prompt.words("It ")
        for token in said:
            assert token == int(one.plain(alone(row), read)[-1].argmax())
            read.append(token)
        assert len(said) == 8 or int(one.plain(alone(row), read)[-1].argmax()) == one.prompt.end_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [10_000, 80, 1])
def test_labels_are_scored_alike_alone_and_among_others(
    monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int
) -> None:
    one = model(kind)
    trie = LabelTrie({label: one.label_tokens(label) for label in LABELS})
    single = torch.cat([choose_all(one, QUESTION, alone(row), trie) for row in range(len(LENGTHS))])
    monkeypatch.setattr(choosing, "PROMPT_TOKENS", at_once)
    torch.testing.assert_close(score_all(one, started(kind), trie), single, **close)
    for row, scores in enumerate(choose(one, QUESTION, pictures(), trie, top_k=2)):
        assert [LABELS.index(score.label) for score in scores] == single[row].topk(2).indices.tolist()
    names = [LABELS[row] for row in range(len(LENGTHS))]
    loss, accuracy = measure(one, QUESTION, pictures(), names, trie, batch_size=4)
    assert loss == pytest.approx(float(-single[range(6), range(6)].mean()), abs=1e-5)
    assert accuracy == pytest.approx(float((single.argmax(1) == torch.arange(6)).float().mean()))


@pytest.mark.parametrize(("at_once", "sizes"), [(1, [1] * 6), (10_000, [6]), (100, [1, 1, 2, 2])])
def test_one_forest_holds_neighbours_up_to_a_length(
    monkeypatch: pytest.MonkeyPatch, at_once: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(choosing, "PROMPT_TOKENS", at_once)
    lengths = (90, 91, 40, 60, 50, 50)
    one = embedded(lengths, OFFSETS)
    keys = torch.stack([nn.functional.pad(v, (0, 0, 0, 91 - len(v))) for v in one.visual])[:, None]
    whole = Started(((keys, keys),), lengths, OFFSETS, torch.arange(6)[:, None])
    groups = list(parts(whole))
    assert [len(group) for group in groups] == sizes
    assert sum((group.lengths for group in groups), ()) == lengths
    assert sum((group.offsets for group in groups), ()) == OFFSETS
    assert torch.cat([group.logits for group in groups]).flatten().tolist() == list(range(6))
    assert all(group.keys[0][1].shape[2] == max(group.lengths) for group in groups)


def test_context_ends_where_a_sliding_window_does() -> None:
    assert model("llama").context == 1024
    assert model("mistral").context == 600
    assert model("qwen2_5_vl").context == 1024


def test_flash_attention_leaves_masks_of_single_tokens_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AttentionInterface

    one = RaggedModel("llama")
    config = one.decoder.config  # type: ignore[union-attr]
    trie = LabelTrie({label: one.label_tokens(label) for label in LABELS})
    begun = one.start(QUESTION, pictures())
    wanted = score_all(one, begun, trie)

    def flash(*args: object, **kwargs: object) -> None:
        raise AssertionError("read with flash attention")

    AttentionInterface.register("flash_made_up", flash)
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_made_up")
    torch.testing.assert_close(score_all(one, begun, trie), wanted, **close)
    assert config._attn_implementation == "flash_made_up"
    with pytest.raises(AssertionError, match="read with flash"):
        one.extend(begun.rows(slice(0, 1)), [0], [[65]])
