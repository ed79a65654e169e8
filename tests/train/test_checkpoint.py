"""Checkpoints: complete, whole or absent, without pickle, and only for the training they belong to."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fieldguide.errors import ResumeError
from fieldguide.model.assemble import Assembled
from fieldguide.testing import tiny_features, tiny_model
from fieldguide.train import checkpoint
from fieldguide.train.checkpoint import (
    Progress,
    check_identity,
    checkpoints,
    keep_last,
    load_checkpoint,
    save_checkpoint,
    save_tensors,
    trained,
)

IDENTITY = {"data set": "abc", "training settings": {"seed": 0, "epochs": 3}}
PROGRESS = Progress(7, 1, 3, 0, 0.1 + 0.2, 1, False, 99, 1 / 3, [{"epoch": 0, "loss": 2 / 3}])


def new() -> tuple[Assembled, torch.optim.AdamW]:
    """A model with every kind of trained part, and its optimizer."""
    model = tiny_model(["ox", "cat"], patch_tokens=4, lora_rank=2)
    return model, torch.optim.AdamW(trained(model).values(), lr=0.01)


def step(model: Assembled, optimizer: torch.optim.Optimizer) -> None:
    """One training step on noise of the global random state."""
    loss = (model.projector(tiny_features(model, 2)) * torch.randn(2, 5, 32)).sum()
    loss = loss + sum((p * torch.randn_like(p)).sum() for p in trained(model).values())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def state(model: Assembled) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained(model).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_holds_every_trained_tensor_and_its_moments(tmp_path: Path) -> None:
    """Case 7: the projector is in every checkpoint, not only in the last."""
    model, optimizer = new()
    step(model, optimizer)
    path = save_checkpoint(tmp_path, model, optimizer, PROGRESS, IDENTITY)
    assert path.name == "step-000007"
    tensors = load_file(path / "tensors.safetensors")
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in names if name.startswith("projector.")} == {
        "projector.table", "projector.bias", "projector.patch.0.weight", "projector.patch.0.bias",
        "projector.patch.2.weight", "projector.patch.2.bias",
    }  # fmt: skip
    assert sum("lora_" in name for name in names) == 28
    wanted = {f"parameter/{name}" for name in names} | {"random/0/cpu"}
    wanted |= {f"optimizer/{m}/{name}" for name in names for m in ("exp_avg", "exp_avg_sq", "step")}
    assert set(tensors) - {"random/0/cuda"} == wanted
    for name in names:
        assert torch.equal(tensors[f"parameter/{name}"], trained(model)[name].detach().cpu())


def test_a_checkpoint_is_made_of_safetensors_and_json_alone(tmp_path: Path) -> None:
    model, optimizer = new()
    step(model, optimizer)
    path = save_checkpoint(tmp_path, model, optimizer, PROGRESS, IDENTITY)
    assert sorted(file.name for file in path.iterdir()) == ["state.json", "tensors.safetensors"]
    data = (path / "tensors.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert 8 + length + max(ends) == len(data)
    assert json.loads((path / "state.json").read_text())["identity"] == IDENTITY


def test_going_on_from_a_checkpoint_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, optimizer = new()
    step(model, optimizer)
    path = save_checkpoint(tmp_path, model, optimizer, PROGRESS, IDENTITY)
    step(model, optimizer)
    wanted = state(model)
    torch.manual_seed(4)
    other, fresh = new()
    with torch.no_grad():
        for parameter in trained(other).values():
            parameter.add_(1)
    assert load_checkpoint(path, other, fresh) == PROGRESS
    step(other, fresh)
    assert equal(state(other), wanted)


def test_a_write_that_fails_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, value: object) -> None:
        raise OSError("disk full")

    model, optimizer = new()
    monkeypatch.setattr(checkpoint, "write_json", broken)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, model, optimizer, PROGRESS, IDENTITY)
    assert list(tmp_path.iterdir()) == []
    assert checkpoints(tmp_path) == []


def test_a_projector_that_was_not_saved_is_missed(tmp_path: Path) -> None:
    """Case 7: a checkpoint without a trained part is refused, not half loaded."""
    model, optimizer = new()
    model.projector.requires_grad_(False)
    path = save_checkpoint(tmp_path, model, optimizer, PROGRESS, IDENTITY)
    other, fresh = new()
    with pytest.raises(
        ResumeError, match=r"other parameters were trained there \(projector\.bias and 5 more"
    ):
        load_checkpoint(path, other, fresh)


def test_a_model_whose_base_is_trained_too_is_refused(tmp_path: Path) -> None:
    """Case 12: a resume trains what the run before it trained, and nothing else."""
    model, optimizer = new()
    path = save_checkpoint(tmp_path, model, optimizer, PROGRESS, IDENTITY)
    other, fresh = new()
    other.language_model.requires_grad_(True)
    before = state(other)
    with pytest.raises(ResumeError, match="other parameters were trained there"):
        load_checkpoint(path, other, fresh)
    assert equal(state(other), before)


def test_differences_of_identity_are_named(tmp_path: Path) -> None:
    """Case 13: another data set is told by its fingerprint."""
    model, optimizer = new()
    path = save_checkpoint(tmp_path, model, optimizer, PROGRESS, IDENTITY)
    check_identity(path, json.loads(json.dumps(IDENTITY)))
    changed = {"data set": "xyz", "training settings": {"seed": 0, "epochs": 4}, "weights": "new"}
    with pytest.raises(ResumeError) as caught:
        check_identity(path, changed)
    assert "data set: was abc, is xyz" in caught.value.message
    assert "training settings, epochs: was 3, is 4" in caught.value.message
    assert "seed" not in caught.value.message
    assert "weights: was None, is new" in caught.value.message
    with pytest.raises(ResumeError) as caught:
        check_identity(path, {**IDENTITY, "data set": "xyz"})
    assert "training settings" not in caught.value.message


def test_the_last_checkpoints_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    model, optimizer = new()
    for number in (5, 20, 999999, 1000000):
        save_checkpoint(tmp_path, model, optimizer, Progress(step=number), IDENTITY)
    save_tensors(tmp_path / "best.safetensors", {"x": torch.zeros(1)})
    (tmp_path / ".step-000003.abc.tmp").mkdir()
    (tmp_path / ".step-000003.abc.tmp" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / ".best.safetensors.xyz.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-000005", "step-000020", "step-999999", "step-1000000",
    ]  # fmt: skip
    keep_last(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors", "notes.txt", "step-1000000", "step-999999",
    ]  # fmt: skip


def test_half_a_checkpoint_does_not_count(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "absent") == []
    (tmp_path / "step-000003").mkdir()
    (tmp_path / "step-000003" / "tensors.safetensors").write_bytes(b"half")
    assert checkpoints(tmp_path) == []
