"""4-bit weights stay as they were quantised, whatever they are asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from fieldguide.errors import FieldguideError
from fieldguide.model.fourbit import four_bit, keep_unpacked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.2, **sizes)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("double", [False, True])
def test_answering_changes_no_weight(folder: Path, double: bool) -> None:
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
    )
    network = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=settings, local_files_only=True
    ).requires_grad_(False)
    keep_unpacked(network)
    assert len(four_bit(network)) == 7
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ids = torch.arange(9)[None]
    with torch.no_grad():
        answered = network.eval()(ids).logits
        trained_on = network.train()(ids).logits
    assert torch.equal(answered, trained_on)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_that_were_repacked_are_refused(folder: Path) -> None:
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    network = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, local_files_only=True
    )
    four_bit(network)[0].weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(FieldguideError, match="repacked"):
        keep_unpacked(network)
