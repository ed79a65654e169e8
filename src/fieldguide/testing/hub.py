"""The true model classes of transformers at tiny random size, with their processors, made offline.

    python -m fieldguide.testing.hub llava_next folder/

writes one as a folder that transformers loads. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken

from fieldguide.testing import tiny_tokenizer

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HIDDEN, LAYERS, PATCH, SIDE = 32, 2, 8, 32
MARKS = {
    "llava": ("<image>",),
    "llava_next": ("<image>",),
    "idefics3": ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    "smolvlm": ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    "qwen2_5_vl": ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
    "qwen3_vl": ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
}


def tiny_hub(kind: str, seed: int = 0) -> tuple[Any, Any]:
    """(network, processor) of a kind, random and tiny; text kinds have their tokenizer as processor.

    Args:
        kind: one of KINDS, or of VISION_KINDS: encoders, with their image processor.
        seed: of the weights; the global random state is left alone.
    """
    tokenizer = tiny_tokenizer()
    marks = MARKS.get(kind, ())
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks])
    picture = {"qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>"}.get(kind, "<image>")
    picture = "<|vision_start|><|image_pad|><|vision_end|>" if kind == "qwen3_vl" else picture
    tokenizer.chat_template = CHAT.replace("IMAGE", picture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, processor = _MAKERS[kind](kind, tokenizer)
    if kind in VISION_KINDS:
        return network.eval().requires_grad_(False), processor
    network.generation_config = hf.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return network.eval().requires_grad_(False), processor


def _text_settings(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _config(kind: type) -> Any:
    """Configuration classes take more names than their types say."""
    return kind


def _tower(config: type) -> Any:
    return config(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )


def _pixels(kind: type, **more: Any) -> Any:
    return kind(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **more)


def _llava(kind: str, tokenizer: Any) -> tuple[Any, Any]:
    tower, image_token = _tower(hf.CLIPVisionConfig), tokenizer.convert_tokens_to_ids("<image>")
    if kind == "llava":
        text: Any = hf.LlamaConfig(**_text_settings(tokenizer))
        network: Any = hf.LlavaForConditionalGeneration(
            _config(hf.LlavaConfig)(vision_config=tower, text_config=text, image_token_id=image_token)
        )
        pixels = _pixels(hf.CLIPImageProcessor)
        made: type = hf.LlavaProcessor
    else:
        text = hf.MistralConfig(**_text_settings(tokenizer), sliding_window=None)
        pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
        network = hf.LlavaNextForConditionalGeneration(
            _config(hf.LlavaNextConfig)(
                vision_config=tower,
                text_config=text,
                image_token_id=image_token,
                image_grid_pinpoints=pinpoints,
            )
        )
        pixels = _pixels(hf.LlavaNextImageProcessor, image_grid_pinpoints=pinpoints)
        made = hf.LlavaNextProcessor
    processor = made(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=tokenizer.chat_template,
    )
    return network, processor


def _idefics(kind: str, tokenizer: Any) -> tuple[Any, Any]:
    scale = 2
    names = {
        "idefics3": (hf.Idefics3Config, hf.Idefics3VisionConfig, hf.Idefics3ForConditionalGeneration),
        "smolvlm": (hf.SmolVLMConfig, hf.SmolVLMVisionConfig, hf.SmolVLMForConditionalGeneration),
    }
    whole, vision, network = names[kind]
    config = _config(whole)(
        vision_config=_tower(vision).to_dict(),
        text_config=hf.LlamaConfig(**_text_settings(tokenizer)).to_dict(),
        scale_factor=scale,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    sizes: dict[str, Any] = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    length = (SIDE // PATCH) ** 2 // scale**2
    shared = {"image_seq_len": length, "chat_template": tokenizer.chat_template}
    if kind == "idefics3":
        return network(config), hf.Idefics3Processor(hf.Idefics3ImageProcessor(**sizes), tokenizer, **shared)
    pixels, video = hf.SmolVLMImageProcessor(**sizes), hf.SmolVLMVideoProcessor(**sizes)
    return network(config), hf.SmolVLMProcessor(pixels, tokenizer, video, **shared)


def _qwen(kind: str, tokenizer: Any) -> tuple[Any, Any]:
    marks = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id")
    tokens = dict(zip(marks, tokenizer.convert_tokens_to_ids(list(MARKS[kind])), strict=True))
    text = {**_text_settings(tokenizer)}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision: dict[str, Any] = {
        "depth": 2, "hidden_size": HIDDEN, "num_heads": 4, "intermediate_size": 2 * HIDDEN,
        "patch_size": PATCH,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": HIDDEN,
    }  # fmt: skip
    if kind == "qwen2_5_vl":
        vision |= {"window_size": 4 * PATCH, "fullatt_block_indexes": [1]}
        config: Any = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
        network: Any = hf.Qwen2_5_VLForConditionalGeneration(config)
        made: type = hf.Qwen2_5_VLProcessor
    else:
        text["head_dim"] = HIDDEN // 4
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
        config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
        network = hf.Qwen3VLForConditionalGeneration(config)
        made = hf.Qwen3VLProcessor
    pixels = hf.Qwen2VLImageProcessor(
        patch_size=PATCH,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * PATCH**2, "longest_edge": 64 * PATCH**2},
    )
    video = (hf.Qwen2VLVideoProcessor if kind == "qwen2_5_vl" else hf.Qwen3VLVideoProcessor)(
        patch_size=PATCH, merge_size=2, temporal_patch_size=2
    )
    return network, made(pixels, tokenizer, video, chat_template=tokenizer.chat_template)


def _text(kind: str, tokenizer: Any) -> tuple[Any, Any]:
    settings = _text_settings(tokenizer)
    if kind == "phi3":
        return hf.Phi3ForCausalLM(hf.Phi3Config(**settings)), tokenizer
    if kind == "mistral":
        return hf.MistralForCausalLM(hf.MistralConfig(**settings, sliding_window=None)), tokenizer
    return hf.LlamaForCausalLM(hf.LlamaConfig(**settings)), tokenizer


def _vision(kind: str, tokenizer: Any) -> tuple[Any, Any]:
    if kind == "clip":
        return hf.CLIPVisionModel(_tower(hf.CLIPVisionConfig)), _pixels(hf.CLIPImageProcessor)
    if kind == "siglip":
        size = {"height": SIDE, "width": SIDE}
        return hf.SiglipVisionModel(_tower(hf.SiglipVisionConfig)), hf.SiglipImageProcessor(size=size)
    if kind == "timm":
        sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": HIDDEN, "depth": 2, "num_heads": 4}
        pixels = {"input_size": [3, SIDE, SIDE], "crop_pct": 0.8, "interpolation": "bicubic"}
        named: dict[str, Any] = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": pixels}
        made = hf.TimmWrapperModel(_config(hf.TimmWrapperConfig)(**named, model_args=sizes))
        return made, hf.TimmWrapperImageProcessor(pixels)
    config = hf.Dinov2Config(
        hidden_size=HIDDEN, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE, patch_size=PATCH
    )
    return hf.Dinov2Model(config), _pixels(hf.BitImageProcessor)


_MAKERS: dict[str, Callable[[str, Any], tuple[Any, Any]]] = {
    "llava": _llava,
    "llava_next": _llava,
    "idefics3": _idefics,
    "smolvlm": _idefics,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "llama": _text,
    "phi3": _text,
    "mistral": _text,
}
KINDS = tuple(_MAKERS)
_MAKERS |= {"clip": _vision, "siglip": _vision, "dinov2": _vision, "timm": _vision}
VISION_KINDS = ("clip", "siglip", "dinov2", "timm")


def save_tiny(kind: str, folder: Path | str, seed: int = 0) -> Path:
    """Write a tiny model and its processor as transformers does."""
    network, processor = tiny_hub(kind, seed)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    save_tiny(sys.argv[1], sys.argv[2])
