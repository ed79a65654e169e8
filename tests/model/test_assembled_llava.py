"""Assembled models: the parts' weights are theirs, and the standard ones need nothing of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from fieldguide.errors import GuideError
from fieldguide.model.hub import HubPictures
from fieldguide.model.llava import PROJECTORS, assemble_llava
from fieldguide.model.opening import Opened, open_model
from fieldguide.settings import TrainSettings
from fieldguide.testing.hub import SIDE, VISION_KINDS, save_tiny, tiny_hub

QUESTION = "What is it?"
TOKENS = {"mlp": 16, "linear": 16, "pooled": 1, "shuffled": 4}


def image(height: int = 40, width: int = 70) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def opened(tmp_path: Path, language: str, vision: str, **settings: Any) -> Opened:
    save_tiny(language, tmp_path / "language")
    save_tiny(vision, tmp_path / "vision")
    wanted = TrainSettings(model=str(tmp_path / "language"), vision=str(tmp_path / "vision"), **settings)
    return open_model(wanted, announce=lambda line: None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("language", ["llama", "phi3", "mistral"])
@pytest.mark.parametrize("vision", VISION_KINDS)
@pytest.mark.parametrize("projector", PROJECTORS)
def test_the_parts_keep_their_numbers(tmp_path: Path, language: str, vision: str, projector: str) -> None:
    model = opened(tmp_path, language, vision, projector=projector).model
    alone, _ = tiny_hub(language)
    ids = torch.tensor([[5, 6, 7, 8]])
    size = alone.config.vocab_size
    assert torch.equal(alone(input_ids=ids).logits, model.bare(input_ids=ids).logits[..., :size])
    tower, _ = tiny_hub(vision)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    theirs = model.bare.model.vision_tower(pixels).last_hidden_state
    assert torch.equal(tower(pixels).last_hidden_state, theirs)
    assert model.prepare([image()]).tokens == (model.image_token,) * TOKENS[projector]
    batch = HubPictures((model.prepare([image()]), model.prepare([image(33, 20)])))
    assert torch.isfinite(model.start(QUESTION, batch).logits).all()


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_plain_transformers_answers_the_same(tmp_path: Path, vision: str) -> None:
    made = opened(tmp_path, "llama", vision)
    plain = transformers.LlavaForConditionalGeneration.from_pretrained(made.folder, local_files_only=True)
    processor = transformers.AutoProcessor.from_pretrained(made.folder, local_files_only=True)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=[text], images=[[image()]], return_tensors="pt")
    with torch.no_grad():
        theirs = plain(**inputs).logits[0, -1]
    ours = made.model.start(QUESTION, HubPictures((made.model.prepare([image()]),))).logits[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_same_recipe_finds_the_same_folder_and_another_seed_another(tmp_path: Path) -> None:
    first = opened(tmp_path, "llama", "clip")
    assert opened(tmp_path, "llama", "clip").folder == first.folder
    assert opened(tmp_path, "llama", "clip", seed=1).sha256 != first.sha256
    assert opened(tmp_path, "llama", "clip", projector="linear").sha256 != first.sha256


def test_four_bits_are_for_the_language_part_alone(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = opened(tmp_path, "phi3", "clip", projector="pooled", quantise="nf4").model
    quantised = {
        model.family.part_of(name)
        for name, module in model.bare.named_modules()
        if type(module).__name__ == "Linear4bit"
    }
    assert quantised == {"language"}


def test_a_language_model_without_a_chat_template_is_refused() -> None:
    language, tokenizer = tiny_hub("llama")
    tokenizer.chat_template = None
    vision, pixels = tiny_hub("clip")
    with pytest.raises(GuideError, match="chat template"):
        assemble_llava(vision, language, tokenizer, pixels)


@pytest.mark.starter
def test_the_real_language_model_keeps_its_tied_head(tmp_path: Path) -> None:
    from fieldguide.model.starter import starter_folder

    monkey = pytest.MonkeyPatch()
    monkey.delenv("FIELDGUIDE_CACHE")  # where the starter lies
    folder = starter_folder("language")
    monkey.undo()
    save_tiny("clip", tmp_path / "vision")
    wanted = TrainSettings(model=str(folder), vision=str(tmp_path / "vision"))
    made = open_model(wanted, announce=lambda line: None)
    network = made.model.bare
    assert (
        network.get_output_embeddings().weight.data_ptr() == network.get_input_embeddings().weight.data_ptr()
    )
    alone = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[504, 2471, 314, 253]])
    with torch.no_grad():
        size = alone.config.vocab_size
        assert torch.equal(alone(input_ids=ids).logits, network(input_ids=ids).logits[..., :size])
        plain = transformers.LlavaForConditionalGeneration.from_pretrained(made.folder)
        assert torch.equal(plain(input_ids=ids).logits, network(input_ids=ids).logits)
