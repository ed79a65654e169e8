"""Export to Ollama: the adapter means the same in llama.cpp's order of rows, the template says the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import PeftModel
from tiny_merge import LICENCE, write_adapter

from fieldguide.errors import MergeError
from fieldguide.testing.hub import tiny_hub
from fieldguide.train.ollama import check_ollama, export_ollama, write_gguf_adapter

TEXT = ("llama", "mistral", "phi3")


def in_llama_cpp_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp does to query and key of Llama: rows i and i + half come to stand together."""
    rows = weight.shape[0] // heads
    order = [
        head * rows + pair + half * rows // 2
        for head in range(heads)
        for pair in range(rows // 2)
        for half in (0, 1)
    ]
    return weight[order]


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("rslora", [False, True])
def test_the_gguf_adapter_changes_llama_cpps_weights_as_peft_changes_ours(
    kind: str, rslora: bool, tmp_path: Path
) -> None:
    network, _ = tiny_hub(kind)
    adapter = write_adapter(kind, network, tmp_path / "adapter", use_rslora=rslora)
    base = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = network.config
    count = write_gguf_adapter(tmp_path / "adapter.gguf", adapter, config)
    merged = PeftModel.from_pretrained(network, str(adapter)).merge_and_unload().state_dict()
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == ("phi3" if kind == "phi3" else "llama")
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3 if kind == "phi3" else gguf.MODEL_ARCH.LLAMA, 2)
    changed = [name for name in base if not torch.equal(base[name], merged[name])]
    assert count == len(changed) == len(tensors) / 2 == (8 if kind == "phi3" else 14)
    for name in changed:
        place = names.get_name(name.removesuffix(".weight"))
        first, second = tensors[f"{place}.weight.lora_a"], tensors[f"{place}.weight.lora_b"]
        delta = fields["adapter.lora.alpha"] / first.shape[0] * second @ first
        wanted = merged[name] - base[name]
        if match := re.search(r"\.([qk])_proj", name):
            wanted = in_llama_cpp_order(wanted, {"q": 4, "k": 2}[match[1]])
        assert torch.allclose(delta, wanted, atol=1e-5), name


def test_a_modelfile_with_its_adapter(tmp_path: Path) -> None:
    network, tokenizer = tiny_hub("llama")
    adapter = write_adapter("llama", network, tmp_path / "adapter")
    file = export_ollama(
        tmp_path / "out",
        network.config,
        tokenizer,
        base="smollm2:135m",
        adapter_folder=adapter,
        licences=[LICENCE],
    )
    text = file.read_text(encoding="utf-8")
    assert text.startswith("FROM smollm2:135m\nADAPTER ./adapter.gguf\nTEMPLATE ")
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert 'LICENSE """Apache License' in text
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n" in text
    assert sorted(p.name for p in file.parent.iterdir()) == [
        "Modelfile",
        "adapter.gguf",
        "adapter_config.json",
    ]


def test_merged_weights_need_no_adapter(tmp_path: Path) -> None:
    network, tokenizer = tiny_hub("phi3")
    file = export_ollama(
        tmp_path / "out", network.config, tokenizer, base="../merged", adapter_folder=None, licences=[LICENCE]
    )
    assert file.read_text().startswith("FROM ../merged\nTEMPLATE ")
    assert "ADAPTER" not in file.read_text()


def test_extra_stops_and_unfit_words(tmp_path: Path) -> None:
    network, tokenizer = tiny_hub("llama")
    named: dict[str, Any] = {"base": "x", "adapter_folder": None, "licences": [LICENCE]}
    file = export_ollama(tmp_path / "a", network.config, tokenizer, stops=[tokenizer.bos_token_id], **named)
    assert file.read_text().count("PARAMETER stop") == 2
    with pytest.raises(MergeError, match="FROM"):
        export_ollama(tmp_path / "b", network.config, tokenizer, **{**named, "base": 'a"b'})
    with pytest.raises(MergeError, match="already there"):
        export_ollama(tmp_path / "a", network.config, tokenizer, **named)
    tokenizer.chat_template = None
    with pytest.raises(MergeError, match="no chat template"):
        export_ollama(tmp_path / "b", network.config, tokenizer, **named)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", ["llava", "smolvlm", "qwen2_5_vl"])
def test_why_a_model_that_sees_cannot_be_taken(kind: str) -> None:
    network, _ = tiny_hub(kind)
    for adapter in (True, False):
        with pytest.raises(MergeError, match="projector between vision encoder and language model") as caught:
            check_ollama(network.config, quantised=False, full=True, adapter=adapter)
        assert network.config.model_type in caught.value.message


def test_what_else_is_refused(tmp_path: Path) -> None:
    network, _ = tiny_hub("llama")
    with pytest.raises(MergeError, match="4-bit weights"):
        check_ollama(network.config, quantised=True, full=False, adapter=True)
    with pytest.raises(MergeError, match="cannot carry"):
        check_ollama(network.config, quantised=False, full=True, adapter=True)
    check_ollama(network.config, quantised=True, full=True, adapter=False)
    network.config.model_type = "gpt2"
    with pytest.raises(MergeError, match="cannot adapt a gpt2"):
        check_ollama(network.config, quantised=False, full=False, adapter=True)
    with pytest.raises(MergeError, match="reads no gpt2"):
        check_ollama(network.config, quantised=False, full=False, adapter=False)


def test_an_adapter_llama_cpp_has_no_place_for(tmp_path: Path) -> None:
    network, _ = tiny_hub("llama")
    adapter = write_adapter("llama", network, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(MergeError, match="use_dora"):
        write_gguf_adapter(tmp_path / "a.gguf", adapter, network.config)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    network.config.num_hidden_layers = 1
    with pytest.raises(MergeError, match=r"layers\.1"):
        write_gguf_adapter(tmp_path / "a.gguf", adapter, network.config)
