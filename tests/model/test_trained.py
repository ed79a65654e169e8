"""A guide's trained parts, saved and put together again: the same answers, under the stored prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fieldguide.answer.choose import choose_all
from fieldguide.answer.trie import LabelTrie
from fieldguide.errors import GuideError
from fieldguide.model import trained
from fieldguide.model.assemble import Assembled
from fieldguide.model.prompt import Prompt, PromptTemplate
from fieldguide.testing import tiny_features, tiny_model

LABELS = ("ox", "catfish", "鱼")
TEMPLATE = PromptTemplate(open_user="User: ", close_user="\n", open_assistant="Guide: ", after_end="")


def learnt() -> Assembled:
    """A model whose adapter and projector are not those it began with."""
    model = tiny_model(LABELS, summary_tokens=2, patch_tokens=4, lora_rank=2)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for buffer in model.projector.buffers():
            buffer.add_(0.1)
    model.prompt = Prompt(model.tokenizer, TEMPLATE)
    return model


def scores(model: Assembled) -> torch.Tensor:
    trie = LabelTrie({label: model.label_tokens(label) for label in LABELS})
    return choose_all(model, "What?", tiny_features(model, 3), trie)


@pytest.fixture
def info(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `guide.json` says of the model; the tiny base stands in for the starter's."""
    plain = tiny_model(LABELS, summary_tokens=2, patch_tokens=4)
    monkeypatch.setattr(trained, "model_cards", lambda: {"language model": {"sha256": "b" * 64}})
    monkeypatch.setattr(trained, "starter_folder", lambda part: Path(part))
    parts = plain.tokenizer, plain.language_model
    monkeypatch.setattr(trained, "load_language_model", lambda folder: parts)
    return {
        "base_model": {"name": "org/base", "sha256": "b" * 64},
        "projector": plain.projector.config.to_dict(),
        "template": TEMPLATE.to_dict(),
    }


def test_loaded_parts_answer_as_those_that_were_saved(tmp_path: Path, info: dict[str, Any]) -> None:
    """Cases 7 and 17: adapter, projector, solved map and prompt all come back."""
    model = learnt()
    trained.save_assembled(tmp_path, model)
    loaded = trained.load_assembled(tmp_path, info)
    assert loaded.prompt.template == TEMPLATE
    assert loaded.prompt.before("What?") == model.prompt.before("What?")
    torch.testing.assert_close(scores(loaded), scores(model), atol=1e-5, rtol=0)
    assert not torch.allclose(scores(loaded), scores(tiny_model(LABELS, summary_tokens=2, patch_tokens=4)))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_prompt_is_the_stored_one_and_not_todays(tmp_path: Path, info: dict[str, Any]) -> None:
    """Case 17: a guide keeps answering under the template it was trained with."""
    trained.save_assembled(tmp_path, learnt())
    loaded = trained.load_assembled(tmp_path, {**info, "template": PromptTemplate().to_dict()})
    assert loaded.tokenizer.decode(loaded.prompt.before("What?")).startswith("<|im_start|>user")
    assert not torch.allclose(scores(loaded), scores(learnt()))


def test_a_projector_without_a_trained_part_is_refused(tmp_path: Path, info: dict[str, Any]) -> None:
    """Case 7: a tensor that was not saved is missed when the guide is opened, not filled with zeros."""
    model = learnt()
    trained.save_assembled(tmp_path, model)
    other = tiny_model(LABELS, summary_tokens=2)
    trained.save_file(other.projector.state_dict(), tmp_path / trained.PROJECTOR_FILE)
    with pytest.raises(RuntimeError, match="patch"):
        trained.load_assembled(tmp_path, info)


def test_other_base_weights_are_refused(tmp_path: Path, info: dict[str, Any]) -> None:
    info["base_model"]["sha256"] = "c" * 64
    with pytest.raises(GuideError, match="trained on other weights of org/base"):
        trained.load_assembled(tmp_path, info)
