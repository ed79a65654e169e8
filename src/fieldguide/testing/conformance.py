"""The public check that a kind of model keeps the promises that training and answering rely on.

from fieldguide.testing import check_model

check_model(model, pictures)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from fieldguide.errors import DataError
from fieldguide.model.local import LocalModel, Started
from fieldguide.train.batches import collate
from fieldguide.train.rows import check_lengths, label_row

WORDS = ("ox", "cat", "catfish", "aardvark")


def check_model(
    model: LocalModel,
    pictures: Any,
    *,
    question: str = "What is in this picture?",
    reload: Callable[[LocalModel], LocalModel] | None = None,
    trains: Collection[str] | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Check one model on a batch of pictures, best of mixed sizes.

    Args:
        model: in evaluation mode.
        pictures: a batch in the model's own form, at least two.
        reload: saves the model and loads it again; None leaves that promise unchecked.
        trains: the parts declared to train, as `part_of` names them; None leaves that promise unchecked.
        tolerance: of logits, absolute.

    Raises:
        AssertionError: naming the promise that is broken.
    """
    assert len(pictures) > 1, "give at least two pictures"
    _check_parts(model)
    together = model.start(question, pictures, model.read_prefix(question))
    _check_lengths(model, pictures, together, question)
    _check_batch(model, pictures, together, question, tolerance)
    _check_training(model, pictures, together, question, tolerance)
    if trains is not None:
        _check_trained_parts(model, pictures, question, trains)
    if reload is not None:
        again = reload(model).start(question, pictures).logits
        plain = model.start(question, pictures).logits
        assert torch.equal(again, plain), "a model that was saved and loaded answers otherwise"


def _check_parts(model: LocalModel) -> None:
    nameless = [name for name, _ in model.named_parameters() if not model.part_of(name)]
    assert not nameless, f"{nameless[0]} belongs to no part"
    assert model.context > 0, "the context has no length"


def _check_lengths(model: LocalModel, pictures: Any, together: Started, question: str) -> None:
    """The prompt read is the prompt rendered, picture tokens and all; rows beyond the context are refused."""
    for row, visual in enumerate(model.visual_tokens(pictures)):
        shown = visual > 0
        rendered = len(model.prompt.before(question, shown)) + len(model.prompt.after(question, shown))
        assert together.lengths[row] == rendered + visual, f"prompt {row} was not read as it was rendered"
    one = label_row(model.prompt, 0, WORDS[0], "row", question)
    before, visual = len(model.prompt.before(question)), max(model.visual_tokens(pictures))
    whole = before + visual + len(one.ids)
    check_lengths([one], before, visual, whole)
    try:
        check_lengths([one], before, visual, whole - 1)
    except DataError:
        return
    raise AssertionError("a row longer than the context is not refused")


def _check_batch(
    model: LocalModel, pictures: Any, together: Started, question: str, tolerance: float
) -> None:
    """Each picture is answered in the batch as it is alone."""
    tokens = [model.label_tokens(WORDS[row % len(WORDS)]) for row in range(len(pictures))]
    extended = model.extend(together, range(len(pictures)), tokens)
    for row in range(len(pictures)):
        alone = model.start(question, pictures.rows(slice(row, row + 1)))
        _close(alone.logits[0], together.logits[row], tolerance, f"picture {row} in the batch and alone")
        further = model.extend(alone, [0], [tokens[row]])[0]
        _close(further, extended[row], tolerance, f"what follows picture {row}, in the batch and alone")
        said = model.generate(together, row, tokens[row], 4)
        assert model.generate(alone, 0, tokens[row], 4) == said, (
            f"words after picture {row} depend on the batch"
        )


def _check_training(
    model: LocalModel, pictures: Any, together: Started, question: str, tolerance: float
) -> None:
    """Training sees the prompt that answering sees, and the same logits."""
    words: Sequence[str] = [WORDS[row % len(WORDS)] for row in range(len(pictures))]
    rows = [label_row(model.prompt, row, word, word, question) for row, word in enumerate(words)]
    for row, word in zip(rows, words, strict=True):
        rendered = (*model.prompt.after(question), *model.label_tokens(word))
        assert row.ids == rendered, "training and answering render different prompts"
    batch = collate(rows, model.device)
    with torch.no_grad():
        logits = model(question, pictures, batch.ids, batch.supervised)
    assert len(logits) == sum(row.targets for row in rows), (
        "forward gives not one row of logits a learnt token"
    )
    place = 0
    for number, (row, word) in enumerate(zip(rows, words, strict=True)):
        tokens = model.label_tokens(word)
        _close(
            logits[place],
            together.logits[number],
            tolerance,
            "the first learnt token, in training and answering",
        )
        for depth in range(1, len(tokens)):
            told = model.extend(together, [number], [tokens[:depth]])[0]
            _close(logits[place + depth], told, tolerance, "a later learnt token, in training and answering")
        place += row.targets


def _check_trained_parts(model: LocalModel, pictures: Any, question: str, declared: Collection[str]) -> None:
    """Declared parts train and the loss reaches them, adapters to the last one; nothing else trains."""
    parts = {model.part_of(name) for name, _ in model.named_parameters()}
    missing = sorted(set(declared) - parts)
    assert not missing, f"the model has no part {missing[0]!r}, which is declared to train"
    for name, parameter in model.named_parameters():
        part = model.part_of(name)
        state = "trains" if parameter.requires_grad else "does not train"
        assert parameter.requires_grad == (part in declared), (
            f"{name} ({part}) {state}, against what is declared"
        )
    row = label_row(model.prompt, 0, WORDS[0], WORDS[0], question)
    batch = collate([row] * len(pictures), model.device)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        return
    loss = model(question, pictures, batch.ids, batch.supervised).float().square().mean()
    reached = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    learning: set[str] = set()
    for name, gradient in zip(trained, reached, strict=True):
        learning |= {model.part_of(name)} if gradient is not None else set()
        # Of a part that trains as a whole, some may be idle: LLaVA leaves the end of its tower unread.
        idle = gradient is None and "lora_" in name
        assert not idle, f"the loss does not depend on {name}: an adapter that cannot learn"
    for part in declared:
        assert part in learning, f"the loss does not depend on the part {part!r}, which is declared to train"


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float, what: str) -> None:
    apart = float((one.float() - other.float()).abs().max())
    assert apart <= tolerance, f"{what}: logits differ by {apart:.2g}"
