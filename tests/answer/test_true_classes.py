"""Batches of mixed pictures through the true model classes, against each network's own forward (case 19)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fieldguide.answer.forest import Forest
from fieldguide.model.families import family_of
from fieldguide.model.hub import HubModel, HubPictures
from fieldguide.model.prompt import Prompt
from fieldguide.model.template import template_from_chat
from fieldguide.testing.hub import KINDS, tiny_hub

QUESTION = "What is it?"
SIZES = ([(40, 40)], [(90, 40)], [(33, 80), (40, 40)], [])  # one picture, a wide one, two, none


def opened(kind: str) -> tuple[HubModel, HubPictures]:
    """A tiny model of a kind, and four rows of pictures that take different numbers of positions."""
    network, processor = tiny_hub(kind)
    tokenizer, family = getattr(processor, "tokenizer", processor), family_of(network.config)
    mark = tokenizer.decode([network.config.image_token_id]) if family.vision else ""
    prompt = Prompt(tokenizer, template_from_chat(processor, tokenizer, mark))
    model = HubModel(network, tokenizer, prompt, processor if mark else None, family).eval()
    noise = np.random.default_rng(0)
    rows = [
        [Image.fromarray(noise.integers(0, 256, (high, wide, 3), dtype=np.uint8)) for wide, high in row]
        for row in (SIZES if mark else ([], []))
    ]
    return model, HubPictures(tuple(model.prepare(row) for row in rows))


@torch.no_grad()
def own_logits(model: HubModel, row: HubPictures, tokens: list[int]) -> torch.Tensor:
    """(V,) behind the tokens after one row's prompt, by the network alone: no cache, no batch."""
    [item] = row.items
    shown = bool(item.tokens)
    ids = [*model.prompt.before(QUESTION, shown), *item.tokens, *model.prompt.after(QUESTION, shown), *tokens]
    read, more = torch.tensor([ids]), {}
    if shown:
        more = model.joined(item.shown)
    if hasattr(model.bare.model, "get_rope_index"):
        more["mm_token_type_ids"] = (read == model.image_token).int()
    whole: Any = model.network(input_ids=read, attention_mask=torch.ones_like(read), **more)
    return whole.logits[0, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_read_what_the_network_reads_row_by_row(kind: str) -> None:
    model, pictures = opened(kind)
    started = model.start(QUESTION, pictures)
    assert started.ragged == bool(model.processor)
    assert any(started.offsets) == kind.startswith("qwen")
    tokens, everything = model.label_tokens("catfish")[:4], list(range(len(model.tokenizer)))
    count = len(pictures)
    extended = model.extend(started, range(count), [tokens] * count)
    wanted = [(row, tuple(tokens)) for row in range(count)]
    grown = Forest(model, started).logits(wanted, [everything] * count)
    for row in range(count):
        alone = pictures.rows(slice(row, row + 1))
        wanted_logits = own_logits(model, alone, tokens)
        after = model.prompt.after(QUESTION, bool(alone.items[0].tokens))
        ids = torch.tensor([[*after, *tokens, 0]])
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[0, -1] = True
        with torch.no_grad():
            trained = model(QUESTION, alone, ids, last)[0]
        for found in (extended[row], grown[row].float()[: len(wanted_logits)], trained):
            torch.testing.assert_close(found, wanted_logits, atol=1e-5, rtol=0)
        said = model.generate(started, row, tokens, 3)
        assert said[:1] == [int(wanted_logits.argmax())] or int(wanted_logits.argmax()) == model.prompt.end_id
