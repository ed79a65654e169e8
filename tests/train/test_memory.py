"""The memory plan: it changes nothing, refuses what will not fit with what to change, and reckons truly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tiny_training as tiny
import torch

from fieldguide.errors import SettingsError
from fieldguide.settings import TrainSettings
from fieldguide.train import memory
from fieldguide.train.checkpoint import checkpoints, trained
from fieldguide.train.memory import MemoryPlan, MemoryUse, plan_memory, reckon

CPU = torch.device("cpu")


def held(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's states and of the gradients."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [t for p in parameters for t in optimizer.state[p].values()]
    return sum(t.numel() * t.element_size() for t in [*states, *(p.grad for p in parameters)])


def test_planning_changes_no_weight_and_no_random_number(tmp_path: Path) -> None:
    run = tiny.make_loop(tmp_path / "planned")
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    random = torch.get_rng_state()
    plan = plan_memory(run, run.settings)
    assert torch.equal(torch.get_rng_state(), random)
    after = run.model.state_dict()
    assert [name for name in weights if not torch.equal(after[name], weights[name])] == []
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert run.optimizer.optimizer.state == {}
    assert plan.rows == len(run.worst_batch()) > 1
    assert plan.peak > plan.weights > 0
    assert plan.in_words().startswith("memory: weights 0.00 GB")


def test_a_planned_training_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    plain, planned = tiny.make_loop(tmp_path / "plain"), tiny.make_loop(tmp_path / "planned")
    plain.run()
    plan_memory(planned, planned.settings)
    planned.run()
    wanted, found = trained(plain.model), trained(planned.model)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_the_worst_batch_is_the_one_with_most_padded_tokens(tmp_path: Path) -> None:
    run = tiny.make_loop(tmp_path, batch_size=6)
    worst = run.worst_batch()
    rows = run.rows_of(0)
    padded = [len(n) * max(len(rows[i].ids) for i in n) for n in run._order(rows, 0)]
    assert len(worst) * max(len(row.ids) for row in worst) == max(padded) > min(padded)


def test_states_are_reckoned_as_adamw_holds_them(tmp_path: Path) -> None:
    run = tiny.make_loop(tmp_path)
    weights, states = reckon(run.model, run.settings)
    rows = run.worst_batch()
    run.model.train()
    run._backward(rows, sum(row.targets for row in rows))
    run.optimizer.optimizer.step()
    assert states == pytest.approx(held(run.optimizer.optimizer), rel=0.25)
    stored = sum(t.numel() * t.element_size() for t in run.model.state_dict().values())
    assert weights == pytest.approx(stored, rel=0.01)  # rotary frequencies are held, and not stored
    assert reckon(run.model, TrainSettings(optimizer="adamw8bit"))[1] == states / 2


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"batch_size": 8}, "a smaller train.batch_size or train.batch_tokens"),
        ({}, "train.gradient_checkpointing=true"),
        ({}, "train.quantise=nf4"),
        ({"language_part": "full"}, "train.language_part=lora"),
        (
            {"batch_size": 1, "batch_tokens": 1024, "gradient_checkpointing": True, "quantise": "nf4"},
            "smaller model",
        ),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, remedy: str
) -> None:
    run = tiny.make_loop(tmp_path, memory_limit_gb=1e-5, **settings)
    monkeypatch.setattr(
        run, "dry_run", lambda rows: pytest.fail("a batch ran, though the weights do not fit")
    )
    with pytest.raises(SettingsError, match=r"the weights and the optimizer alone need 0\.00 GB") as caught:
        plan_memory(run, run.settings)
    assert remedy in caught.value.hint
    assert checkpoints(tmp_path) == []


def test_a_batch_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """More than the weights, less than the process has in use."""
    run = tiny.make_loop(tmp_path, memory_limit_gb=0.01)
    with pytest.raises(
        SettingsError, match=r"the longest batch brings it to .* there are 0\.01 GB on a device"
    ):
        plan_memory(run, run.settings)


def test_a_device_without_room_for_the_batch_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.make_loop(tmp_path)

    def full(rows: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "dry_run", full)
    with pytest.raises(SettingsError, match="the longest batch needs more than"):
        plan_memory(run, run.settings)


@pytest.mark.parametrize("kernel_keeps_it", [True, False])
def test_what_a_batch_adds_is_seen(monkeypatch: pytest.MonkeyPatch, kernel_keeps_it: bool) -> None:
    """Also after a larger peak, and where the kernel cannot forget that peak."""
    if not kernel_keeps_it:
        monkeypatch.setattr(memory, "forget_peak", lambda: False)
    earlier = torch.ones(64_000_000)
    del earlier
    with MemoryUse(CPU) as use:
        block = torch.ones(16_000_000)  # 64 MB
        time.sleep(0.05)
        del block
    assert 60e6 < use.most - use.before < 90e6


def test_the_plan_in_words() -> None:
    plan = MemoryPlan(int(8e9), int(2e9), int(3e9), int(12e9), int(24e9), 4, 2048)
    assert plan.in_words() == (
        "memory: weights 8.00 GB, gradients and optimizer 2.00 GB; the worst batch (4 rows, 2048 tokens) "
        "adds 3.00 GB: about 14.00 of 24.0 GB"
    )
