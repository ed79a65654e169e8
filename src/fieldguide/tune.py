"""The train stage for models of transformers: a data set goes in, a guide folder comes out.

Open the model → set what trains → see every picture once (the frozen tower's output is stored) → train, in
one or two stages → calibrate → guide folder. The same loop, checkpoints and certificates as the starter's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldguide.data.dataset import Dataset
from fieldguide.errors import DataError
from fieldguide.files import fingerprint
from fieldguide.guide import Guide, check_free, load_guide
from fieldguide.records import Note
from fieldguide.settings import Recipe
from fieldguide.writing import write_guide_folder

if TYPE_CHECKING:
    from fieldguide.answer.trie import LabelTrie
    from fieldguide.model.kinds import Opened
    from fieldguide.train.loop import TrainResult
    from fieldguide.train.part import Part
    from fieldguide.train.pictures import TowerStore
    from fieldguide.train.rows import Row


@dataclass
class Tuning:
    """Everything a training begins with."""

    recipe: Recipe
    dataset: Dataset
    learn: str  # labels, captions or messages
    labels: tuple[str, ...]
    notes: dict[str, Note]
    opened: Opened
    store: TowerStore | None
    train: Part
    val: Part
    kept: set[str]  # names of the tensors, trained whole, that the guide must hold

    @property
    def model(self) -> Any:
        return self.opened.model

    @property
    def trie(self) -> LabelTrie:
        from fieldguide.answer.trie import LabelTrie

        return LabelTrie.of(self.model, self.labels)


def tune_guide(
    dataset: Dataset,
    out: Path | str,
    recipe: Recipe,
    *,
    resume: bool = False,
    announce: Callable[[str], None] = print,
) -> Guide:
    """Train a guide from the model that `recipe.train.model` names.

    Args and errors: as `fieldguide.training.train_guide`; also ModelMissing when the model is not to be had.
    """
    from fieldguide.model.tuning import prepare_parts
    from fieldguide.train.checkpoint import checkpoints
    from fieldguide.train.processes import first_process, first_writes

    out, settings = Path(out), recipe.train
    check_free(out)
    announce = announce if first_process() else _nothing
    tuning = _open(dataset, recipe, announce)
    if settings.vision and tuning.learn == "labels" and not settings.start_from:
        begun = resume and any(checkpoints(out / "checkpoints" / stage) for stage in (".", "pretrain"))
        _warm_start(tuning, out / "checkpoints" / "warm-start.safetensors", begun, announce)
    if settings.pretrain_epochs:
        first = _first_stage(recipe)
        tuning.model.network = prepare_parts(
            tuning.model.network, tuning.model.family, first.train, settings.model
        )
        before, stage = out / "checkpoints" / "pretrain", _first_tuning(tuning, first)
        _run(stage, before, resume and bool(checkpoints(before)), announce)
        tuning.opened = stage.opened
        tuning.model.network.requires_grad_(False)
    _attach(tuning)
    folder = out / "checkpoints"
    result = _run(
        tuning, folder, resume and bool(checkpoints(folder) or not settings.pretrain_epochs), announce
    )
    first_writes(lambda: _write(out, tuning, result))
    return load_guide(out)


def _nothing(line: str) -> None:
    """Other processes than the first say nothing."""


# ---- preparing


def _open(dataset: Dataset, recipe: Recipe, announce: Callable[[str], None]) -> Tuning:
    import torch

    from fieldguide.model.opening import open_model
    from fieldguide.train.begin import begin_from
    from fieldguide.train.fingerprints import tensors_hash
    from fieldguide.train.part import see, teaches, what_to_learn
    from fieldguide.train.pictures import TowerStore

    learn = what_to_learn(dataset, recipe.train.learn)
    labels = dataset.trained_labels() if learn == "labels" else ()
    torch.manual_seed(recipe.train.seed)  # a projector that is made anew starts at random
    opened = open_model(recipe.train, announce=announce)
    for line in opened.said:
        announce(line)
    store, family = None, opened.model.family
    kept: set[str] = set()
    if recipe.train.start_from:
        other = load_guide(recipe.train.start_from)
        kept = begin_from(opened, recipe.train, other.folder, other.info)
    if family.caches and recipe.train.vision_part == "frozen":
        begun = {n: p for n, p in opened.model.bare.named_parameters() if n in kept}
        tower = {name: p for name, p in begun.items() if family.part_of(name) == "vision"}
        store = TowerStore(opened.model, opened.sha256 + tensors_hash(tower))
    elif family.vision:
        why = f"{family.name} does not allow it" if not family.caches else "it is trained"
        announce(f"the vision tower runs at every step: its output cannot be stored, since {why}")
    train, val = (
        see(
            opened.model,
            dataset,
            [e for e in dataset.of(split) if teaches(e, learn, labels)],
            store,
            announce,
            f"seeing {split} pictures",
            together=True,
        )
        for split in ("train", "val")
    )
    if not train.examples:
        raise DataError(f"{dataset.folder}: no training example can be read", "import again")
    return Tuning(recipe, dataset, learn, labels, dataset.notes_of(labels), opened, store, train, val, kept)


def _first_stage(recipe: Recipe) -> Recipe:
    settings = recipe.train
    train = replace(
        settings,
        language_part="frozen",
        vision_part="frozen",
        projector_part="full",
        projector_learning_rate=settings.pretrain_learning_rate,
        epochs=settings.pretrain_epochs,
    )
    return replace(recipe, train=train)


def _first_tuning(tuning: Tuning, recipe: Recipe) -> Tuning:
    """The first stage's: it learns from captions where there are any, from those examples that have one."""
    if not any(e.captions for e in tuning.train.examples):
        return replace(tuning, recipe=recipe)
    train, val = (
        part.only([i for i, e in enumerate(part.examples) if e.captions])
        for part in (tuning.train, tuning.val)
    )
    return replace(tuning, recipe=recipe, learn="captions", train=train, val=val)


def _warm_start(tuning: Tuning, path: Path, begun: bool, announce: Callable[[str], None]) -> None:
    """Begin the fresh projector with the ridge solution on the training pictures, solved once.

    Solved again it may have other last bits (threads, library), which a frozen projector would keep: what the
    training began with lies at `path`.
    """
    from fieldguide.model.families import module_at
    from fieldguide.train.checkpoint import load_tensors, save_tensors
    from fieldguide.train.processes import first_writes
    from fieldguide.train.ridgemap import start_projector

    model, place = tuning.model, tuning.model.family.projector[0]
    projector = module_at(model.bare, place)
    assert projector is not None
    parameters = dict(projector.named_parameters())
    tuning.kept |= {f"{place}.{name}" for name in parameters}
    solved = load_tensors(path) if begun and path.is_file() else {}
    if {n: t.shape for n, t in solved.items()} == {n: p.shape for n, p in parameters.items()}:
        projector.load_state_dict(solved)
        return
    # A beginning; or other settings, which the checkpoint then refuses.
    part = tuning.train
    start_projector(
        model, part.pictures, part.examples, tuning.labels, tuning.recipe.embed.batch_size, announce
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    first_writes(lambda: save_tensors(path, dict(parameters)))


def _attach(tuning: Tuning) -> None:
    """Set what trains in the main stage, and note what the guide must hold of tensors trained whole."""
    import torch

    from fieldguide.model.families import plain_name
    from fieldguide.model.tuning import prepare_parts

    settings, model = tuning.recipe.train, tuning.model
    for name, _ in model.network.named_parameters():
        if settings.pretrain_epochs and model.family.part_of(name) == "projector":
            tuning.kept.add(plain_name(name))
    torch.manual_seed(settings.seed)  # adapters start at random, whatever was made or trained before
    model.network = prepare_parts(model.network, model.family, settings, tuning.opened.name)
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            tuning.kept.add(plain_name(name))
    if settings.start_from:
        from fieldguide.model.tuned import put_adapter

        put_adapter(model.network, Path(settings.start_from))


# ---- training


def _with_pictures(part: Part, announce: Callable[[str], None]) -> Part:
    """The examples with pictures: a row of words only teaches nothing but the language part."""
    shown = [i for i, visual in enumerate(part.visual) if visual]
    if len(shown) < len(part.visual):
        count = len(part.visual) - len(shown)
        announce(f"left out: {count} rows without a picture, which teach only a language part that trains")
    return part.only(shown)


def _rows_maker(tuning: Tuning, part: Part) -> Callable[[int], list[Row]]:
    from fieldguide.train.part import rows_maker

    return rows_maker(tuning.model.prompt, part, tuning.learn, tuning.notes, tuning.recipe)


def _run(tuning: Tuning, folder: Path, resume: bool, announce: Callable[[str], None]) -> TrainResult:
    from fieldguide.model.tuning import make_optimizer
    from fieldguide.train.loop import Loop
    from fieldguide.train.memory import plan_memory
    from fieldguide.train.part import different_epochs
    from fieldguide.train.rows import check_lengths

    settings, model, recipe = tuning.recipe.train, tuning.model, tuning.recipe
    if settings.language_part == "frozen":
        tuning.train, tuning.val = (_with_pictures(part, announce) for part in (tuning.train, tuning.val))
        if not tuning.train.examples:
            raise DataError(
                f"{tuning.dataset.folder}: no training example has a picture, without which only a language "
                "part could learn",
                "set train.language_part=lora",
            )
    rows_of = _rows_maker(tuning, tuning.train)
    before = len(model.prompt.before(recipe.answer.question))
    check_lengths(_rows_maker(tuning, tuning.val)(0), before, 0, model.context)
    for epoch in range(different_epochs(tuning.train.examples, tuning.learn, settings.epochs)):
        check_lengths(rows_of(epoch), before, 0, model.context)
    loop = Loop(
        model,
        rows_of,
        tuning.train.pictures,
        _validation(tuning) if tuning.val.examples else None,
        folder,
        settings,
        recipe.answer.question,
        _identity(tuning),
        announce,
        lambda groups: make_optimizer(groups, settings),
        tuning.opened.precision,
    )
    announce(plan_memory(loop, settings).in_words())
    result = loop.run(resume=resume)
    if loop.shards is not None:
        tuning.opened = replace(tuning.opened, model=loop.shards.joined())
    return result


def _identity(tuning: Tuning) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    return {
        "data set": tuning.dataset.fingerprint,
        "training settings": asdict(tuning.recipe.train),
        "questions": asdict(tuning.recipe.answer),
        "prompt": tuning.model.prompt.template.to_dict(),
        "learns": tuning.learn,
        "examples": fingerprint([[e.id for e in part.examples] for part in (tuning.train, tuning.val)]),
        "model": tuning.opened.sha256,
        "begun from": load_guide(start).fingerprint if (start := tuning.recipe.train.start_from) else "",
    }


def _validation(tuning: Tuning) -> Callable[[], dict[str, float]]:
    """Loss (nats) on the validation examples; with labels that of the choice among them, and accuracy."""
    from fieldguide.answer.calibrate import measure
    from fieldguide.train.rowloss import rows_loss

    answer, val = tuning.recipe.answer, tuning.val
    labels = [e.label for e in val.examples]

    def validate() -> dict[str, float]:
        if tuning.learn != "labels":
            rows = _rows_maker(tuning, val)(0)
            return {"loss": rows_loss(tuning.model, answer.question, val.pictures, rows, tuning.recipe.train)}
        loss, accuracy = measure(
            tuning.model, answer.question, val.pictures, labels, tuning.trie, batch_size=answer.batch_size
        )
        return {"loss": loss, "accuracy": accuracy}

    return validate


# ---- writing


def _write(out: Path, tuning: Tuning, result: TrainResult) -> Guide:
    from fieldguide.answer.calibrate import calibrate
    from fieldguide.answer.familiar import write_tower_novelty
    from fieldguide.model.opening import card_of
    from fieldguide.model.tuned import save_tuned
    from fieldguide.model.tuning import mixed_arithmetic
    from fieldguide.train.fingerprints import base_hash

    model, recipe = tuning.model, tuning.recipe
    model.eval()
    calibration: dict[str, Any] = {"temperature": 1.0, "note": "no labels to calibrate"}
    if tuning.labels:
        actual = [e.label for e in tuning.val.examples]
        question = recipe.answer.question
        with mixed_arithmetic(model.device, tuning.opened.precision):
            calibration = calibrate(model, question, tuning.val.pictures, actual, tuning.trie).to_dict()
    parts = save_tuned(out, model.network, tuning.kept)
    base, shown = tuning.opened.sha256, (tuning.train, tuning.val)
    with mixed_arithmetic(model.device, tuning.opened.precision):
        novelty, told = write_tower_novelty(out, model, base, parts, *shown, tuning.labels)
    card = card_of(tuning.opened)
    identity = {
        "labels": list(tuning.labels),
        "template": model.prompt.template.to_dict(),
        "projector": {"kind": "network", "trained": sorted(tuning.kept)},
        "encoder": {"key": tuning.store.key if tuning.store else "", "runtime": "torch"},
        "base_model": {
            "name": card["name"],
            "kind": "hub",
            "sha256": tuning.opened.sha256,
            "network_sha256": base_hash(model.network, tuning.kept),
        },
        "calibration": {**calibration, "novelty": told},
        "settings": recipe.to_dict(),
    }
    return write_guide_folder(
        out,
        (*parts, *novelty),
        identity,
        dataset=tuning.dataset,
        notes=list(tuning.notes.values()),
        examples=[*tuning.train.examples, *tuning.val.examples],
        models={"base model": card},
        training=_record(tuning, result),
    )


def _record(tuning: Tuning, result: TrainResult) -> dict[str, Any]:
    return {
        "learns": tuning.learn,
        "training_pictures": len(tuning.train.examples),
        "validation_pictures": len(tuning.val.examples),
        "arithmetic": list(tuning.opened.said),
        **result.record(),
    }
