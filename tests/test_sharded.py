"""`fieldguide train`, its weights sharded over two processes: the guide of one, resumed exactly."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from fieldguide.cli import app
from fieldguide.errors import SettingsError
from fieldguide.guide import load_guide
from fieldguide.model.opening import open_model
from fieldguide.model.tuning import prepare_parts
from fieldguide.settings import TrainSettings
from fieldguide.testing import tiny_model
from fieldguide.testing.hub import save_tiny
from fieldguide.train.sharded import Shards, check_shard, launched_sharded
from test_stopping import Tensors, command, run, start, stopped  # noqa: F401
from test_tune_faults import mixed

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SHARD = ("--set", "train.shard=true")


def settings(**values: object) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"train.{name}={value}")]


def finished(process: subprocess.Popen[str], guide: Path) -> str:
    said, errors = process.communicate(timeout=180)
    assert (guide / "guide.json").is_file(), errors[-3000:]
    return said


def tensors(guide: Path) -> Tensors:
    adapter = guide / "adapter" / "adapter_model.safetensors"
    return load_file(guide / "projector.safetensors") | (load_file(adapter) if adapter.is_file() else {})


@pytest.mark.parametrize(
    "more",
    [
        {"pretrain_epochs": 1, "language_part": "full", "gradient_checkpointing": "true"},
        {"pretrain_epochs": 0, "vision_part": "lora", "accumulate": 2},
    ],
    ids=["two stages, the whole language model", "adapters, the tower too"],
)
def test_two_processes_with_half_the_weights_each_make_the_guide_of_one(
    tmp_path: Path,
    command: list[str],  # noqa: F811
    more: dict[str, object],
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    plain = [*command, *settings(lora_dropout=0.0, epochs=2, **more)]
    run(*plain, "-o", str(one))
    said = finished(start(*plain, *SHARD, "-o", str(two), launcher=TWO), two)
    assert said.count("guide: ") == 1, "the first process speaks, the other is silent"
    assert "sharded over 2 processes (FSDP2)" in said
    wanted, found = tensors(one), tensors(two)
    assert wanted.keys() == found.keys()
    assert max(float((wanted[name] - found[name]).abs().max()) for name in wanted) < 1e-5
    shown = sorted((tmp_path / "photos" / "red").iterdir())[:3]
    answers, others = load_guide(one).classify(shown), load_guide(two).classify(shown)
    for answer, other in zip(answers, others, strict=True):
        assert other.probability == pytest.approx(answer.probability, abs=1e-4)
    first, second = (load_guide(guide).info["training"] for guide in (one, two))
    assert first["parts"] == second["parts"]
    assert second["frozen_parts_unchanged"]
    assert {p: c["changed"] for p, c in first["changes"].items()} == {
        p: c["changed"] for p, c in second["changes"].items()
    }


def test_a_sharded_training_that_was_stopped_goes_on_to_the_same_bits(
    tmp_path: Path,
    command: list[str],  # noqa: F811
) -> None:
    whole, guide = tmp_path / "whole", tmp_path / "stopped"
    sharded = [*command, *SHARD, *settings(pretrain_epochs=0)]
    finished(start(*sharded, "-o", str(whole), launcher=TWO), whole)
    stopped_two(start(*sharded, "-o", str(guide), launcher=TWO), guide / "checkpoints")
    finished(start(*sharded, "-o", str(guide), "--resume", launcher=TWO), guide)
    wanted, found = tensors(whole), tensors(guide)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    state = load_file(sorted((guide / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors")
    other = load_file(sorted((whole / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors")
    assert state.keys() == other.keys()
    assert [name for name in state if not torch.equal(state[name], other[name])] == []
    assert any(name.startswith("optimizer/exp_avg/") for name in state)
    adapter = load_file(whole / "adapter" / "adapter_model.safetensors")
    for name, tensor in adapter.items():  # the checkpoint holds whole tensors, not a process's share
        [same] = [k for k in other if k.startswith("parameter/") and name.replace(".weight", "") in k]
        assert other[same].shape == tensor.shape


def stopped_two(process: subprocess.Popen[str], folder: Path) -> None:
    """As `stopped`, of a launcher that passes the signal on to its processes."""
    import signal
    import time

    end = time.monotonic() + 120
    while not list(folder.glob("step-*/state.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "fieldguide: stopped after step " in errors, errors[-3000:]


def test_a_process_whose_rows_show_nothing_keeps_step_with_one_that_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words only in one process, pictures in the other: the gradient would take two ways."""
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    data, model = mixed(tmp_path), save_tiny("llava", tmp_path / "tiny")
    small = settings(model=model, epochs=2, batch_size=4, lora_rank=2, learning_rate=1e-3)
    plain = ["train", str(data.folder), *small]
    run(*plain, "-o", str(tmp_path / "one"))
    finished(start(*plain, *SHARD, "-o", str(tmp_path / "two"), launcher=TWO), tmp_path / "two")
    wanted, found = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert max(float((wanted[name] - found[name]).abs().max()) for name in wanted) < 1e-5


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process, this one."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_model_is_sharded_layer_by_layer_and_joined_again_as_it_was(tmp_path: Path) -> None:
    model = open_model(TrainSettings(model=str(save_tiny("llava", tmp_path / "m"))), announce=print).model
    model.network = prepare_parts(model.network, model.family, TrainSettings(lora_rank=2), "base")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    shards = Shards(model, "cpu", 1)
    for name, parameter in model.named_parameters():
        frozen_tower = model.family.part_of(name) == "vision"
        assert isinstance(parameter, DTensor) != frozen_tower, name
    assert all(isinstance(layer, FSDPModule) for layer in model.decoder.layers)
    joined = shards.joined()
    assert not any(isinstance(module, FSDPModule) for module in joined.modules())
    after = dict(joined.named_parameters())
    assert after.keys() == before.keys()
    assert all(type(p) is torch.nn.Parameter and torch.equal(p, before[n]) for n, p in after.items())
    assert {name for name, p in after.items() if p.requires_grad} == trains


def test_a_launcher_that_was_told_to_shard_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched_sharded() == ""
    for name, how in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed ZeRO")):
        monkeypatch.setenv(name, "true")
        assert launched_sharded() == how
        assert name not in os.environ, "accelerate must not shard a second time"


def test_what_cannot_be_sharded_is_refused(tmp_path: Path) -> None:
    model = open_model(TrainSettings(model=str(save_tiny("llava", tmp_path))), announce=print).model
    check_shard(model, TrainSettings(), "fp32")
    for asked, precision, said in (
        (TrainSettings(quantise="nf4"), "fp32", "weights in 4 bits are not sharded"),
        (TrainSettings(optimizer="adamw8bit"), "bf16", "adamw8bit is not sharded"),
        (TrainSettings(), "fp16", "use train.precision=bf16"),
    ):
        with pytest.raises(SettingsError) as caught:
            check_shard(model, asked, precision)
        assert said in str(caught.value)
    with pytest.raises(SettingsError, match="the starter is small"):
        check_shard(tiny_model(["ox", "cat"]), TrainSettings(), "fp32")


def test_a_lone_process_says_that_it_holds_everything(tmp_path: Path, command: list[str]) -> None:  # noqa: F811
    from typer.testing import CliRunner

    more = settings(pretrain_epochs=0, epochs=1)
    done = CliRunner().invoke(app, [*command, *SHARD, *more, "-o", str(tmp_path / "x")])
    assert done.exit_code == 0, done.output
    assert "train.shard: there is one process, which holds everything" in done.output
