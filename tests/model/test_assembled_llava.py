"""Assembled models: the parts' weights are theirs, and the standard ones need nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from fieldguide.errors import GuideError
from fieldguide.model.hub import HubPictures
from fieldguide.model.kinds import Opened
from fieldguide.model.llava import KEY, PROJECTORS, as_patches, assemble_llava, plain_pixels
from fieldguide.model.opening import open_model
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
    before = tower(pixels).last_hidden_state
    assert torch.equal(before[:, 1:] if vision == "timm" else before, theirs)  # timm's gives patches alone
    assert model.prepare([image()]).tokens == (model.image_token,) * TOKENS[projector]
    batch = HubPictures((model.prepare([image()]), model.prepare([image(33, 20)])))
    assert torch.isfinite(model.start(QUESTION, batch).logits).all()


def assert_plain_answers(made: Opened, network: Any) -> None:
    """A loaded network, with plain transformers' processor, gives the opened model's logits and words."""
    assert type(network) is type(made.model.bare)
    processor = transformers.AutoProcessor.from_pretrained(made.folder, local_files_only=True)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=[text], images=[[image()]], return_tensors="pt")
    with torch.no_grad():
        theirs = network(**inputs).logits[0, -1]
        assert torch.equal(made.model.bare(**inputs).logits[0, -1], theirs)
        said = network.generate(**inputs, max_new_tokens=6, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
    started = made.model.start(QUESTION, HubPictures((made.model.prepare([image()]),)))
    # Read in pieces, the sums are taken in another order: rounding grows with the logits' size.
    assert (started.logits[0] - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))
    ours = made.model.generate(started, 0, [], max_new_tokens=6)
    ends = [token for token in said.tolist() if token != made.model.tokenizer.eos_token_id]
    assert ours == ends
    assert ours


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2"])
def test_plain_transformers_answers_the_same(tmp_path: Path, vision: str) -> None:
    made = opened(tmp_path, "llama", vision)
    config = json.loads((made.folder / "config.json").read_text())
    assert (config["model_type"], KEY in config) == ("llava", False)
    plain = transformers.LlavaForConditionalGeneration.from_pretrained(made.folder, local_files_only=True)
    assert_plain_answers(made, plain)


OURS = [("clip", kind) for kind in PROJECTORS[1:]] + [("timm", kind) for kind in PROJECTORS]


@pytest.mark.parametrize(("vision", "projector"), OURS)
def test_what_is_not_llavas_own_says_so_and_reads_back(tmp_path: Path, vision: str, projector: str) -> None:
    made = opened(tmp_path, "llama", vision, projector=projector)
    config = json.loads((made.folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("fieldguide_llava", ["AssembledLlava"])
    again, found = transformers.AutoModelForImageTextToText.from_pretrained(
        made.folder, local_files_only=True, output_loading_info=True
    )
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_plain_answers(made, again)


def test_transformers_alone_refuses_what_is_not_llavas_own(tmp_path: Path) -> None:
    folder = opened(tmp_path, "llama", "clip", projector="pooled").folder
    code = (
        "import sys, transformers\n"
        "try: transformers.AutoModelForImageTextToText.from_pretrained(sys.argv[1], local_files_only=True)\n"
        "except ValueError as error: print(error)\n"
        "else: sys.exit('loaded')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fieldguide_llava" in done.stdout


@pytest.mark.parametrize("projector", PROJECTORS)
def test_the_picture_processor_decides_the_grid(projector: str) -> None:
    (language, tokenizer), (_, pixels) = tiny_hub("llama"), tiny_hub("dinov2")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=8
    )  # the published ones say 518 where their processors give 224: here 56, and 32
    parts = assemble_llava(
        transformers.Dinov2Model(config).eval(), language, tokenizer, pixels, projector=projector
    )
    inputs = parts.processor(text=["<image>"], images=[[image()]], return_tensors="pt")
    assert int((inputs["input_ids"] == parts.network.config.image_token_id).sum()) == TOKENS[projector]
    with torch.no_grad():
        assert torch.isfinite(parts.network(**inputs).logits).all()


@pytest.mark.parametrize(
    ("architecture", "sizes", "channels"),
    [
        ("resnet10t", {}, 512),  # (B, C, h, w)
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "depths": [1, 1],
                                          "num_heads": [2, 4], "embed_dim": 16}, 32),  # (B, h, w, C)
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 1}, 384),  # class and register tokens
    ],
)  # fmt: skip
def test_grids_of_timm_become_patches(architecture: str, sizes: dict[str, Any], channels: int) -> None:
    kind: Any = transformers.TimmWrapperConfig
    vision = transformers.TimmWrapperModel(kind(architecture=architecture, model_args=sizes)).eval()
    side = int(sizes.get("img_size", 64))
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = vision(pixels).last_hidden_state
        as_patches(vision)
        patches = vision(pixels).last_hidden_state[0]
    assert vision.config.hidden_size == channels
    grid = round(len(patches) ** 0.5)
    assert patches.shape == (grid**2, channels)
    second_row = {
        "resnet10t": lambda: theirs[0, :, 1, 0],
        "swin_tiny_patch4_window7_224": lambda: theirs[0, 1, 0],
        "vit_small_patch14_reg4_dinov2": lambda: theirs[0, 5 + grid],
    }[architecture]()
    assert torch.equal(patches[grid], second_row)


def test_timm_pictures_are_prepared_as_timm_does() -> None:
    _, theirs = tiny_hub("timm")
    ours = plain_pixels(theirs)
    small = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    for width, aside in ((90, 0), (77, 1)):  # 60 or 51 pixels wide when resized: 28 or 19 are cut off
        picture = Image.fromarray(small).resize((width, 60), Image.Resampling.BICUBIC)
        mine = ours(images=picture, return_tensors="pt")["pixel_values"]
        wanted = theirs(picture)["pixel_values"]
        assert mine.shape == wanted.shape == (1, 3, SIDE, SIDE)
        difference = mine[..., aside:] - wanted[..., : SIDE - aside]
        assert difference.abs().max() < 2.5 / 255 / 0.224
    theirs.data_config["crop_mode"] = "border"
    with pytest.raises(GuideError, match="border"):
        plain_pixels(theirs)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_parts_in_16_bits_stay_so(projector: str) -> None:
    (vision, pixels), (language, tokenizer) = tiny_hub("clip"), tiny_hub("llama")
    parts = assemble_llava(vision.bfloat16(), language.bfloat16(), tokenizer, pixels, projector=projector)
    assert {parameter.dtype for parameter in parts.network.parameters()} == {torch.bfloat16}
    inputs = parts.processor(text=["<image>"], images=[[image()]], return_tensors="pt").to(torch.bfloat16)
    with torch.no_grad():
        assert torch.isfinite(parts.network(**inputs).logits).all()


def test_encoders_that_give_no_square_grid_are_refused() -> None:
    language, tokenizer = tiny_hub("llama")
    vision, pixels = tiny_hub("clip")
    wide = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, do_center_crop=False)
    with pytest.raises(GuideError, match="not one square"):
        assemble_llava(vision, language, tokenizer, wide)
    other = transformers.CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    with pytest.raises(GuideError, match="does not take 48 × 48 pixels"):
        assemble_llava(vision, language, tokenizer, other)
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=8
    )
    registers = transformers.Dinov2WithRegistersModel(config).eval()
    with pytest.raises(GuideError, match="21 tokens for 4 × 4 patches"):
        assemble_llava(registers, language, tokenizer, pixels)


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
        found = network(input_ids=ids).logits
        # The weights are equal; where they lie decides which kernel multiplies them, and so the last bits.
        torch.testing.assert_close(alone(input_ids=ids).logits, found[..., :size], rtol=1e-5, atol=1e-4)
        plain = transformers.LlavaForConditionalGeneration.from_pretrained(made.folder)
        torch.testing.assert_close(plain(input_ids=ids).logits, found, rtol=1e-5, atol=1e-4)
    assert_plain_answers(made, plain)
