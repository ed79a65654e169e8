"""Export to Ollama: a Modelfile, and the adapter in the format of llama.cpp, which Ollama runs.

    ollama create terns -f exported/Modelfile

Only text models: Ollama's adapters hold changes of a language model's weights. The adapter is written as GGUF
and not left to Ollama's own conversion, because llama.cpp keeps the rows of Llama's query and key weights in
another order, which an adapter has to follow.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from fieldguide.errors import MergeError
from fieldguide.files import atomic_folder, read_json, write_text
from fieldguide.train.adapter import LORA_KEY, read_tensors
from fieldguide.train.chat import ChatPieces, chat_pieces
from fieldguide.train.fingerprints import ADAPTER_CONFIG
from fieldguide.train.folder import Licence, check_licences

MODELFILE = "Modelfile"
ADAPTER_FILE = "adapter.gguf"
# Model types whose adapters llama.cpp takes: its name for the architecture, and whether rows are reordered.
ADAPTED: dict[str, tuple[gguf.MODEL_ARCH, bool]] = {
    "llama": (gguf.MODEL_ARCH.LLAMA, True),
    "mistral": (gguf.MODEL_ARCH.LLAMA, True),
    "phi3": (gguf.MODEL_ARCH.PHI3, False),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, False),
}
IMPORTED = ("llama", "phi3", "qwen2")  # merged folders of these, Ollama reads itself


def check_ollama(config: Any, *, quantised: bool, full: bool, adapter: bool) -> None:
    """Refuse what Ollama cannot run as it was trained.

    Args:
        config: of the transformers network.
        quantised: whether the adapter was trained on 4-bit weights.
        full: whether other tensors were trained as a whole.
        adapter: whether the adapter is wanted beside its base, or the merged weights.

    Raises:
        MergeError: saying why.
    """
    kind = config.model_type
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise MergeError(
            f"Ollama cannot take a {kind} guide: ADAPTER changes weights of a language model only, and has "
            "no place for the projector between vision encoder and language model that the adapter learnt "
            "with; Ollama's own vision models have other projectors",
            "fieldguide export --to transformers (vLLM and transformers serve that folder)",
        )
    if not adapter:
        if kind not in IMPORTED:
            raise MergeError(
                f"Ollama reads no {kind} folders, only {', '.join(IMPORTED)}",
                "convert the merged folder with llama.cpp's convert_hf_to_gguf.py",
            )
        return
    if kind not in ADAPTED:
        raise MergeError(
            f"Ollama cannot adapt a {kind} model, only {', '.join(ADAPTED)}",
            "fieldguide export --to transformers",
        )
    if quantised:
        raise MergeError(
            "the adapter was trained on 4-bit weights (NF4) and belongs to those; "
            "Ollama would add it to other ones and answer otherwise",
            "fieldguide merge, then export with --merged FOLDER",
        )
    if full:
        raise MergeError(
            "other tensors than the adapter were trained, and ADAPTER cannot carry them",
            "fieldguide merge, then export with --merged FOLDER",
        )


def export_ollama(
    out: Path | str,
    config: Any,
    tokenizer: Any,
    *,
    base: str,
    adapter_folder: Path | str | None,
    licences: Sequence[Licence],
    quantised: bool = False,
    full: bool = False,
    stops: Sequence[int] = (),
) -> Path:
    """Write a folder with a Modelfile, and the adapter beside it.

    Args:
        out: the folder to write; must not exist, or be empty.
        config: of the transformers network.
        tokenizer: with the chat template the model was trained with.
        base: what FROM names: a model of Ollama or a folder; the merged folder where there is no adapter.
        adapter_folder: in PEFT's format; None to use merged weights.
        licences: at least one.
        quantised, full: see `check_ollama`.
        stops: token ids that end an answer, besides the tokenizer's own.

    Returns:
        The Modelfile.

    Raises:
        MergeError: when Ollama cannot run it as it was trained; the message says why.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MergeError(f"{out}: already there", "choose a new folder")
    check_licences(licences)
    check_ollama(config, quantised=quantised, full=full, adapter=adapter_folder is not None)
    if not base or any(c in base for c in '\n"'):
        raise MergeError(f"{base!r}: no model that FROM could name", "give the base, such as llama3.1:8b")
    pieces = chat_pieces(tokenizer)
    with atomic_folder(out) as folder:
        if adapter_folder is not None:
            write_gguf_adapter(folder / ADAPTER_FILE, Path(adapter_folder), config)
            shutil.copyfile(Path(adapter_folder) / ADAPTER_CONFIG, folder / ADAPTER_CONFIG)
        text = _modelfile(pieces, tokenizer, base, adapter_folder is not None, licences, stops)
        write_text(folder / MODELFILE, text)
    return out / MODELFILE


def _modelfile(
    pieces: ChatPieces,
    tokenizer: Any,
    base: str,
    adapter: bool,
    licences: Sequence[Licence],
    stops: Sequence[int],
) -> str:
    ends = {tokenizer.convert_ids_to_tokens(token) for token in {*stops, tokenizer.eos_token_id} - {None}}
    if pieces.close_assistant.strip() in tokenizer.all_special_tokens:
        ends.add(pieces.close_assistant.strip())
    lines = [f"FROM {base}"]
    lines += [f"ADAPTER ./{ADAPTER_FILE}"] if adapter else []
    lines += [f"TEMPLATE {_quoted(pieces.to_go())}"]
    lines += [f'PARAMETER stop "{end}"' for end in sorted(ends)]
    for card in licences:
        words = card.text or f"{card.role} {card.name}: {card.licence} {card.source}".strip()
        lines.append(f"LICENSE {_quoted(words)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise MergeError("a text with three quotation marks, or one at its end, cannot stand in a Modelfile")
    return f'"""{text}"""'


def write_gguf_adapter(path: Path, folder: Path, config: Any) -> int:
    """Write a PEFT LoRA adapter as llama.cpp reads it: the number of adapted weights.

    Scale: llama.cpp multiplies by alpha / rank, so alpha holds whatever PEFT's scaling is.

    Raises:
        MergeError: when the adapter has something llama.cpp knows no place for.
    """
    settings = read_json(folder / ADAPTER_CONFIG)
    odd = [k for k in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if settings.get(k)]
    if odd:
        raise MergeError(f"{folder}: llama.cpp's adapters know no {', '.join(odd)}", "fieldguide merge first")
    rank, alpha = settings["r"], float(settings["lora_alpha"])
    alpha = alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha
    architecture, reordered = ADAPTED[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    count = 0
    for key, tensor in sorted(read_tensors(folder).items()):
        match = LORA_KEY.fullmatch(key)
        name = names.get_name(match["module"]) if match else None
        if match is None or name is None or match["kind"] not in ("lora_A", "lora_B"):
            raise MergeError(f"{folder}: llama.cpp knows no place for {key}", "fieldguide merge first")
        if match["kind"] == "lora_B" and reordered:
            tensor = _reorder(tensor, match["module"], config)
        writer.add_tensor(f"{name}.weight.{match['kind'].lower()}", tensor.float().numpy().astype(np.float32))
        count += match["kind"] == "lora_A"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


def _reorder(weights: Tensor, module: str, config: Any) -> Tensor:
    """Rows of query and key as llama.cpp has them: the two halves of each head interleaved; (out, r)."""
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
    }.get(module.rpartition(".")[2])
    if heads is None:
        return weights
    rows, rank = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, rank)
    return halves.transpose(1, 2).reshape(rows, rank).contiguous()
