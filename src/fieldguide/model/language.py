"""The language model: loading from a local folder, and its LoRA adapter in PEFT's own format."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from fieldguide.errors import GuideError, ModelMissing

# Linear layers of Llama-like decoder blocks; the vocabulary head and the embeddings stay as they are.
LORA_TARGETS = r".*\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


def load_language_model(folder: Path | str) -> tuple[Any, Any]:
    """Load (tokenizer, causal language model) from a folder, in fp32, without asking any hub.

    Raises:
        ModelMissing: when the folder holds no model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelMissing(f"{folder}: no language model there", "fieldguide models get starter")
    disable_progress_bar()  # a second's loading needs none
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.eval().requires_grad_(False)
    return tokenizer, model


def attach_adapter(model: Any, *, rank: int, alpha: int, dropout: float, base_name: str) -> PeftModel:
    """Add a fresh LoRA adapter (Hu et al. 2021) on all linear layers of the decoder blocks.

    Raises:
        ValueError: from PEFT, when no module matches: an adapter that does nothing is an error.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # PEFT asks transformers for a property under its old name
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, config)
    # PEFT writes the local path here; a guide must not hold paths of the machine it was made on.
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def load_adapter(model: Any, folder: Path | str) -> PeftModel:
    """Load a saved adapter onto the language model, frozen, for answering.

    Raises:
        GuideError: when its tensors are not those of the model's adapted modules; PEFT would leave the
            others as they are, and the adapter would do less than it was trained to, or nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT: missing keys are an error below
        adapted = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
    with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
        other = sorted(
            set(file.keys()) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        )
    if other:
        raise GuideError(
            f"{folder}: the adapter does not fit this language model "
            f"({other[0]} and {len(other) - 1} more tensors without a counterpart)"
        )
    return adapted


def save_adapter(model: PeftModel, folder: Path | str) -> None:
    """Save the adapter as `adapter_model.safetensors` and `adapter_config.json`."""
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (Path(folder) / "README.md").unlink(missing_ok=True)  # PEFT's empty model card says nothing true


def decoder(model: Any) -> nn.Module:
    """The decoder without its vocabulary head, adapter included: inputs_embeds → hidden states."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    found: nn.Module = base.model
    return found


def vocabulary_head(model: Any) -> nn.Module:
    """The map from hidden states to logits over the vocabulary."""
    return model.get_output_embeddings()
