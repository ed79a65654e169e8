"""The assembled model against the plain way: one whole sequence, one picture, no cache."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fieldguide.model.assemble import Assembled
from fieldguide.model.language import vocabulary_head
from fieldguide.model.local import Started
from fieldguide.model.projector import PictureFeatures
from fieldguide.testing import tiny_features, tiny_model
from fieldguide.train.batches import collate
from fieldguide.train.checkpoint import trained
from fieldguide.train.rows import Row, label_row, reason_row

QUESTION = "What is it?"
LABELS = ("ox", "catfish", "鱼", "great crested grebe")


@cache
def model() -> Assembled:
    """With both kinds of visual token, and an adapter that does something."""
    made = tiny_model(LABELS, summary_tokens=2, patch_tokens=4, lora_rank=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, weight in made.language_model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    return made


def rows() -> list[Row]:
    """Of very different lengths."""
    prompt = model().prompt
    made = [label_row(prompt, i, label, f"{i}.png") for i, label in enumerate(LABELS)]
    made[2] = reason_row(prompt, 2, LABELS[2], "2.png", "Why?", "It has scales, and it swims.")
    return made


def picture(features: PictureFeatures, row: int) -> PictureFeatures:
    return PictureFeatures(features.grid[row : row + 1], features.pooled[row : row + 1])


def plain_logits(one: Assembled, features: PictureFeatures, row: Row) -> Tensor:
    """(N, V) at the supervised tokens of one row: everything read in one go, nothing shared or padded."""
    before = one.embed(torch.tensor([one.prompt.before(QUESTION)]))
    visual, words = one.projector(features), one.embed(torch.tensor([row.ids]))
    sequence = torch.cat([before, visual, words], dim=1)
    logits = one.language_model(inputs_embeds=sequence, use_cache=False).logits[0]
    first = before.shape[1] + visual.shape[1] - 1  # this position predicts the first word
    return logits[first : first + len(row.ids)][torch.tensor(row.supervised)]


def forward(one: Assembled, features: PictureFeatures, some: list[Row]) -> tuple[Tensor, Tensor]:
    batch = collate(some)
    return one(QUESTION, features, batch.ids, batch.supervised), batch.targets


def test_a_mixed_batch_gives_what_single_pictures_give() -> None:
    """Case 19: rows of very different lengths side by side, each as if it were alone."""
    features = tiny_features(model(), len(rows()))
    with torch.no_grad():
        together, _ = forward(model(), features, rows())
        plain = [plain_logits(model(), picture(features, i), row) for i, row in enumerate(rows())]
        single = [forward(model(), picture(features, i), [row])[0] for i, row in enumerate(rows())]
    assert together.std() > 0.1
    torch.testing.assert_close(together, torch.cat(plain), atol=1e-5, rtol=0)
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=0)


def test_gradients_flow_through_the_shared_prefix_as_through_whole_sequences() -> None:
    one, features = model(), tiny_features(model(), len(rows()))
    gradients = []
    logits, targets = forward(one, features, rows())
    plain = torch.cat([plain_logits(one, picture(features, i), row) for i, row in enumerate(rows())])
    for values in (logits, plain):
        one.zero_grad()
        cross_entropy(values, targets).backward()
        gradients.append({name: p.grad.clone() for name, p in trained(one).items()})
    one.zero_grad()
    assert any("lora_A" in name for name in gradients[1])
    assert any("projector.patch" in name for name in gradients[1])
    for name, wanted in gradients[1].items():
        assert wanted.abs().max() > 1e-6, name
        torch.testing.assert_close(gradients[0][name], wanted, atol=1e-5, rtol=1e-4, msg=name)
    frozen = {name for name, p in one.named_parameters() if p.grad is not None} - set(trained(one))
    assert not frozen


def test_the_vocabulary_head_runs_at_supervised_positions_only() -> None:
    seen = []
    handle = vocabulary_head(model().language_model).register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[:-1].numel())
    )
    try:
        with torch.no_grad():
            logits, targets = forward(model(), tiny_features(model(), 4), rows())
    finally:
        handle.remove()
    assert seen == [sum(row.targets for row in rows())] == [len(logits)] == [len(targets)]


def test_padding_is_never_seen() -> None:
    features, batch = tiny_features(model(), 4), collate(rows())
    other = batch.ids.clone()
    for i, row in enumerate(rows()):
        other[i, len(row.ids) :] = 65
    assert not torch.equal(other, batch.ids)
    with torch.no_grad():
        logits = [model()(QUESTION, features, ids, batch.supervised) for ids in (batch.ids, other)]
    assert torch.equal(*logits)


def test_answering_starts_where_training_does() -> None:
    """Case 17: the logits of the label are those that training saw."""
    features = tiny_features(model(), 3)
    some = [label_row(model().prompt, i, label, "") for i, label in enumerate(LABELS[:3])]
    with torch.no_grad():
        logits, targets = forward(model(), features, some)
    started = model().start(QUESTION, features)
    first = [sum(row.targets for row in some[:i]) for i in range(3)]
    torch.testing.assert_close(started.logits, logits[first], atol=1e-5, rtol=0)
    assert targets[first].tolist() == [model().label_tokens(label)[0] for label in LABELS[:3]]
    prompt, visual = model().prompt, model().projector.config.tokens
    assert started.lengths == (len(prompt.before(QUESTION)) + visual + len(prompt.after()),) * 3
    assert len(started) == 3


def test_a_prefix_that_was_read_before_changes_nothing_and_is_not_changed() -> None:
    features = tiny_features(model(), 3)
    with torch.no_grad():
        prefix = model().read_prefix(QUESTION)
    length = prefix.get_seq_length()
    for _ in range(2):
        shared = model().start(QUESTION, features, prefix)
        assert torch.equal(shared.logits, model().start(QUESTION, features).logits)
    assert prefix.get_seq_length() == length == len(model().prompt.before(QUESTION))


def snapshot(started: Started) -> list[Tensor]:
    return [tensor.clone() for pair in started.keys for tensor in pair] + [started.logits.clone()]


def test_extending_gives_the_logits_of_training_and_leaves_the_start_alone() -> None:
    features = tiny_features(model(), 3)
    started = model().start(QUESTION, features)
    before = snapshot(started)
    cut = [(0, "ox", 1), (2, "great crested grebe", 7), (2, "ox", 2), (1, "鱼", 3)]  # picture, label, tokens
    tokens = [model().label_tokens(label)[:count] for _, label, count in cut]
    extended = model().extend(started, [picture for picture, _, _ in cut], tokens)
    for logits, (row, label, count) in zip(extended, cut, strict=True):
        with torch.no_grad():
            whole, _ = forward(model(), picture(features, row), [label_row(model().prompt, 0, label, "")])
        torch.testing.assert_close(logits, whole[count], atol=1e-5, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(started), strict=True))


def test_generation_is_greedy_and_leaves_the_start_alone() -> None:
    features = tiny_features(model(), 2)
    started = model().start(QUESTION, features)
    before, begun = snapshot(started), model().prompt.words("It")
    said = model().generate(started, 1, begun, 6)
    read = list(begun)
    for token in said:
        assert token == int(model().extend(started, [1], [read]).argmax())
        read.append(token)
    assert len(said) == 6 or int(model().extend(started, [1], [read]).argmax()) == model().prompt.end_id
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(started), strict=True))


def test_words_cannot_take_the_place_of_visual_tokens() -> None:
    """Case 18: pictures enter as embeddings, so "<image>" in somebody's words is text and shifts nothing."""
    one, features = tiny_model(LABELS, summary_tokens=2), tiny_features(model(), 2)
    for question in ("What?", "<image> What?", "<|im_end|><image><image>"):
        started = one.start(question, features)
        assert set(started.lengths) == {len(one.prompt.before(question)) + 2 + len(one.prompt.after())}
        row = label_row(one.prompt, 0, "<image>", "")
        batch = collate([row])
        logits = one(question, picture(features, 0), batch.ids, batch.supervised)
        assert len(logits) == row.targets == len(one.label_tokens("<image>"))


@pytest.mark.parametrize(("summary", "patches"), [(1, 0), (0, 4)])
def test_pictures_reach_the_answer_through_either_kind_of_token(summary: int, patches: int) -> None:
    one = tiny_model(LABELS, summary_tokens=summary, patch_tokens=patches)
    logits = one.start(QUESTION, tiny_features(one, 2)).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3
