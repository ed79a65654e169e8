"""Assembled models: any vision encoder, a projector, and any causal language model, in LLaVA's format.

What comes out is a `LlavaForConditionalGeneration` (Liu et al. 2023). With a CLIP or SigLIP encoder and the
two-layer projector it is a standard folder: plain transformers loads it and answers with it. The other
projectors are ours; the configuration says so (`fieldguide_projector`), and only fieldguide puts them back.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors import safe_open
from tokenizers import AddedToken
from torch import Tensor, nn

from fieldguide.errors import GuideError

MARK = "<image>"
PROJECTORS = ("mlp", "linear", "pooled", "shuffled")
KEY = "fieldguide_projector"
PREFIX = "model.multi_modal_projector."
# Language models know nothing of pictures: contents in parts become text with the mark before the words.
PRELUDE = (
    "{%- set spoken = namespace(turns=[]) -%}"
    "{%- for message in messages -%}{%- set said = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set said.text = message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set said.text = said.text + '<image>\n' -%}"
    "{%- else -%}{%- set said.text = said.text + part['text'] -%}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- set spoken.turns = spoken.turns + [{'role': message['role'], 'content': said.text}] -%}"
    "{%- endfor -%}{%- set messages = spoken.turns -%}"
)


@dataclass(frozen=True)
class AssembledParts:
    """A network and the processor that goes with it."""

    network: Any
    processor: Any


class Linear(nn.Module):
    """One linear map a patch."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, hidden)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, P, C) → (B, P, H)"""
        return self.linear(patches)


class Pooled(nn.Module):
    """One token a picture: the class token where there is one, else the mean, through two layers."""

    def __init__(self, channels: int, hidden: int, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token
        self.norm = nn.LayerNorm(channels)
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, P, C) → (B, 1, H)"""
        one = patches[:, 0] if self.class_token else patches.mean(1)
        return self.layers(self.norm(one))[:, None]


class Shuffled(nn.Module):
    """A token for each square of four patches, through two layers (pixel shuffle)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 * channels, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, P, C) → (B, P / 4, H)"""
        side = round(patches.shape[1] ** 0.5)
        squares = patches.unflatten(1, (side // 2, 2, side // 2, 2)).transpose(2, 3)  # (B, h, w, 2, 2, C)
        return self.layers(squares.flatten(3).flatten(1, 2))


def assemble_llava(
    vision: Any, language: Any, tokenizer: Any, image_processor: Any, *, projector: str = "mlp"
) -> AssembledParts:
    """Put a model together; the parts' weights are taken over as they are, the projector is new and random.

    Args:
        vision: a loaded vision model of transformers (CLIPVisionModel, SiglipVisionModel, Dinov2Model …).
        language: a loaded causal language model; its input embeddings grow where the tokenizer needs it.
        tokenizer: of the language model, with a chat template; gets the picture's mark.
        image_processor: of the vision model.
        projector: mlp (standard), linear, pooled (one token a picture) or shuffled (a token of four patches).

    Raises:
        GuideError: when the parts cannot be put together.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise GuideError(
            "the language model comes without a chat template", "choose an instruction-tuned model"
        )
    tokenizer.add_tokens([AddedToken(MARK, special=True, normalized=False)])
    if len(tokenizer) > language.get_input_embeddings().weight.shape[0]:
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    side, patch, class_token = _geometry(vision)
    if projector == "shuffled" and (side // patch) % 2:
        raise GuideError(f"a grid of {side // patch} × {side // patch} patches has no squares of four")
    clip = vision.config.model_type in ("clip_vision_model", "siglip_vision_model")
    strategy: Any = "default" if class_token and projector != "pooled" else "full"
    kind: Any = hf.LlavaConfig  # takes more names than its types say
    config = kind(
        vision_config=vision.config.to_dict(),
        text_config=language.config.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(MARK),
        vision_feature_layer=-2 if clip and projector != "pooled" else -1,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: Any = hf.LlavaForConditionalGeneration(config)
    network.model.vision_tower = vision
    network.model.language_model = language.model
    network.lm_head = language.get_output_embeddings()
    network.generation_config = language.generation_config
    hidden, channels = language.config.hidden_size, vision.config.hidden_size
    network.model.multi_modal_projector = new_projector(projector, config, channels, hidden, class_token)
    if projector != "mlp":
        setattr(config, KEY, {"kind": projector, "class_token": class_token})
    # The processor counts tokens by patches: fewer tokens are larger patches to it.
    counted = {"pooled": side, "shuffled": 2 * patch}.get(projector, patch)
    processor = hf.LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=counted,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # which "default" takes off again
        image_token=MARK,
        chat_template=PRELUDE + tokenizer.chat_template,
    )
    return AssembledParts(network.eval().requires_grad_(False), processor)


def new_projector(kind: str, config: Any, channels: int, hidden: int, class_token: bool) -> nn.Module:
    """A fresh projector of a kind."""
    if kind == "linear":
        return Linear(channels, hidden)
    if kind == "pooled":
        return Pooled(channels, hidden, class_token)
    if kind == "shuffled":
        return Shuffled(channels, hidden)
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    return LlavaMultiModalProjector(config)


def _geometry(vision: Any) -> tuple[int, int, bool]:
    """(pixels a side, pixels a patch, whether the first token is no patch)

    Raises:
        GuideError: when the encoder gives no grid of patches.
    """
    config = vision.config
    side, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not isinstance(side, int) or not isinstance(patch, int):
        raise GuideError(f"the vision encoder ({config.model_type}) does not say how large its patches are")
    with torch.no_grad():
        pixels = torch.zeros(1, 3, side, side, dtype=vision.dtype, device=vision.device)
        count = int(vision(pixels).last_hidden_state.shape[1])
    extra = count - (side // patch) ** 2
    if extra not in (0, 1):
        raise GuideError(
            f"the vision encoder ({config.model_type}) gives {count} tokens for {side // patch} × "
            f"{side // patch} patches, and only one more is understood",
            "choose CLIP, SigLIP or DINOv2",
        )
    return side, patch, extra == 1


def save_llava(folder: Path | str, parts: AssembledParts) -> Path:
    """Write the folder: standard where the projector is."""
    parts.network.save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    return Path(folder)


@torch.no_grad()
def put_back_projector(network: Any, folder: Path) -> None:
    """Give a loaded network its own kind of projector back, with weights; or nothing, if it is standard."""
    said = getattr(network.config, KEY, None)
    if not said:
        return
    channels = int(network.config.vision_config.hidden_size)
    hidden = int(network.config.text_config.hidden_size)
    old = next(network.model.multi_modal_projector.parameters())
    projector = new_projector(said["kind"], network.config, channels, hidden, said["class_token"])
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if PREFIX.removeprefix("model.") in name:
                    tensors[name.partition("multi_modal_projector.")[2]] = file.get_tensor(name)
    try:
        projector.load_state_dict(tensors)
    except RuntimeError as error:
        raise GuideError(
            f"{folder}: its {said['kind']} projector is not whole", "assemble it again"
        ) from error
    network.model.multi_modal_projector = projector.to(old.device, old.dtype).eval().requires_grad_(False)
