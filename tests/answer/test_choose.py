"""Choosing against the plain way: every label alone, by a full forward pass."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.answer import choose as choosing
from fieldguide.answer import forest as forests
from fieldguide.answer.choose import choose, choose_all, search
from fieldguide.answer.forest import Forest
from fieldguide.answer.trie import LabelTrie
from fieldguide.model.assemble import Assembled
from fieldguide.model.projector import PictureFeatures
from fieldguide.testing import tiny_features, tiny_model

QUESTION = "What is it?"
LABELS = ("cat", "catfish", "cattle egret", "dog", "dogfish", 'cow, "brown"', "鱼", "鱼ü", "c", "<|im_end|>")


@cache
def model() -> Assembled:
    return tiny_model(LABELS, merges=("cat", "dog"))


def trie_for(model: Assembled, labels: tuple[str, ...] = LABELS) -> LabelTrie:
    return LabelTrie({label: model.label_tokens(label) for label in labels})


def row_of(features: PictureFeatures, row: int) -> PictureFeatures:
    return PictureFeatures(features.grid[row : row + 1], features.pooled[row : row + 1])


@torch.no_grad()
def plain_score(
    model: Assembled, picture: PictureFeatures, tokens: list[int], others: list[list[int]]
) -> float:
    """Log-score of a label from one full forward pass of it alone; `others` are the tokens of all labels."""
    after = model.prompt.after()
    supervised = torch.tensor([[False] * len(after) + [True] * len(tokens)])
    logits = model(QUESTION, picture, torch.tensor([after + tokens]), supervised).double()
    score = 0.0
    for depth, token in enumerate(tokens):
        allowed = sorted({ids[depth] for ids in others if ids[:depth] == tokens[:depth]})
        score += float(logits[depth, allowed].log_softmax(0)[allowed.index(token)])
    return score


def plain_scores(model: Assembled, features: PictureFeatures, labels: tuple[str, ...]) -> torch.Tensor:
    tokens = [model.label_tokens(label) for label in labels]
    return torch.tensor(
        [
            [plain_score(model, row_of(features, row), ids, tokens) for ids in tokens]
            for row in range(len(features.grid))
        ]
    )


def test_all_scores_are_those_of_full_forward_passes() -> None:
    features = tiny_features(model(), 4)
    scores = choose_all(model(), QUESTION, features, trie_for(model()))
    torch.testing.assert_close(scores.float(), plain_scores(model(), features, LABELS), atol=1e-4, rtol=0)


def test_adapter_and_patch_tokens_take_part() -> None:
    from fieldguide.model.language import attach_adapter

    plain = tiny_model(LABELS[:5], patch_tokens=4)
    features = tiny_features(plain, 2)
    before = choose_all(plain, QUESTION, features, trie_for(plain, LABELS[:5]))
    plain.language_model = attach_adapter(plain.language_model, rank=2, alpha=4, dropout=0.0, base_name="x")
    for name, weight in plain.language_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    plain.eval()
    scores = choose_all(plain, QUESTION, features, trie_for(plain, LABELS[:5]))
    assert (scores - before).abs().max() > 0.01
    torch.testing.assert_close(scores.float(), plain_scores(plain, features, LABELS[:5]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_probabilities_of_all_labels_sum_to_one(temperature: float) -> None:
    features = tiny_features(model(), 3)
    for scores in choose(
        model(), QUESTION, features, trie_for(model()), top_k=len(LABELS), temperature=temperature
    ):
        assert {score.label for score in scores} == set(LABELS)
        assert math.fsum(score.probability for score in scores) == pytest.approx(1, abs=1e-9)
        assert all(0 <= score.probability <= 1 for score in scores)


def test_the_temperature_divides_the_logits_of_every_branch_and_leaves_the_log_score() -> None:
    features, labels = tiny_features(model(), 2), ("c", "cat", "dog")
    trie = trie_for(model(), labels)
    hot = choose(model(), QUESTION, features, trie, top_k=3, temperature=2.0)
    plain = choose_all(model(), QUESTION, features, trie)
    for row, scores in enumerate(hot):
        expected = (plain[row] / 2).softmax(0)  # three first tokens, one branch
        for score in scores:
            number = labels.index(score.label)
            assert score.probability == pytest.approx(float(expected[number]), abs=1e-6)
            assert score.log_score == pytest.approx(float(plain[row, number]), abs=1e-6)


words = st.lists(st.text("ab", min_size=0, max_size=5), min_size=1, max_size=30, unique=True)


@settings(max_examples=40, deadline=None)
@given(words, st.integers(1, 6), st.sampled_from([0.3, 1.0, 4.0]), st.integers(0, 3))
def test_the_search_finds_the_true_best(labels: list[str], top_k: int, temperature: float, seed: int) -> None:
    features = tiny_features(model(), 2, seed)
    trie = trie_for(model(), tuple(labels))
    chosen = choose(model(), QUESTION, features, trie, top_k=top_k, temperature=temperature)
    every = choose_all(model(), QUESTION, features, trie, temperature=temperature)
    for row, scores in enumerate(chosen):
        assert len(scores) == min(top_k, len(labels))
        values = [float(every[row, labels.index(score.label)]) for score in scores]
        close = {"abs": 1e-5, "rel": 1e-5}  # 32 bits, in which a low temperature leaves large numbers
        assert values == pytest.approx([math.log(score.probability) for score in scores], **close)
        assert values == pytest.approx(every[row].topk(len(scores)).values.tolist(), **close)


def test_with_the_true_best_found_most_branches_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = tuple(f"{a}{b}{c}{d}" for a in "abcdef" for b in "ghij" for c in "klmn" for d in "op")
    trie = trie_for(model(), labels)
    read = []
    original = Forest.logits

    def counted(self: Forest, wanted: list, allowed: list) -> list[torch.Tensor]:
        read.extend(wanted)
        return original(self, wanted, allowed)

    monkeypatch.setattr(Forest, "logits", counted)
    features = tiny_features(model(), 1)
    choose(model(), QUESTION, features, trie, top_k=1, temperature=0.25)
    assert len(trie.branches) == 1 + 6 + 24 + 96
    assert len(read) < 30


def silent(labels: tuple[str, ...]) -> Assembled:
    """A model to which every token is equally likely."""
    flat = tiny_model(labels)
    torch.nn.init.zeros_(flat.language_model.get_output_embeddings().weight)
    return flat


def test_length_neither_favours_nor_harms_a_label() -> None:
    """Case 32: to a model without an opinion labels of any length are equally likely."""
    labels = ("a", "bbbbbbbb", "cc and much more of it", "鱼鱼鱼")
    flat = silent(labels)
    trie = trie_for(flat, labels)
    [scores] = choose(flat, QUESTION, tiny_features(flat, 1), trie, top_k=4)
    assert [score.probability for score in scores] == pytest.approx([0.25] * 4, abs=1e-7)


def test_equal_labels_come_in_the_order_of_the_labels() -> None:
    labels = tuple("zyxwvutsrq")
    flat = silent(labels)
    for scores in choose(flat, QUESTION, tiny_features(flat, 2), trie_for(flat, labels), top_k=4):
        assert [score.label for score in scores] == ["z", "y", "x", "w"]


def test_a_picture_is_answered_alike_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 19: a batch answers as its pictures do one by one."""
    features, trie = tiny_features(model(), 7), trie_for(model())
    alone = [choose(model(), QUESTION, row_of(features, row), trie, top_k=4)[0] for row in range(7)]
    for prompt_tokens in (10_000, 60):  # all in one forest; two to a forest
        monkeypatch.setattr(choosing, "PROMPT_TOKENS", prompt_tokens)
        together = choose(model(), QUESTION, features, trie, top_k=4, prefix=model().read_prefix(QUESTION))
        for one, other in zip(alone, together, strict=True):
            assert [score.label for score in one] == [score.label for score in other]
            probabilities = [score.probability for score in other]
            assert [score.probability for score in one] == pytest.approx(probabilities, abs=1e-6)


def test_trees_that_are_cut_down_grow_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    features, trie = tiny_features(model(), 2), trie_for(model())
    expected = choose_all(model(), QUESTION, features, trie)
    monkeypatch.setattr(forests, "TOKENS_KEPT", 1)
    monkeypatch.setattr(forests, "TOKENS_AT_ONCE", 2)
    monkeypatch.setattr(choosing, "BRANCHES_A_ROUND", 1)
    torch.testing.assert_close(choose_all(model(), QUESTION, features, trie), expected, atol=1e-5, rtol=0)
    for row, scores in enumerate(choose(model(), QUESTION, features, trie, top_k=len(LABELS))):
        for score in scores:
            found = math.log(score.probability)
            assert found == pytest.approx(float(expected[row, LABELS.index(score.label)]), abs=1e-5)


def test_started_pictures_stay_as_they_were() -> None:
    started = model().start(QUESTION, tiny_features(model(), 2))
    first = search(model(), started, trie_for(model()), top_k=3)
    length = started.keys[0][0].shape[2]
    assert search(model(), started, trie_for(model()), top_k=3) == first
    assert started.keys[0][0].shape[2] == length == max(started.lengths)


def test_one_label_is_certain() -> None:
    trie = trie_for(model(), ("cat",))
    [[score]] = choose(model(), QUESTION, tiny_features(model(), 1), trie, top_k=5)
    assert (score.label, score.probability) == ("cat", 1.0)


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"temperature": 0.0}, {"temperature": math.inf}])
def test_impossible_arguments_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        choose(model(), QUESTION, tiny_features(model(), 1), trie_for(model()), **wrong)
