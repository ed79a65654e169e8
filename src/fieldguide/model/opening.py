"""Opens a model of transformers from a folder, or by its name at the model hub, which is asked once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils.logging import disable_progress_bar

from fieldguide.errors import GuideError, ModelMissing
from fieldguide.files import atomic_folder, cache_dir, fingerprint, read_json, sha256_file, write_json
from fieldguide.model.families import Family, family_of
from fieldguide.model.fourbit import keep_unpacked
from fieldguide.model.hub import HubModel
from fieldguide.model.kinds import Opened, kind_of, known_kinds
from fieldguide.model.llava import assemble_llava, save_llava
from fieldguide.model.prompt import Prompt, PromptTemplate
from fieldguide.model.template import template_from_chat
from fieldguide.model.tuning import DTYPES, choose_attention, choose_precision, here, quantisation
from fieldguide.settings import TrainSettings

# Weights are read from safetensors only; a pickle is never opened.
PARTS_FILE = "parts.json"  # what an assembled model was made from
SHAPING = (
    "config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md"]


def find_model(name: str, announce: Callable[[str], None] = print) -> Path:
    """The folder of a model: the one given, or that of the hub's cache, filled first where need be.

    Raises:
        ModelMissing: when it is neither here nor to be had.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelMissing(f"{folder}: no model there (config.json is missing)", "give a model's folder")
        return folder
    if ":" in name:
        kinds = ", ".join(sorted(known_kinds())) or "none"
        raise ModelMissing(
            f"{name}: no package here brings models of kind {name.partition(':')[0]!r}",
            f"install the one that does (brought here: {kinds}), or give a folder or OWNER/NAME of a hub",
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelMissing(f"{name}: no such model folder", "check its spelling, or give OWNER/NAME of a hub")
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=WANTED, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        announce(f"{name}: not on this machine, asking the model hub")
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:  # the hub's own errors and those of every network layer below it
        raise ModelMissing(
            f"{name}: not on this machine, and not to be had from the model hub ({type(error).__name__})",
            "copy its folder here and give the folder's path",
        ) from error


def model_sha256(folder: Path) -> str:
    """Identity of a model: a hash over its weights and over all else that its answers depend on.

    That is its configuration, its tokenizer and how it prepares pictures; not its card, its generation
    settings, or its chat template, of which a guide holds a copy.

    Raises:
        ModelMissing: when it has no weights.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelMissing(f"{folder}: no weights in safetensors there", "convert or fetch them first")
    others = [folder / name for name in SHAPING if (folder / name).is_file()]
    return fingerprint({path.name: sha256_file(path) for path in (*weights, *others)})


def open_model(
    settings: TrainSettings,
    template: PromptTemplate | None = None,
    announce: Callable[[str], None] = print,
    sha256: str = "",
) -> Opened:
    """Load the model that the settings name, on this process's device, all of it frozen.

    Args:
        settings: `model`, `vision`, `quantise`, `precision`, `attention`, …
        template: the prompt's pieces where they are known; else they are taken from the chat template.
        sha256: identity that is expected, as `model_sha256` gives it; "" for any.

    Raises:
        ModelMissing, GuideError: when it cannot be found, read or used.
    """
    if (brought := kind_of(settings.model)) is not None:
        kind, name = brought
        opened = kind.open(name, settings, template, announce)
        _check_weights(opened.folder, opened.sha256, sha256)
        return replace(opened, name=settings.model)
    folder = _assembled(settings, announce) if settings.vision else find_model(settings.model, announce)
    found = model_sha256(folder)
    _check_weights(folder, found, sha256)
    return open_folder(folder, settings, template, found)


def _check_weights(folder: Path, found: str, wanted: str) -> None:
    if wanted and found != wanted:
        raise GuideError(
            f"{folder}: not the model that the guide was trained on; its weights, configuration, tokenizer "
            f"or picture settings differ (sha256 {found[:12]}…, {wanted[:12]}…)",
            "fetch the model it was trained on, or train again",
        )


def open_folder(
    folder: Path,
    settings: TrainSettings,
    template: PromptTemplate | None,
    sha256: str,
    kind: type[HubModel] = HubModel,
    family: Family | None = None,
) -> Opened:
    """Load a model folder of transformers, on this process's device, all of it frozen.

    Args:
        settings: `quantise`, `precision`, `attention`, …
        template: the prompt's pieces; None to take them from the chat template.
        sha256: its identity, see `model_sha256`.
        kind: the class that it becomes.
        family: where its parts lie; None where that is known here.
    """
    device = here()
    precision, arithmetic = choose_precision(device, settings.precision)
    attention, told = choose_attention(device, settings.attention)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    family = family or family_of(config)
    four_bit = quantisation(settings, precision, family)
    network = _load(folder, family, attention, DTYPES[precision], four_bit, device)
    processor, tokenizer = _words(folder, family)
    if template is None:
        mark = tokenizer.decode([config.image_token_id]) if family.vision else ""
        template = template_from_chat(processor or tokenizer, tokenizer, mark, family.chat_template)
    model = kind(network, tokenizer, Prompt(tokenizer, template), processor, family).eval()
    said = [arithmetic, told]
    if four_bit is not None:
        said.append("language part: 4 bits (nf4)" + (", scales too" if settings.double_quant else ""))
    return Opened(model, folder, settings.model, sha256, tuple(said), precision)


def _assembled(settings: TrainSettings, announce: Callable[[str], None]) -> Path:
    """The folder of a model put together from a language model and a vision encoder, made if need be.

    It lies in the user cache under a hash of all it is made from, the seed of its fresh projector among it.
    """
    language, vision = find_model(settings.model, announce), find_model(settings.vision, announce)
    made_from: dict[str, Any] = {
        "language": model_sha256(language),
        "vision": model_sha256(vision),
        "projector": settings.projector,
        "seed": settings.seed,
        "format": 2,  # how the folder is written: 1 had our own projectors under LLaVA's name
        "precision": choose_precision(here(), settings.precision)[0],
    }
    out = cache_dir() / "models" / f"assembled-{fingerprint(made_from)[:16]}"
    if (out / "config.json").is_file():
        return out
    announce(f"putting together {settings.model} and {settings.vision}")
    dtype = DTYPES[made_from["precision"]]
    shared: dict[str, Any] = {"local_files_only": True, "dtype": dtype, "use_safetensors": True}
    disable_progress_bar()
    parts = assemble_llava(
        _vision_model(vision, shared),
        transformers.AutoModelForCausalLM.from_pretrained(language, **shared),
        transformers.AutoTokenizer.from_pretrained(language, local_files_only=True),
        transformers.AutoImageProcessor.from_pretrained(vision, local_files_only=True),
        projector=settings.projector,
    )
    with atomic_folder(out) as folder:
        save_llava(folder, parts)
        write_json(folder / PARTS_FILE, {**made_from, "licences": _licences(language, vision)})
    return out


def _vision_model(folder: Path, shared: dict[str, Any]) -> Any:
    kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    towers: dict[str, Any] = {
        "clip": transformers.CLIPVisionModel,
        "clip_vision_model": transformers.CLIPVisionModel,
        "siglip": transformers.SiglipVisionModel,
        "siglip_vision_model": transformers.SiglipVisionModel,
    }
    return towers.get(kind, transformers.AutoModel).from_pretrained(folder, **shared).eval()


def _licences(language: Path, vision: Path) -> str:
    return f"language model: {licence_of(language)}; vision encoder: {licence_of(vision)}"


def _load(
    folder: Path, family: Family, attention: str, dtype: torch.dtype, four_bit: Any, device: torch.device
) -> Any:
    loader = transformers.AutoModelForImageTextToText if family.vision else transformers.AutoModelForCausalLM
    disable_progress_bar()
    more: dict[str, Any] = {} if four_bit is None else {"quantization_config": four_bit}
    # bitsandbytes reports at every start that it would like another package.
    noisy = {name: logging.getLogger(name).level for name in ("bitsandbytes", "transformers")}
    for name in noisy:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        network = loader.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, local_files_only=True,
            use_safetensors=True, **more,
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise GuideError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
    finally:
        for name, level in noisy.items():
            logging.getLogger(name).setLevel(level)
    keep_unpacked(network)
    network.eval().requires_grad_(False)
    bare: Any = network
    return bare if four_bit is not None else bare.to(device)


def _words(folder: Path, family: Family) -> tuple[Any, Any]:
    """(processor or None, tokenizer)"""
    if not family.vision:
        return None, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    try:
        processor: Any = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise GuideError(
            f"{folder}: its processor cannot be loaded ({str(error).splitlines()[0]})",
            "the folder must hold the processor's files too",
        ) from error
    return processor, processor.tokenizer


def licence_of(folder: Path) -> str:
    """The licence that a model's card states in its head; "not stated" without one."""
    if (folder / PARTS_FILE).is_file():
        return str(read_json(folder / PARTS_FILE)["licences"])
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").split("---", 2)[1:2]:
            for entry in line.splitlines():
                if entry.startswith("license:"):
                    return entry.partition(":")[2].strip() or "not stated"
    return "not stated"


def card_of(opened: Opened) -> dict[str, str]:
    """Licence, makers, origin and hash of the weights: carried into guides and reports."""
    config = json.loads((opened.folder / "config.json").read_text(encoding="utf-8"))
    local = Path(opened.name).expanduser().is_dir()
    name = opened.folder.name if local else opened.name
    return {
        "name": name,
        "gives": "vision-language model" if opened.model.family.vision else "language model",
        "role": "base model",
        "licence": licence_of(opened.folder),
        "attribution": "see the model's card" if not local else "not stated",
        "upstream": "" if local else opened.name,
        "source": f"{config.get('model_type')} folder {name}" if local else f"model hub: {opened.name}",
        "sha256": opened.sha256,
    }
