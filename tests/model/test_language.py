"""Loading the language model, and an adapter that touches what it should and travels as PEFT's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from fieldguide.errors import GuideError, ModelMissing
from fieldguide.model.language import attach_adapter, load_adapter, load_language_model, save_adapter
from fieldguide.testing import tiny_model

LAYERS = 2
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model's folder."""
    folder = tmp_path_factory.mktemp("language") / "tiny"
    made = tiny_model(["a"], layers=LAYERS)
    made.language_model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def adapted(base: Path, seed: int = 0) -> PeftModel:
    """The language model with an adapter that does something."""
    torch.manual_seed(seed)
    model = attach_adapter(load_language_model(base)[1], rank=4, alpha=8, dropout=0.1, base_name="org/tiny")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([[72, 101, 108, 108, 111]])).logits


def test_loaded_model_is_frozen_exact_and_in_fp32(base: Path) -> None:
    tokenizer, model = load_language_model(base)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(logits(model), logits(tiny_model(["a"], layers=LAYERS).language_model))
    assert tokenizer.decode(tokenizer.encode("catfish 鱼")) == "catfish 鱼"


def test_a_folder_without_a_model_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="no language model there") as caught:
        load_language_model(tmp_path)
    assert caught.value.hint == "fieldguide models get starter"


def test_adapter_sits_on_every_linear_layer_of_the_decoder_and_nowhere_else(base: Path) -> None:
    """Case 9: what is frozen has no adapter either."""
    model = adapted(base)
    wanted = {
        f"base_model.model.model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
        for layer in range(LAYERS)
        for name in PROJECTIONS
    }
    assert {name for name, module in model.named_modules() if hasattr(module, "lora_A")} == wanted
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{side}.default.weight" for name in wanted for side in "AB"}


def test_a_fresh_adapter_changes_no_answer(base: Path) -> None:
    plain = load_language_model(base)[1]
    wanted = logits(plain)
    fresh = attach_adapter(plain, rank=4, alpha=8, dropout=0.0, base_name="org/tiny")
    assert torch.equal(logits(fresh), wanted)
    assert not torch.equal(logits(adapted(base)), wanted)


def test_an_adapter_that_matches_no_module_is_an_error() -> None:
    other = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="not found in the base model"):
        attach_adapter(other, rank=2, alpha=4, dropout=0.0, base_name="org/other")


def test_saved_and_loaded_adapter_answers_exactly_the_same(base: Path, tmp_path: Path) -> None:
    model = adapted(base)
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(load_language_model(base)[1], tmp_path / "adapter")
    assert torch.equal(logits(loaded.eval()), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_plain_peft_loads_the_adapter(base: Path, tmp_path: Path) -> None:
    model = adapted(base)
    save_adapter(model, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    assert torch.equal(logits(plain.eval()), logits(model))


def test_the_adapters_folder_holds_no_local_path_and_no_pickle(base: Path, tmp_path: Path) -> None:
    save_adapter(adapted(base), tmp_path / "adapter")
    files = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "org/tiny"
    assert str(base.parent) not in text
    assert str(tmp_path) not in text
    assert str(base.parent).encode() not in (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("change", ["renamed", "missing"])
def test_an_adapter_whose_tensors_find_no_module_is_refused(base: Path, tmp_path: Path, change: str) -> None:
    save_adapter(adapted(base), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    if change == "renamed":
        tensors = {name.replace(".layers.", ".blocks."): tensor for name, tensor in tensors.items()}
    else:
        tensors.pop(next(name for name in tensors if "q_proj.lora_B" in name))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(GuideError, match="the adapter does not fit this language model"):
        load_adapter(load_language_model(base)[1], tmp_path)
