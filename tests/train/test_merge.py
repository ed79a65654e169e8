"""Merging: what it writes answers as the trained model did, or nothing is written and the reason is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_merge import base_folder, identity_of, load_base, probes, trained_projector, write_adapter
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, GenerationConfig

from fieldguide.errors import FieldguideError, GuideError, MergeError
from fieldguide.train.fingerprints import adapter_files, base_hash, digests, tensors_hash, tied
from fieldguide.train.folder import Licence
from fieldguide.train.merge import Certificate, merge
from fieldguide.train.probe import Tolerance, measure, prepare

Draw = Callable[..., Any]
KINDS = ("llava", "smolvlm", "qwen2_5_vl", "llama", "phi3")


class Trained:
    """A base, its adapter and its trained projector, as training leaves them behind."""

    def __init__(
        self, kind: str, folder: Path, *, quantise: str = "", tied: bool = False, **lora: Any
    ) -> None:
        self.kind, self.folder, self.quantise = kind, folder, quantise
        self.base, self.processor = base_folder(kind, folder / "base", tied=tied)
        network = load_base(kind, self.base, quantise=quantise)
        self.adapter = write_adapter(kind, network, folder / "adapter", **lora)
        self.full = trained_projector(kind, network)
        self.identity = identity_of(network, self.adapter, self.full, quantised=bool(quantise))
        self.out = folder / "merged"

    def network(self) -> Any:
        return load_base(self.kind, self.base, quantise=self.quantise)

    def merge(self, draw: Draw, **other: Any) -> Certificate:
        parts = {
            "network": self.network() if "network" not in other else None,
            "adapter_folder": self.adapter,
            "full_tensors": self.full,
            "processor": self.processor,
            "probes": probes(self.kind, draw),
            "out": self.out,
            "identity": self.identity,
        }
        return merge(**{**parts, **other})

    def refused(self, draw: Draw, kind: type[FieldguideError], reason: str, **other: Any) -> FieldguideError:
        """The error of a merge that must fail; nothing may be left of it."""
        with pytest.raises(kind, match=reason) as caught:
            self.merge(draw, **other)
        assert not self.out.exists()
        assert [path.name for path in self.folder.iterdir() if path.name.startswith(".")] == []
        return caught.value


@pytest.fixture
def llama(tmp_path: Path) -> Trained:
    return Trained("llama", tmp_path)


@pytest.mark.parametrize("quantise", ["", "nf4", "nf4 double"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_answers_are_the_same_after_merging(
    kind: str, quantise: str, tmp_path: Path, draw: Draw
) -> None:
    trained = Trained(kind, tmp_path, quantise=quantise)
    rows = prepare(probes(kind, draw), trained.processor)
    plain = float(measure(trained.network().train(), rows[0]).losses.mean())
    certificate = trained.merge(draw)
    found = certificate.before_and_after
    assert certificate.relative_loss_difference < 1e-3
    assert found.relative_logit < 1e-3
    assert abs(found.loss_before - plain) > 0.01, "the adapter does something"
    assert certificate.merged_modules == certificate.adapter_modules == (8 if kind == "phi3" else 14)
    assert certificate.full_tensors == len(trained.full)
    assert (certificate.full_tensors > 0) == (kind not in ("llama", "phi3"))
    assert certificate.quantised == bool(quantise)
    assert json.loads((trained.out / "certificate.json").read_text()) == json.loads(
        json.dumps(certificate.to_dict())
    )
    assert certificate.read_back.relative_logit < 1e-3


def test_plain_transformers_and_peft_agree_with_the_merged_folder(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llama", tmp_path)
    row = {k: v for k, v in prepare(probes("llama", draw), trained.processor)[0].items() if k != "labels"}
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trained.base), str(trained.adapter))
    certificate = trained.merge(draw)
    merged = AutoModelForCausalLM.from_pretrained(trained.out)
    with torch.no_grad():
        assert torch.allclose(merged(**row).logits, live.eval()(**row).logits, atol=1e-4)
    assert certificate.unchanged_tensors == len(digests(merged)) - 14
    assert AutoTokenizer.from_pretrained(trained.out).chat_template == trained.processor.chat_template


def test_everything_but_the_targets_is_bit_identical_and_ties_stay(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llama", tmp_path, tied=True, quantise="nf4")
    base = trained.network().dequantize()
    certificate = trained.merge(draw)
    merged = AutoModelForCausalLM.from_pretrained(trained.out)
    assert tied(merged) == {("lm_head.weight", "model.embed_tokens.weight")} == tied(base)
    assert certificate.tied_weights == 1
    old, new = digests(base), digests(merged)
    assert {name for name in old if old[name] != new[name]} == {n for n in old if "_proj" in n}


def test_a_trained_projector_alone_is_merged(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llava", tmp_path)
    identity = replace(trained.identity, adapter={})
    certificate = trained.merge(draw, adapter_folder=None, identity=identity)
    assert (certificate.adapter_modules, certificate.full_tensors) == (0, 4)
    weights = load_file(trained.out / "model.safetensors")
    for name, tensor in trained.full.items():
        short = name.removeprefix("model.")
        assert torch.equal(weights.get(name, weights.get(short)), tensor)


def test_everything_travels(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llava", tmp_path)
    network = trained.network()
    # As several published models have it: greedy, with values only sampling reads. It is not saved as it is.
    network.generation_config = GenerationConfig(temperature=0.9, top_p=0.6, max_new_tokens=77)
    trained.merge(draw, network=network)
    read = AutoProcessor.from_pretrained(trained.out)
    assert read.image_processor.to_dict() == trained.processor.image_processor.to_dict()
    assert read.chat_template == trained.processor.chat_template
    assert GenerationConfig.from_pretrained(trained.out).max_new_tokens == 77
    assert "Apache License" in (trained.out / "licences" / "base_model_tiny.txt").read_text()
    assert json.loads((trained.out / "licences.json").read_text())[0]["licence"] == "Apache-2.0"
    assert "quantization_config" not in json.loads((trained.out / "config.json").read_text())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantise", ["", "nf4"])
def test_16_bit_weights_keep_to_their_tolerance(
    dtype: torch.dtype, quantise: str, tmp_path: Path, draw: Draw
) -> None:
    trained = Trained("llama", tmp_path)
    network = load_base("llama", trained.base, dtype=dtype, quantise=quantise)
    identity = identity_of(network, trained.adapter, {}, quantised=bool(quantise))
    certificate = trained.merge(draw, network=network, identity=identity)
    assert certificate.dtype == str(dtype).removeprefix("torch.")
    assert certificate.tolerance == Tolerance.of(dtype)
    assert AutoModelForCausalLM.from_pretrained(trained.out, dtype="auto").dtype == dtype


def test_a_16_bit_base_may_be_merged_in_fp32_and_then_loses_nothing(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llama", tmp_path)
    load_base("llama", trained.base, dtype=torch.bfloat16).save_pretrained(trained.base)
    in_training = load_base("llama", trained.base, dtype=torch.bfloat16)
    certificate = trained.merge(draw, identity=identity_of(in_training, trained.adapter, {}))
    assert certificate.dtype == "float32"
    assert certificate.relative_loss_difference < 1e-3


def test_prepared_rows_do_as_well_as_callables(llama: Trained, draw: Draw) -> None:
    rows = prepare(probes("llama", draw), llama.processor)
    assert llama.merge(draw, probes=rows).probe_rows == 3


# --- faults, each refused with its reason -------------------------------------------------------------


def test_beyond_tolerance_nothing_is_written_and_the_figures_are_said(llama: Trained, draw: Draw) -> None:
    error = llama.refused(draw, MergeError, "answers otherwise", tolerance=Tolerance(0.0, 0.0))
    assert "loss" in error.message
    assert "before" in error.message
    assert "after" in error.message


def test_a_merge_into_4_bit_weights_is_found_by_the_figures(
    llama: Trained, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ruined others: weights quantised anew after merging. Here they are rounded to 15 steps."""
    from peft.tuners.lora import LoraModel

    merged_as_it_should = LoraModel.merge_and_unload

    def rounded(self: Any, *given: Any, **named: Any) -> Any:
        network = merged_as_it_should(self, *given, **named)
        for name, parameter in network.named_parameters():
            if "_proj" in name:
                step = parameter.abs().max() / 7
                parameter.data = (parameter / step).round() * step
        return network

    monkeypatch.setattr(LoraModel, "merge_and_unload", rounded)
    llama.refused(draw, MergeError, "answers otherwise")


def test_the_wrong_base_is_refused(llama: Trained, draw: Draw, tmp_path: Path) -> None:
    other, _ = base_folder("llama", tmp_path / "other", seed=5)
    llama.refused(
        draw, GuideError, "not the weights the adapter was trained on", network=load_base("llama", other)
    )


def test_one_edited_weight_of_the_base_is_refused(llama: Trained, draw: Draw) -> None:
    network = llama.network()
    network.model.norm.weight[3] += 1e-3
    llama.refused(draw, GuideError, "not the weights the adapter was trained on", network=network)


def test_an_adapter_of_4_bit_weights_is_refused_on_the_original_ones(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llama", tmp_path, quantise="nf4")
    network = load_base("llama", trained.base)
    trained.refused(draw, GuideError, "trained on its 4-bit weights", network=network)


def test_a_swapped_adapter_is_refused(llama: Trained, draw: Draw, tmp_path: Path) -> None:
    other = write_adapter("llama", llama.network(), tmp_path / "other_adapter", seed=9)
    llama.refused(
        draw, GuideError, "adapter_model.safetensors not as training wrote it", adapter_folder=other
    )


def test_an_edited_tensor_and_an_edited_scale_are_refused(llama: Trained, draw: Draw) -> None:
    path = llama.adapter / "adapter_model.safetensors"
    original, tensors = path.read_bytes(), load_file(path)
    next(iter(tensors.values()))[0, 0] += 1e-3
    save_file(tensors, path)
    llama.refused(draw, GuideError, "adapter_model.safetensors not as training wrote it")
    path.write_bytes(original)
    config = llama.adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    llama.refused(draw, GuideError, "adapter_config.json not as training wrote it")


def test_a_projector_of_another_training_is_refused(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llava", tmp_path)
    other = {name: tensor + 0.1 for name, tensor in trained.full.items()}
    trained.refused(draw, GuideError, "not those of this training", full_tensors=other)


def test_trained_tensors_that_fit_nowhere_are_refused(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llava", tmp_path)
    name, tensor = next(iter(trained.full.items()))
    for full, reason in (
        ({name + "s": tensor}, "has no parameter"),
        ({name: tensor[:3]}, "as trained"),
    ):
        identity = replace(trained.identity, full_sha256=tensors_hash(full))
        trained.refused(draw, GuideError, reason, full_tensors=full, identity=identity)
    everything_in_4_bits = load_base("llava", trained.base, quantise="nf4", skip=())
    trained.refused(draw, GuideError, "held in 4 bits", network=everything_in_4_bits)


def _bound_anew(trained: Trained) -> dict[str, Any]:
    return {"identity": replace(trained.identity, adapter=adapter_files(trained.adapter))}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_refused(value: float, llama: Trained, draw: Draw) -> None:
    path = llama.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[5]
    tensors[name][0, 0] = value
    save_file(tensors, path)
    error = llama.refused(draw, MergeError, "not a number", **_bound_anew(llama))
    assert name in error.message


def _renamed(trained: Trained, old: str, new: str, count: int) -> dict[str, Any]:
    path = trained.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in sorted(tensors)[:count]:
        tensors[name.replace(old, new)] = tensors.pop(name)
    save_file(tensors, path)
    return _bound_anew(trained)


def test_an_adapter_that_matches_nothing_is_refused(llama: Trained, draw: Draw) -> None:
    other = _renamed(llama, "model.layers", "model.text.layers", 1000)
    llama.refused(draw, MergeError, "none of its 28 tensors matches", **other)


def test_single_tensors_that_match_nothing_are_named(llama: Trained, draw: Draw) -> None:
    other = _renamed(llama, "down_proj", "lowered_proj", 1)
    error = llama.refused(draw, MergeError, "1 of its 28 tensors match nothing", **other)
    assert "lowered_proj" in error.message


def test_an_adapter_with_fewer_tensors_than_its_targets_is_refused(llama: Trained, draw: Draw) -> None:
    path = llama.adapter / "adapter_model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if "layers.1.self_attn.q_proj" not in k}
    save_file(tensors, path)
    llama.refused(draw, GuideError, "tensors without a counterpart", **_bound_anew(llama))


def test_an_adapter_that_never_learnt_equals_the_base_and_is_refused(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llama", tmp_path, size=0.0)
    trained.refused(draw, MergeError, "14 of 14 target modules equal the base")


def test_a_merge_that_was_swallowed_is_refused(
    llama: Trained, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraModel

    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())
    llama.refused(draw, MergeError, "14 of 14 target modules equal the base")


def test_a_changed_tensor_outside_the_targets_is_refused(
    llama: Trained, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraModel

    merged_as_it_should = LoraModel.merge_and_unload

    def and_more(self: Any, *given: Any, **named: Any) -> Any:
        network = merged_as_it_should(self, *given, **named)
        network.model.norm.weight.data[0] += 1e-6
        return network

    monkeypatch.setattr(LoraModel, "merge_and_unload", and_more)
    llama.refused(draw, MergeError, "does not target: model.norm.weight")


def test_an_adapter_on_a_tied_head_cannot_change_the_embeddings(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llama", tmp_path, tied=True)
    network = trained.network()
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(network, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    adapted.save_pretrained(str(trained.adapter), save_embedding_layers=False)
    adapted.unload()
    trained.refused(draw, MergeError, "merging (changed tensors|untied)", **_bound_anew(trained))


def test_trained_tensors_that_equal_the_base_are_refused(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llava", tmp_path)
    network = trained.network()
    full = {name: dict(network.named_parameters())[name].clone() for name in trained.full}
    identity = identity_of(network, None, full)
    trained.refused(
        draw, MergeError, "never trained", adapter_folder=None, full_tensors=full, identity=identity
    )


def test_no_licence_is_a_reason(llama: Trained, draw: Draw) -> None:
    llama.refused(draw, MergeError, "no licence", identity=replace(llama.identity, licences=()))
    bare = (Licence("data set", "birds", ""),)
    llama.refused(draw, MergeError, "data set birds", identity=replace(llama.identity, licences=bare))


def test_rows_without_supervision_and_no_rows_are_refused(llama: Trained, draw: Draw) -> None:
    row = dict(prepare(probes("llama", draw), llama.processor)[0])
    row["labels"] = torch.full_like(row["labels"], -100)
    llama.refused(draw, MergeError, "probe row 1: nothing", probes=[row])
    llama.refused(draw, MergeError, "no probe rows", probes=[])


def test_a_folder_that_holds_something_is_left_alone(llama: Trained, draw: Draw) -> None:
    llama.out.mkdir()
    (llama.out / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(MergeError, match="not empty"):
        llama.merge(draw)
    assert (llama.out / "photo.jpg").read_bytes() == b"mine"


def test_a_folder_written_without_its_picture_settings_is_removed(
    tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained("llava", tmp_path)
    save = type(trained.processor).save_pretrained

    def forgetful(self: Any, folder: Path) -> None:
        save(self, folder)
        for name in ("preprocessor_config.json", "processor_config.json"):
            (Path(folder) / name).unlink(missing_ok=True)

    monkeypatch.setattr(type(trained.processor), "save_pretrained", forgetful)
    trained.refused(draw, MergeError, "plain transformers cannot load|reads back with another")


def test_weights_damaged_on_their_way_to_the_disk_are_found(
    llama: Trained, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fieldguide.train.merge as merging

    write = merging.write_folder

    def damaging(folder: Path, *given: Any) -> None:
        write(folder, *given)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][0] += 1e-6
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merging, "write_folder", damaging)
    llama.refused(draw, MergeError, "reads back otherwise: model.norm.weight")


def test_4_bit_weights_that_were_repacked_are_refused(tmp_path: Path, draw: Draw) -> None:
    trained = Trained("llama", tmp_path, quantise="nf4")
    network = trained.network()
    network.model.layers[0].self_attn.q_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(FieldguideError, match="repacked"):
        base_hash(network)


def test_the_hash_of_a_base_is_the_same_wrapped_and_in_another_type(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder, _ = base_folder("llama", tmp_path / "base")
    plain = load_base("llama", folder, dtype=torch.bfloat16)
    bare = base_hash(plain)
    assert base_hash(load_base("llama", folder, dtype=torch.bfloat16).float()) == bare
    assert base_hash(get_peft_model(plain, LoraConfig(target_modules=["q_proj"]))) == bare
    assert base_hash(load_base("llama", folder)) != bare, "fp32 holds more than bf16"
