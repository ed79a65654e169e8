"""A network as a plain transformers folder: written with all that belongs to it, and read back.

What travels: weights in safetensors, configuration, generation settings, tokenizer, chat template, picture
settings, and the licences of everything it was made from.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from fieldguide.errors import MergeError
from fieldguide.files import sha256_file, write_json, write_text
from fieldguide.model.llava import AssembledConfig
from fieldguide.train.fingerprints import some

LICENCES = "licences.json"
LICENCE_TEXTS = "licences"
CERTIFICATE = "certificate.json"
# Values that only sampling reads: a greedy generation configuration with one of them is refused on saving.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Licence:
    """Under which terms a part may be used.

    Attributes:
        role: "base model", "vision encoder", "data set" …
        name: of the model or the data set.
        licence: SPDX identifier or name; "not stated" where its maker states none.
        source: where it comes from.
        text: the licence's own words, where they came with it.
    """

    role: str
    name: str
    licence: str
    source: str = ""
    text: str = ""


def check_licences(licences: Sequence[Licence]) -> None:
    """Refuse to pass weights on of which nothing is said.

    Raises:
        MergeError: when there is no card, or one names no licence.
    """
    if not licences:
        raise MergeError(
            "no licence is known for the weights", 'give each part a card, "not stated" included'
        )
    bare = [f"{card.role} {card.name}" for card in licences if not card.licence.strip()]
    if bare:
        raise MergeError(
            f"no licence is known for {some(bare)}", 'say "not stated" where its maker states none'
        )


def write_folder(folder: Path, network: Any, processor: Any, licences: Sequence[Licence]) -> None:
    """Fill `folder` with everything plain transformers needs to answer.

    Args:
        folder: exists, and is empty.
        network: without adapter and without 4-bit weights.
        processor: its processor, or its tokenizer where it reads text only.
        licences: at least one.
    """
    disable_progress_bar()
    _drop_unread_sampling(network)
    network.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    write_json(
        folder / LICENCES, [{k: v for k, v in asdict(card).items() if k != "text"} for card in licences]
    )
    for card in licences:
        if card.text:
            name = "".join(c if c.isalnum() or c in "-." else "_" for c in f"{card.role}_{card.name}")
            write_text(folder / LICENCE_TEXTS / f"{name}.txt", card.text)


def _drop_unread_sampling(network: Any) -> None:
    settings = getattr(network, "generation_config", None)
    if settings is not None and not settings.do_sample:
        for name in SAMPLING:
            setattr(settings, name, None)


def needed_import(network: Any) -> str:
    """The module that must be imported before transformers opens this kind of model; "" for its own kinds."""
    return AssembledConfig.__module__ if isinstance(network.config, AssembledConfig) else ""


def read_back(folder: Path, like: Any, processor: Any) -> tuple[Any, Any]:
    """Load a written folder with plain transformers, without asking any hub: (network, processor).

    Args:
        folder: as `write_folder` left it.
        like: the network that was written.
        processor: the one that was written.

    Raises:
        MergeError: when it loads as something else, or with tensors missing or left over.
    """
    disable_progress_bar()
    kind = like.config.model_type
    pictures = bool(needed_import(like)) or kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    loader: Any = AutoModelForImageTextToText if pictures else AutoModelForCausalLM
    attention = getattr(like.config, "_attn_implementation", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network, found = loader.from_pretrained(
                folder,
                dtype="auto",
                attn_implementation=attention,
                local_files_only=True,
                output_loading_info=True,
            )
            text_only = isinstance(processor, PreTrainedTokenizerBase)
            again: Any = AutoTokenizer if text_only else AutoProcessor
            prepared = again.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise MergeError(f"plain transformers cannot load what was written ({error})") from error
    odd = [
        str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in found[kind]
    ]
    if odd or type(network) is not type(like):
        raise MergeError(
            f"what was written loads as {type(network).__name__}, "
            f"{'with ' + some(odd) + ' astray' if odd else 'not ' + type(like).__name__}"
        )
    _check_processor(processor, prepared)
    return network.eval(), prepared


def _check_processor(written: Any, read: Any) -> None:
    parts = {
        "class": (type(written).__name__, type(read).__name__),
        "chat template": (getattr(written, "chat_template", None), getattr(read, "chat_template", None)),
    }
    for name in ("image_processor", "video_processor"):
        if (part := getattr(written, name, None)) is not None:
            parts[name.replace("_", " ")] = (_settings(part), _settings(getattr(read, name, None)))
    tokenizers = [getattr(p, "tokenizer", p) for p in (written, read)]
    parts["vocabulary"] = (tokenizers[0].get_vocab(), tokenizers[1].get_vocab())
    parts["special tokens"] = (tokenizers[0].special_tokens_map, tokenizers[1].special_tokens_map)
    other = [name for name, (old, new) in parts.items() if old != new]
    if other:
        raise MergeError(f"the processor reads back with another {', '.join(other)}")


def _settings(part: Any) -> Any:
    return None if part is None else part.to_dict()


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its relative name, the certificate itself left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in files if path.name != CERTIFICATE
    }
