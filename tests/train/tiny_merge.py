"""Bases, adapters and probe rows for the tests of merging: true classes, tiny and random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import BitsAndBytesConfig

from fieldguide.testing.hub import tiny_hub
from fieldguide.train.fingerprints import adapter_files, base_hash, tensors_hash
from fieldguide.train.folder import Licence
from fieldguide.train.identity import MergeIdentity

# The linear layers of the language part, and the projector's parameters.
LANGUAGE = {
    "llava": r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    "smolvlm": r"model\.text_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    "qwen2_5_vl": r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    "llama": r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    "phi3": r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    "mistral": r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
}
PROJECTOR = {"llava": ".multi_modal_projector.", "smolvlm": ".connector.", "qwen2_5_vl": ".merger."}
NOT_QUANTISED = ("vision_tower", "visual", "vision_model", "multi_modal_projector", "connector")
LICENCE = Licence("base model", "tiny", "Apache-2.0", "made in the test", "Apache License, Version 2.0 …")
LINES = ("What is it?", "Name the bird, please.", "A")


def base_folder(kind: str, folder: Path, *, seed: int = 0, tied: bool = False) -> tuple[Path, Any]:
    """Write a base as transformers does: (folder, processor)."""
    network, processor = tiny_hub(kind, seed)
    if tied:
        network.config.tie_word_embeddings = True
        network.tie_weights()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, processor


def load_base(
    kind: str,
    folder: Path,
    *,
    quantise: str = "",
    dtype: torch.dtype = torch.float32,
    skip: tuple[str, ...] = NOT_QUANTISED,
) -> Any:
    """The base as training loads it: `quantise` is "", "nf4" or "nf4 double"; the tower stays as it is."""
    more: dict[str, Any] = {}
    if quantise:
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=quantise == "nf4 double",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["lm_head", *(f"model.{part}" for part in skip)],
        )
    made = type(tiny_hub(kind)[0])
    network = made.from_pretrained(folder, dtype=dtype, local_files_only=True, **more)
    return network.eval().requires_grad_(False)


def write_adapter(
    kind: str, network: Any, folder: Path, *, seed: int = 1, size: float = 0.1, **lora: Any
) -> Path:
    """An adapter on the language part with weights as after training; the network is left bare again."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LANGUAGE[kind], task_type="CAUSAL_LM", **lora)
    adapted = get_peft_model(network, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            scale = size if "lora_B" in name else 0.2
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(str(folder))
    adapted.unload()
    return folder


def trained_projector(kind: str, network: Any) -> dict[str, Tensor]:
    """The projector's parameters as after training."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: (p + 0.05 * torch.randn(p.shape, generator=generator).to(p)).detach()
        for name, p in network.named_parameters()
        if PROJECTOR.get(kind, "none") in name
    }


def identity_of(
    network: Any, adapter: Path | None, full: Mapping[str, Tensor], *, quantised: bool = False
) -> MergeIdentity:
    """What training would have recorded."""
    return MergeIdentity(
        "tiny", base_hash(network, full), adapter_files(adapter), tensors_hash(full), quantised, (LICENCE,)
    )


def probes(kind: str, draw: Callable[..., Any]) -> list[Callable[[Any], dict[str, Any]]]:
    """Rows that their processor prepares: a picture where it takes one, a question, a supervised answer."""
    sizes = ((64, 48), (40, 70), (64, 64))
    return [
        _probe(kind, draw(n, size), text) for n, (size, text) in enumerate(zip(sizes, LINES, strict=True))
    ]


def _probe(kind: str, picture: Any, text: str) -> Callable[[Any], dict[str, Any]]:
    mark = "<|vision_start|><|image_pad|><|vision_end|>" if kind.startswith("qwen") else "<image>"

    def prepare(processor: Any) -> dict[str, Any]:
        if kind in PROJECTOR:
            row = dict(
                processor(text=[f"{mark}{text} It is a tern."], images=[[picture]], return_tensors="pt")
            )
        else:
            row = dict(processor([f"{text} It is a tern."], return_tensors="pt"))
        labels = row["input_ids"].clone()
        labels[:, :-6] = -100
        return {**row, "labels": labels}

    return prepare
