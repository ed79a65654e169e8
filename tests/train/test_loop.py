"""The training loop: it learns from pictures, moves what it should, and stops when it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_training as tiny
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file

from fieldguide.errors import FieldguideError, ResumeError
from fieldguide.model.assemble import Assembled
from fieldguide.train.checkpoint import Progress, checkpoints, trained
from fieldguide.train.loop import Loop, TrainResult, learning_rate_factor
from fieldguide.train.rows import Row, label_row

LEARNING = {
    "epochs": 10, "batch_size": 8, "accumulate": 1, "lora_dropout": 0.0, "patience": 0,
    "learning_rate": 1e-2, "projector_learning_rate": 1e-2, "checkpoint_every": 1000,
}  # fmt: skip


def copies(model: Assembled, *, learnt: bool) -> dict[str, torch.Tensor]:
    """The tensors that training may change, or all others, buffers included."""
    names = set(trained(model))
    return {k: v.detach().clone() for k, v in model.state_dict().items() if (k in names) == learnt}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def scripted(losses: list[float], seen: Callable[[], None] = lambda: None) -> Callable[[], dict[str, float]]:
    """A validation that gives these losses, one an epoch."""
    left = list(losses)

    def validate() -> dict[str, float]:
        seen()
        return {"loss": left.pop(0)}

    return validate


# --- a training that learns, looked at from several sides ------------------------------------------------


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Assembled, TrainResult, dict, dict]:
    """The model, the result, and the trained and the other tensors before."""
    model = tiny.new_model(lora_dropout=0.0)
    run = tiny.make_loop(tmp_path_factory.mktemp("learnt"), model=model, **LEARNING)
    before = copies(model, learnt=True), copies(model, learnt=False)
    return model, run.run(), *before


def test_loss_goes_down(learnt: tuple[Assembled, TrainResult, dict, dict]) -> None:
    history = learnt[1].progress.history
    assert [entry["epoch"] for entry in history] == list(range(10))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["validation_loss"] < 0.3 * history[0]["validation_loss"]
    assert learnt[1].progress.supervised_tokens > 0


def test_new_pictures_are_named_by_their_features(learnt: tuple[Assembled, TrainResult, dict, dict]) -> None:
    grid, pooled, targets = tiny.pictures(60, seed=2)
    named = tiny.label_scores(learnt[0], tiny.tensors(grid, pooled)).argmax(1).numpy()
    assert (named == targets).mean() > 0.9


def test_with_features_shuffled_between_pictures_accuracy_falls_to_chance(
    learnt: tuple[Assembled, TrainResult, dict, dict],
) -> None:
    """The model looks: without the picture nothing in the prompt tells the label."""
    grid, pooled, targets = tiny.pictures(300, seed=2)
    mixed = np.random.default_rng(0).permutation(300)
    named = tiny.label_scores(learnt[0], tiny.tensors(grid[mixed], pooled[mixed])).argmax(1).numpy()
    assert abs((named == targets).mean() - 1 / 3) < 0.1  # 3.7 standard deviations
    alike = tiny.label_scores(learnt[0], tiny.tensors(grid[:1].repeat(5, 0), pooled[:1].repeat(5, 0)))
    assert len(set(alike.argmax(1).tolist())) == 1


def test_trained_parts_move_and_frozen_parts_do_not(
    learnt: tuple[Assembled, TrainResult, dict, dict],
) -> None:
    """Cases 9 and 10: adapter and projector change, everything else is the same to the last bit."""
    model, result, before, frozen = learnt
    after = copies(model, learnt=True)
    assert {name.split(".")[0] for name in after} == {"language_model", "projector"}
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert equal(copies(model, learnt=False), frozen)
    assert {"projector.evidence_map", "projector.mean"} <= set(frozen)
    assert result.frozen_unchanged
    assert set(result.parts) == {
        "language model: base", "language model: LoRA adapter", "projector: summary tokens",
        "projector: patch tokens",
    }  # fmt: skip
    assert result.parts["language model: base"]["trained"] == 0
    assert set(result.changes) == set(result.parts) - {"language model: base"}
    for part, change in result.changes.items():
        assert change["changed"] == change["tensors"] > 0
        assert change["relative_change"] > 0.01
        assert result.parts[part]["trained"] == result.parts[part]["parameters"]


def test_what_trains_is_said_before_and_what_changed_after(tmp_path: Path) -> None:
    """Cases 9, 12 and 14: anyone can see which parts train, what they learn, and that they did."""
    run, told = tiny.make_loop(tmp_path, epochs=1), []
    run.announce = told.append
    model = run.model
    result = run.run()
    assert told[0] == (
        "learns what stands in ⟦⟧, such as '<|im_end|>\\n<|im_start|>assistant\\n⟦ox<|im_end|>⟧"
        "\\n<|im_start|>user\\nNotes: Field marks of ox: horns.\\nWhy?<|im_end|>"
        "\\n<|im_start|>assistant\\n⟦Typical of ox: horns.<|im_end|>⟧'"
    )
    adapter = sum(p.numel() for name, p in trained(model).items() if "lora_" in name)
    base = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert f"trains language model: LoRA adapter ({adapter:,} weights), projector: summary" in told[1]
    assert told[1].endswith(f"; frozen: language model: base ({base:,})")
    assert f"learnt from {result.progress.supervised_tokens:,} tokens: changed" in told[-1]
    assert all(f"{part} by " in told[-1] for part in result.changes)
    tiny.make_loop(tmp_path, epochs=1).run(resume=True)
    run = tiny.make_loop(tmp_path, epochs=1)
    run.announce = told.append
    run.run(resume=True)
    assert told.count(told[1]) == 2, "a resume trains the same parts"


def test_a_frozen_weight_that_moves_ends_the_training(tmp_path: Path) -> None:
    """Case 9: the adapter in the guide would not belong to the base weights it was trained on."""
    model = tiny.new_model()
    frozen = next(p for name, p in model.named_parameters() if "embed_tokens" in name)

    def meddle() -> dict[str, float]:
        with torch.no_grad():
            frozen[0, 0] += 1e-6
        return {"loss": 1.0}

    with pytest.raises(FieldguideError, match="changed weights that are frozen"):
        tiny.make_loop(tmp_path, model=model, validate=meddle, epochs=1).run()


# --- steps ------------------------------------------------------------------------------------------------


def test_accumulating_two_batches_equals_one_of_twice_the_size(tmp_path: Path) -> None:
    gradients = []
    for name, size, accumulate in (("one", 6, 1), ("two", 3, 2)):
        model = tiny.new_model(lora_dropout=0.0)
        labels = ("ox", "catfish", "鱼", "great crested grebe", "ox", "鱼")  # of many lengths
        rows = [label_row(model.prompt, i, label, "") for i, label in enumerate(labels)]
        run = tiny.make_loop(
            tmp_path / name, model=model, rows_of=lambda epoch, rows=rows: rows, lora_dropout=0.0,
            epochs=1, batch_size=size, accumulate=accumulate,
        )  # fmt: skip
        progress = run.run().progress
        assert (progress.step, progress.supervised_tokens) == (1, sum(row.targets for row in rows))
        tensors = load_file(checkpoints(tmp_path / name)[-1] / "tensors.safetensors")
        gradients.append({k: v for k, v in tensors.items() if k.startswith("optimizer/exp_avg/")})
        gradients[-1]["loss"] = torch.tensor(progress.history[0]["loss"])
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-4, atol=1e-7, msg=name)
    assert sum(float(g.abs().sum()) for name, g in gradients[0].items() if "projector.patch" in name) > 1e-3


def test_a_part_that_cannot_move_is_named_at_the_first_step(tmp_path: Path) -> None:
    """Cases 9 and 10: a projector that stays as it was ends the training."""
    run = tiny.make_loop(tmp_path, projector_learning_rate=0.0)
    with pytest.raises(
        FieldguideError, match=r"projector: .* not changed by the first training step"
    ) as caught:
        run.run()
    assert "projector: summary tokens" in caught.value.message
    assert "projector: patch tokens" in caught.value.message
    assert "LoRA" not in caught.value.message
    assert checkpoints(tmp_path) == []


def test_a_model_with_nothing_to_train_is_refused(tmp_path: Path) -> None:
    model = tiny.new_model()
    model.requires_grad_(False)
    with pytest.raises(FieldguideError, match="nothing to train"):
        tiny.make_loop(tmp_path, model=model)


def test_a_loss_that_is_no_number_names_the_picture(tmp_path: Path) -> None:
    grid, pooled, _ = tiny.pictures(24)
    evidence = np.full((24, 3), 1 / 3)
    evidence[5] = np.nan
    run = tiny.make_loop(tmp_path, features=tiny.tensors(grid, pooled, evidence), batch_size=1, accumulate=1)
    with pytest.raises(FieldguideError, match=r"the loss became nan at a batch with 5\.png$|with 5\.png  →"):
        run.run()


def test_a_gradient_that_is_no_number_changes_no_weight(tmp_path: Path) -> None:
    model = tiny.new_model()
    run = tiny.make_loop(tmp_path, model=model)
    model.projector.table.register_hook(lambda gradient: gradient * float("inf"))
    before = copies(model, learnt=True)
    with pytest.raises(FieldguideError, match=r"the gradient became (nan|inf) at a batch with \d+\.png"):
        run.run()
    assert equal(copies(model, learnt=True), before)
    assert checkpoints(tmp_path) == []


def test_a_validation_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    run = tiny.make_loop(tmp_path, validate=scripted([0.5, float("nan")]))
    with pytest.raises(FieldguideError, match="validation loss became nan in epoch 2"):
        run.run()
    assert checkpoints(tmp_path)


def test_the_loss_of_an_epoch_is_the_mean_of_its_own_steps(tmp_path: Path) -> None:
    model = tiny.new_model(lora_dropout=0.0)
    row = label_row(model.prompt, 0, "ox", "")
    run = tiny.make_loop(
        tmp_path, model=model, rows_of=lambda epoch: [row] * (4 if epoch == 0 else 12), validate=None,
        epochs=2, accumulate=1, learning_rate=1e-5, projector_learning_rate=1e-5, lora_dropout=0.0,
    )  # fmt: skip
    first, second = run.run().progress.history
    assert (first["step"], second["step"]) == (1, 4)
    assert second["loss"] == pytest.approx(first["loss"], rel=0.05)


def test_long_rows_are_trained_in_smaller_batches(tmp_path: Path) -> None:
    progress = tiny.make_loop(tmp_path, epochs=1, batch_tokens=70, accumulate=1).run().progress
    assert progress.step > 28 / 4


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(120, 100, 0.1) == 0  # should later epochs have more steps than the first
    assert learning_rate_factor(0, 1, 0.1) == 1  # a training of one step is no wasted one


# --- epochs -----------------------------------------------------------------------------------------------


def test_training_stops_when_patience_ends_and_leaves_the_best_weights(tmp_path: Path) -> None:
    model, seen = tiny.new_model(), []
    validate = scripted([1.0, 0.5, 0.6, 0.5, 0.1], lambda: seen.append(copies(model, learnt=True)))
    run = tiny.make_loop(tmp_path, model=model, validate=validate, epochs=9, patience=2)
    progress = run.run().progress
    assert (progress.epoch, progress.best_epoch, progress.best_loss) == (4, 1, 0.5)
    assert len(seen) == len(progress.history) == 4
    assert not equal(seen[1], seen[3])
    assert equal(copies(model, learnt=True), seen[1])


def test_without_patience_all_epochs_are_trained_and_the_last_may_be_best(tmp_path: Path) -> None:
    model, seen = tiny.new_model(), []
    validate = scripted([1.0, 2.0, 3.0, 0.5], lambda: seen.append(copies(model, learnt=True)))
    run = tiny.make_loop(tmp_path, model=model, validate=validate, epochs=4, patience=0)
    progress = run.run().progress
    assert (progress.epoch, progress.best_epoch) == (4, 3)
    assert equal(copies(model, learnt=True), seen[3])


def test_without_validation_the_training_loss_chooses(tmp_path: Path) -> None:
    progress = tiny.make_loop(tmp_path, validate=None, epochs=2).run().progress
    losses = [entry["loss"] for entry in progress.history]
    assert progress.best_loss == min(losses)
    assert "validation_loss" not in progress.history[0]


def test_no_more_checkpoints_are_kept_than_asked(tmp_path: Path) -> None:
    tiny.make_loop(tmp_path, keep=1).run()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000012"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_dropout_follows_from_the_seed_alone(tmp_path: Path) -> None:
    models = []
    for number in range(3):
        torch.manual_seed(number)  # whatever went on before
        models.append(tiny.new_model())
        run = tiny.make_loop(tmp_path / str(number), model=models[-1], epochs=1, seed=number // 2)
        run.run()
    assert equal(copies(models[0], learnt=True), copies(models[1], learnt=True))
    assert not equal(copies(models[0], learnt=True), copies(models[2], learnt=True))


# --- which training may go on -----------------------------------------------------------------------------


def test_starting_where_a_training_lies_is_refused(tmp_path: Path) -> None:
    """Case 13: to begin and to resume are two verbs."""
    tiny.make_loop(tmp_path, epochs=1).run()
    held = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ResumeError, match="holds an unfinished or finished training"):
        tiny.make_loop(tmp_path, epochs=1).run()
    assert {path.name for path in tmp_path.iterdir()} == held


def test_resuming_what_never_began_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="no checkpoint to resume"):
        tiny.make_loop(tmp_path).run(resume=True)


def test_resuming_with_other_data_or_settings_is_refused_by_name(tmp_path: Path) -> None:
    """Case 13: nothing is loaded from the training of another data set."""
    tiny.make_loop(tmp_path, epochs=1).run()
    for changed, told in (
        ({"data set": "other"}, "data set: was tiny, is other"),
        ({"training settings": {"seed": 1}}, "training settings, seed: was 0, is 1"),
    ):
        model = tiny.new_model()
        run = tiny.make_loop(tmp_path, epochs=1, model=model, identity={**tiny.IDENTITY, **changed})
        before = copies(model, learnt=True)
        with pytest.raises(ResumeError) as caught:
            run.run(resume=True)
        assert told in caught.value.message
        assert equal(copies(model, learnt=True), before)


def test_resuming_a_finished_training_trains_no_more(tmp_path: Path) -> None:
    model = tiny.new_model()
    first = tiny.make_loop(tmp_path, model=model).run()
    again = tiny.new_model()
    rows: list[int] = []

    def rows_of(epoch: int) -> list[Row]:
        rows.append(epoch)
        return [label_row(again.prompt, 0, "ox", "")] * 28

    result = tiny.make_loop(tmp_path, model=again, rows_of=rows_of).run(resume=True)
    assert result.progress == first.progress
    assert rows == [0]  # looked at for the number of steps, not trained on
    assert equal(copies(again, learnt=True), copies(model, learnt=True))


def test_a_resumed_training_keeps_the_evidence_it_began_with(tmp_path: Path) -> None:
    """Solved again, the warm start may come out with other last bits."""

    def stopped(self: Loop, progress: object) -> None:
        raise KeyboardInterrupt

    wanted = tiny.new_model()
    tiny.make_loop(tmp_path / "whole", model=wanted, accumulate=1).run()
    broken = tiny.make_loop(tmp_path / "broken", accumulate=1)
    broken._close_epoch = stopped.__get__(broken)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    model = tiny.new_model()
    run = tiny.make_loop(tmp_path / "broken", model=model, accumulate=1)
    with torch.no_grad():
        model.projector.evidence_map.mul_(1.001)
        run.pictures.evidence.mul_(1.001)
    assert run.run(resume=True).frozen_unchanged
    assert equal(model.state_dict(), wanted.state_dict())


# --- 16-bit losses are scaled, and a step that overflows is left out -------------------------------------


def scaled(folder: Path, scale: float) -> Loop:
    """A loop whose losses are scaled as those in fp16 on a GPU are."""
    run = tiny.make_loop(folder, lora_dropout=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    run.accelerator.scaler = scaler
    run.optimizer = AcceleratedOptimizer(run.optimizer.optimizer, device_placement=False, scaler=scaler)
    return run


def test_a_scale_that_fits_changes_nothing(tmp_path: Path) -> None:
    plain, other = tiny.make_loop(tmp_path / "plain", lora_dropout=0.0), scaled(tmp_path / "scaled", 2.0**10)
    plain.run()
    other.run()
    assert equal(copies(plain.model, learnt=True), copies(other.model, learnt=True))


def test_steps_that_overflow_are_left_out_and_a_resumed_scale_is_the_same(tmp_path: Path) -> None:
    whole, stopped = scaled(tmp_path / "whole", 2.0**127), scaled(tmp_path / "stopped", 2.0**127)
    before = copies(whole.model, learnt=True)
    whole.run()
    assert whole.accelerator.scaler.get_scale() < 2.0**127, "no step overflowed, so this shows nothing"
    assert not equal(before, copies(whole.model, learnt=True))
    step = stopped._step

    def killed(progress: Progress, names: list[str]) -> dict[str, float]:
        if progress.step == 7:
            raise KeyboardInterrupt
        return step(progress, names)

    stopped._step = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = scaled(tmp_path / "stopped", 2.0**127)
    resumed.run(resume=True)
    assert equal(copies(whole.model, learnt=True), copies(resumed.model, learnt=True))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_process_trains_in_one_precision_after_another(tmp_path: Path, precision: str) -> None:
    for number, each in enumerate(("fp32", "bf16", precision)):
        run = tiny.make_loop(tmp_path / str(number), precision=each)
        assert run.accelerator.mixed_precision == {"fp32": "no"}.get(each, each)
