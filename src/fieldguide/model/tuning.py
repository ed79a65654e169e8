"""Which weights train, and in what arithmetic: each part frozen, under a LoRA adapter, or whole.

PEFT freezes all it does not know, a projector too, and adapters match names, not meanings: a tower can get
one by accident. So what is declared is set here, and then checked parameter by parameter.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fieldguide.errors import GuideError, SettingsError
from fieldguide.model.families import PARTS, Family, lora_targets
from fieldguide.settings import TrainSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def here() -> torch.device:
    """The device that this process trains and answers on."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def choose_precision(device: torch.device, wanted: str = "auto") -> tuple[str, str]:
    """("fp32" | "bf16" | "fp16", a sentence for the log).

    Raises:
        SettingsError: when fp16 is wanted on a CPU, whose kernels lack it.
    """
    if wanted != "auto":
        if wanted == "fp16" and device.type == "cpu":
            raise SettingsError("train.precision=fp16 is not to be had on a CPU", "use auto, fp32 or bf16")
        return wanted, f"arithmetic: {wanted}, as set"
    if device.type == "cpu":
        return "fp32", "arithmetic: fp32 (on a CPU, bf16 is slower and less exact)"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return "bf16", "arithmetic: bf16"
    return "fp16", "arithmetic: fp16 (this device has no bf16)"


def mixed_arithmetic(device: torch.device, precision: str) -> Any:
    """Within it a model answers that holds trained parts in fp32 beside others in 16 bits, as in training."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def choose_attention(device: torch.device, wanted: str = "auto") -> tuple[str, str]:
    """(transformers' name of the attention implementation, a sentence for the log).

    Raises:
        SettingsError: when flash attention is wanted and not to be had.
    """
    flash = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    if wanted == "flash" and not flash:
        raise SettingsError("train.attention=flash needs a GPU and the package flash-attn", "use auto")
    chosen = {"auto": "flash_attention_2" if flash else "sdpa", "flash": "flash_attention_2"}.get(
        wanted, wanted
    )
    return chosen, f"attention: {chosen.replace('_', ' ')}" + ("" if wanted == "auto" else ", as set")


def quantisation(settings: TrainSettings, precision: str, family: Family) -> Any:
    """transformers' settings for a language part in 4 bits; None for none.

    The vision tower, the projector and the vocabulary head stay as they are: they are small, and suffer most.

    Raises:
        SettingsError: when bitsandbytes is missing.
    """
    if not settings.quantise:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError("train.quantise=nf4 needs bitsandbytes", "pip install 'fieldguide[quant]'")
    from transformers import BitsAndBytesConfig

    left = [*family.vision, *family.projector]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantise,
        bnb_4bit_use_double_quant=settings.double_quant,
        bnb_4bit_compute_dtype=DTYPES[precision],
        llm_int8_skip_modules=[*left, "lm_head"],
    )


def prepare_parts(network: Any, family: Family, settings: TrainSettings, base_name: str) -> Any:
    """Make the parts of a network trainable as the settings say; returns it, wrapped by PEFT for LoRA.

    Args:
        network: all of it, freshly loaded.
        family: where its parts lie.
        settings: `language_part`, `vision_part`, `projector_part`, and those of LoRA.
        base_name: written into the adapter as the name of its base.

    Raises:
        GuideError: when a part to be trained is not there, or would train otherwise than declared.
    """
    modes = part_modes(family, settings)
    network.requires_grad_(False)
    if adapted := [part for part in PARTS if modes[part] == "lora"]:
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=lora_targets(network, family, adapted),
        )
        with warnings.catch_warnings():  # PEFT asks transformers for a property under its old name
            warnings.simplefilter("ignore", FutureWarning)
            network = get_peft_model(network, config)
        network.peft_config["default"].base_model_name_or_path = base_name
    for name, parameter in network.named_parameters():
        if modes[family.part_of(name)] == "full":
            if not parameter.is_floating_point():
                raise GuideError(
                    f"{name} is quantised and cannot be trained as a whole", "train it with LoRA"
                )
            parameter.requires_grad_(True)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small steps would vanish in 16 bits
    check_parts(network, family, modes)
    if settings.gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return network


def part_modes(family: Family, settings: TrainSettings) -> dict[str, str]:
    """How each part is trained: frozen, lora or full. Parts that a family lacks are frozen."""
    modes = {part: str(getattr(settings, f"{part}_part")) for part in PARTS}
    if not family.vision:
        modes |= {"vision": "frozen", "projector": "frozen"}
    return modes


def check_parts(network: nn.Module, family: Family, modes: dict[str, str]) -> None:
    """Compare what trains with what was declared.

    Raises:
        GuideError: naming a part, and a parameter that trains or does not train against what was declared.
    """
    seen: dict[str, int] = dict.fromkeys(PARTS, 0)
    for name, parameter in network.named_parameters():
        part = family.part_of(name)
        wanted = {"frozen": False, "lora": "lora_" in name, "full": "lora_" not in name}[modes[part]]
        if parameter.requires_grad != wanted:
            state = "trains" if parameter.requires_grad else "does not train"
            raise GuideError(f"{name} {state}, though the {part} part is set to {modes[part]!r}")
        seen[part] += parameter.requires_grad
    empty = [part for part, mode in modes.items() if mode != "frozen" and not seen[part]]
    if empty:
        raise GuideError(f"the {empty[0]} part is set to {modes[empty[0]]!r}, and nothing in it would train")
    if not any(seen.values()):
        raise GuideError(
            "all parts of this model are frozen: nothing would be learnt", "see docs/full-size.md"
        )


def make_optimizer(groups: Sequence[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW over parameter groups, or its 8-bit form.

    Raises:
        SettingsError: when the 8-bit form is wanted and bitsandbytes or a GPU is missing.
    """
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(list(groups), weight_decay=settings.weight_decay)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError("train.optimizer=adamw8bit needs bitsandbytes", "pip install 'fieldguide[quant]'")
    if not torch.cuda.is_available():
        raise SettingsError("train.optimizer=adamw8bit needs a GPU", "use adamw")
    import bitsandbytes

    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        list(groups), weight_decay=settings.weight_decay
    )
    return made
