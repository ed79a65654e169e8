"""Assembled models: any vision encoder, a projector, and any causal language model, in LLaVA's format.

What comes out is a `LlavaForConditionalGeneration` (Liu et al. 2023). With an encoder of transformers' own
(CLIP, SigLIP, DINOv2, ViT) and the two-layer projector it is a standard folder: plain transformers loads it
and answers with it. Other projectors, and encoders of timm, make an `AssembledLlava`, whose folder says
`fieldguide_llava`: transformers' Auto classes refuse it until this module is imported, which registers it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from fieldguide.errors import GuideError

MARK = "<image>"
PROJECTORS = ("mlp", "linear", "pooled", "shuffled")
KEY = "fieldguide_projector"
TIMM = "timm_wrapper"
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


class TimmPatches(hf.TimmWrapperModel):
    """An encoder of timm that gives its last grid as a row of patches, as LLaVA reads them."""

    def forward(self, pixel_values: Tensor, *arrays: Any, **named: Any) -> BaseModelOutputWithPooling:
        """(B, 3, S, S) → last_hidden_state (B, P, C), and the same as the only hidden state."""
        states = super().forward(pixel_values, do_pooling=False, return_dict=True).last_hidden_state
        if states.dim() == 3:  # (B, class and register tokens + P, C)
            states = states[:, int(getattr(self.timm_model, "num_prefix_tokens", 0)) :]
        elif getattr(self.timm_model, "output_fmt", None) == "NHWC":
            states = states.flatten(1, 2)
        else:  # (B, C, h, w)
            states = states.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=states, hidden_states=(states,))


class AssembledConfig(hf.LlavaConfig):
    """LLaVA's configuration, and under `fieldguide_projector` what is not LLaVA's."""

    model_type = "fieldguide_llava"


class AssembledLlava(hf.LlavaForConditionalGeneration):
    """LLaVA with a projector or an encoder that LLaVA has not."""

    config_class = AssembledConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        said = getattr(config, KEY)
        channels, hidden = config.vision_config.hidden_size, config.text_config.hidden_size
        projector = new_projector(said["kind"], config, channels, hidden, said["class_token"])
        self.model.multi_modal_projector: Any = projector  # type: ignore[misc]
        if config.vision_config.model_type == TIMM:
            as_patches(self.model.vision_tower)


hf.AutoConfig.register(AssembledConfig.model_type, AssembledConfig)
hf.AutoModelForImageTextToText.register(AssembledConfig, AssembledLlava)


def assemble_llava(
    vision: Any, language: Any, tokenizer: Any, image_processor: Any, *, projector: str = "mlp"
) -> AssembledParts:
    """Put a model together; the parts' weights are taken over as they are, the projector is new and random.

    Args:
        vision: a loaded vision model of transformers (CLIPVisionModel, SiglipVisionModel, Dinov2Model,
            TimmWrapperModel …). One of timm gives patches from now on.
        language: a loaded causal language model; its input embeddings grow where the tokenizer needs it.
        tokenizer: of the language model, with a chat template; gets the picture's mark.
        image_processor: of the vision model; one of timm is replaced by transformers' equal (`plain_pixels`).
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
    if vision.config.model_type == TIMM:
        as_patches(vision)
    image_processor = plain_pixels(image_processor)
    side, grid, class_token = _geometry(vision, image_processor)
    if projector == "shuffled" and grid % 2:
        raise GuideError(f"a grid of {grid} × {grid} patches has no squares of four")
    config = _config(vision, language, tokenizer.convert_tokens_to_ids(MARK), projector, class_token)
    made: Any = AssembledLlava if isinstance(config, AssembledConfig) else hf.LlavaForConditionalGeneration
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = made(config)
    network.model.vision_tower = vision
    network.model.language_model = language.model
    network.lm_head = language.get_output_embeddings()
    network.generation_config = language.generation_config
    hidden, channels = language.config.hidden_size, vision.config.hidden_size
    fresh = new_projector(projector, config, channels, hidden, class_token)
    network.model.multi_modal_projector = fresh.to(language.device, language.dtype)
    processor = hf.LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=_counted(vision.config, side, {"pooled": 1, "shuffled": grid // 2}.get(projector, grid)),
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # which "default" takes off again
        image_token=MARK,
        chat_template=PRELUDE + tokenizer.chat_template,
    )
    return AssembledParts(network.eval().requires_grad_(False), processor)


def _config(vision: Any, language: Any, image_token: int, projector: str, class_token: bool) -> Any:
    """LLaVA's configuration, or ours where the projector or the encoder is not LLaVA's."""
    encoder = vision.config.model_type
    own = projector != "mlp" or encoder == TIMM
    kind: Any = AssembledConfig if own else hf.LlavaConfig  # takes more names than its types say
    clip = encoder in ("clip_vision_model", "siglip_vision_model")  # their last layer serves other ends
    config = kind(
        vision_config=vision.config,
        text_config=language.config,
        image_token_id=image_token,
        vision_feature_layer=-2 if clip and projector != "pooled" else -1,
        vision_feature_select_strategy="default" if class_token and projector != "pooled" else "full",
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    if own:
        setattr(config, KEY, {"kind": projector, "class_token": class_token})
    return config


def new_projector(kind: str, config: Any, channels: int, hidden: int, class_token: bool) -> nn.Module:
    """A fresh projector of a kind."""
    if kind == "linear":
        return Linear(channels, hidden)
    if kind == "pooled":
        return Pooled(channels, hidden, class_token)
    if kind == "shuffled":
        return Shuffled(channels, hidden)
    return LlavaMultiModalProjector(config)


def as_patches(vision: Any) -> None:
    """Have a loaded encoder of timm give rows of patches; its weights and their names stay.

    Raises:
        GuideError: when it gives several grids.
    """
    if vision.features_only:
        raise GuideError(
            "the vision encoder (timm) gives several grids", "take features_only out of its model_args"
        )
    vision.__class__ = TimmPatches  # a wrapping module would rename every weight
    vision.config.hidden_size = int(vision.timm_model.num_features)


def plain_pixels(image_processor: Any) -> Any:
    """The same preparation of pictures by a class that can be saved with a processor.

    timm's own keeps its settings in the encoder's config.json only, where an assembled model has none. The
    pixels are the same to two steps of 255; where an odd number of them is cut off, they may lie one aside.

    Raises:
        GuideError: when timm prepares pictures in a way that has no equal.
    """
    data = getattr(image_processor, "data_config", None)
    if data is None:
        return image_processor
    (channels, height, width), mode = data["input_size"], data.get("crop_mode") or "center"
    if channels != 3 or mode not in ("center", "squash") or (height != width and mode == "center"):
        raise GuideError(
            f"the vision encoder (timm) takes {channels} × {height} × {width} pixels, cropped by {mode!r}",
            "choose one that crops squares of RGB at the centre",
        )
    share = float(data.get("crop_pct") or 1)
    size = {"shortest_edge": int(height / share)} if mode == "center" else {
        "height": int(height / share), "width": int(width / share)
    }  # fmt: skip
    return hf.BitImageProcessor(
        size=size,
        crop_size={"height": height, "width": width},
        resample=Image.Resampling[str(data.get("interpolation") or "bicubic").upper()],
        image_mean=list(data["mean"]),
        image_std=list(data["std"]),
    )


def _geometry(vision: Any, image_processor: Any) -> tuple[int, int, bool]:
    """(pixels a side, patches a side, whether the first token is no patch), by trying.

    The encoder's configuration is not asked: DINOv2's says 518 pixels, and its processor gives 224.

    Raises:
        GuideError: when the encoder gives no square grid of patches.
    """
    kind = vision.config.model_type
    # Twice as wide as high: a processor that keeps proportions gives no square.
    pixels = image_processor(images=Image.new("RGB", (640, 320)), return_tensors="pt")["pixel_values"]
    if pixels.dim() != 4 or pixels.shape[2] != pixels.shape[3]:
        raise GuideError(
            f"the vision encoder ({kind}) is given pictures as {tuple(pixels.shape)} numbers, not one square",
            "have its image processor crop a square",
        )
    side = int(pixels.shape[2])
    try:
        with torch.no_grad():
            count = int(vision(pixels.to(vision.device, vision.dtype)).last_hidden_state.shape[1])
    except (ValueError, RuntimeError, AssertionError) as error:
        raise GuideError(
            f"the vision encoder ({kind}) does not take {side} × {side} pixels, which its image processor "
            f"gives ({str(error).splitlines()[0]})",
            "give the encoder with its own image processor",
        ) from error
    patch = getattr(vision.config, "patch_size", None)
    grid = side // patch if isinstance(patch, int) else round(count**0.5)
    extra = count - grid**2
    if extra not in (0, 1):
        raise GuideError(
            f"the vision encoder ({kind}) gives {count} tokens for {grid} × {grid} patches, and only one "
            "more is understood",
            "choose CLIP, SigLIP, DINOv2 without registers, or timm's",
        )
    return side, grid, extra == 1


def _counted(config: Any, side: int, grid: int) -> int:
    """Pixels a patch, from which LLaVA's processor counts grid × grid tokens in side × side pixels.

    Raises:
        GuideError: when no whole number does.
    """
    patch = getattr(config, "patch_size", None)
    for pixels in (patch, side // grid):
        if isinstance(pixels, int) and side // pixels == grid:
            return pixels
    raise GuideError(f"{grid} × {grid} tokens cannot be counted in {side} × {side} pixels")


def save_llava(folder: Path | str, parts: AssembledParts) -> Path:
    """Write the folder: standard where the model is, else of type `fieldguide_llava`."""
    parts.network.save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    return Path(folder)
