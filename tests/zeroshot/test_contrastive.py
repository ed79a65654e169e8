"""CLIP and SigLIP: the label whose texts lie nearest, as the library computes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing

from fieldguide.records import Note
from fieldguide.settings import ZeroShotSettings
from fieldguide.testing import tiny_tokenizer
from fieldguide.zeroshot.contrastive import ContrastiveZeroShot
from fieldguide.zeroshot.names import LabelNames

SIDE = 32
NAMES = LabelNames(
    ("cat", "sea cucumber"), {"cat": Note("cat", synonyms=("kitten",), field_marks=("pointed ears",))}
)


def save_dual(folder: Path, kind: str) -> Path:
    """A tiny dual encoder with a tokenizer and a processor, as transformers saves it."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(["cat"])
    end = str(tokenizer.eos_token)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # CLIP reads a text at its end mark
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0,
            "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0}  # fmt: skip
    vision = {**size, "image_size": SIDE, "patch_size": 8}
    pixels: Any
    if kind == "clip":
        network: Any = transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={**text, "projection_dim": 16}, vision_config=vision, projection_dim=16
            )
        )
        square = {"height": SIDE, "width": SIDE}
        pixels = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
        processor: Any = transformers.CLIPProcessor(pixels, tokenizer)
    else:
        network = transformers.SiglipModel(
            transformers.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision)
        )
        pixels = transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
        processor = transformers.SiglipProcessor(pixels, tokenizer)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_are_those_of_the_library(
    tmp_path: Path, kind: str, make_picture: Callable[..., Path]
) -> None:
    settings = ZeroShotSettings(templates=("a photo of a {}.",), marks=False, prior=False)
    names = LabelNames(("cat", "sea cucumber", "ox"))
    folder = save_dual(tmp_path / kind, kind)
    model = ContrastiveZeroShot("tiny", folder, names, settings)
    paths = [make_picture(f"{n}.png", n, (50, 40 + n)) for n in range(3)]
    plain = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    texts = [f"a photo of a {label}." for label in names.labels]
    padding = {"padding": "max_length", "max_length": 64} if kind == "siglip" else {"padding": True}
    words = processor.tokenizer(texts, return_tensors="pt", **padding)
    for path in paths:
        pixels = processor.image_processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            out = plain(**words, pixel_values=pixels["pixel_values"])
        logits = out.logits_per_image[0].double()
        share = logits.softmax(0) if kind == "clip" else logits.sigmoid() / logits.sigmoid().sum()
        [answer] = model.classify([path])
        found = {score.label: score.probability for score in answer.scores}
        assert [found[label] for label in names.labels] == pytest.approx(share.tolist(), abs=1e-4)


def test_prompts_are_all_names_in_all_templates_and_the_field_marks(tmp_path: Path) -> None:
    model = ContrastiveZeroShot(
        "tiny", save_dual(tmp_path / "clip", "clip"), NAMES, ZeroShotSettings(templates=("a {}", "the {}"))
    )
    assert model.texts("cat") == [
        "a cat",
        "the cat",
        "a kitten",
        "the kitten",
        "a photo of a cat, pointed ears.",
    ]
    vectors = model._text_vectors(model.texts("cat"))
    mean = torch.nn.functional.normalize(vectors.mean(0), dim=-1)
    assert torch.allclose(model.label_vectors[0], mean, atol=1e-6)


def test_the_order_of_labels_and_batch_mates_change_nothing(
    tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    folder = save_dual(tmp_path / "clip", "clip")
    paths = [make_picture(f"{n}.png", n, (50, 40 + n)) for n in range(3)]
    one = ContrastiveZeroShot("tiny", folder, NAMES, ZeroShotSettings(batch_size=2))
    turned = LabelNames(tuple(reversed(NAMES.labels)), NAMES.notes)
    other = ContrastiveZeroShot("tiny", folder, turned, ZeroShotSettings(batch_size=2))
    for path, answer, again in zip(paths, one.classify(paths), other.classify(paths), strict=True):
        assert {s.label: s.probability for s in again.scores} == pytest.approx(
            {s.label: s.probability for s in answer.scores}, abs=1e-6
        )
        [alone] = one.classify([path])
        assert alone.probability == pytest.approx(answer.probability, abs=1e-6)
    assert np.isclose(sum(s.probability for s in answer.scores), 1)
