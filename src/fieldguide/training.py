"""The train stage: a data set goes in, a guide folder comes out.

Features from the cache → warm start → LoRA and projector training → calibration → guide folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldguide.data.dataset import Dataset
from fieldguide.errors import DataError
from fieldguide.guide import Guide, check_free, load_guide
from fieldguide.records import Example, Note
from fieldguide.settings import Recipe
from fieldguide.writing import write_guide_folder

if TYPE_CHECKING:
    from fieldguide.answer.trie import LabelTrie
    from fieldguide.model.assemble import Assembled
    from fieldguide.model.projector import PictureFeatures
    from fieldguide.model.vision import VisionEncoder
    from fieldguide.train.features import FeatureTable
    from fieldguide.train.loop import TrainResult
    from fieldguide.train.rows import Row
    from fieldguide.train.warmstart import WarmStart


@dataclass(frozen=True)
class Pictures:
    """The pictures of one split that have features, in step: examples[i], grid[i], pooled[i], targets[i]."""

    examples: tuple[Example, ...]
    grid: np.ndarray  # (n, P, C)
    pooled: np.ndarray  # (n, D)
    targets: np.ndarray  # (n,) label numbers

    def __len__(self) -> int:
        return len(self.examples)

    def tensors(self, evidence: np.ndarray | None = None) -> PictureFeatures:
        """Features as float32 tensors, with given evidence (n, R) or without."""
        import torch

        from fieldguide.model.projector import PictureFeatures

        given = None if evidence is None else torch.from_numpy(evidence.astype(np.float32))
        return PictureFeatures(torch.from_numpy(self.grid), torch.from_numpy(self.pooled), given)


@dataclass(frozen=True)
class Setup:
    """Everything a training begins with."""

    recipe: Recipe
    dataset: Dataset
    labels: tuple[str, ...]
    notes: dict[str, Note]
    encoder: VisionEncoder
    train: Pictures
    val: Pictures
    start: WarmStart
    model: Assembled
    cards: dict[str, dict[str, str]]

    @property
    def trie(self) -> LabelTrie:
        from fieldguide.answer.trie import LabelTrie

        return LabelTrie.of(self.model, self.labels)


def train_guide(
    dataset: Dataset,
    out: Path | str,
    recipe: Recipe | None = None,
    *,
    resume: bool = False,
    encoder: VisionEncoder | None = None,
    announce: Callable[[str], None] = print,
) -> Guide:
    """Train a guide on the train split; the val split chooses the epoch and the calibration.

    Args:
        dataset: at least two labels with training pictures.
        out: the guide folder; its `checkpoints/` hold the state of the training.
        recipe: settings; None for the defaults.
        resume: go on from the last checkpoint; the result equals that of an uninterrupted run.
        encoder: where the caller has loaded it already.

    Raises:
        DataError: when there is too little to learn from.
        GuideError: when `out` already holds a guide, or something else.
        ResumeError: when `resume` and data, settings or weights are not those of the checkpoint.
    """
    from fieldguide.train.loop import Loop
    from fieldguide.train.processes import first_writes
    from fieldguide.train.sharded import launched_sharded
    from fieldguide.train.sharing import speaks

    announce, recipe = announce if speaks() else _silent, recipe or Recipe()
    if launched := launched_sharded():
        recipe = replace(recipe, train=replace(recipe.train, shard=True))
        if launched != "FSDP":
            announce(f"{launched} was asked for: FSDP2 does the same, with checkpoints that are no pickles")
    if recipe.train.model != "starter":
        from fieldguide.tune import tune_guide

        return tune_guide(dataset, out, recipe, resume=resume, announce=announce)
    out = Path(out)
    check_free(out)
    setup = prepare(dataset, recipe, encoder, announce)
    loop = Loop(
        setup.model,
        _rows(setup),
        setup.train.tensors(setup.start.left_out),
        _validation(setup) if len(setup.val) else None,
        out / "checkpoints",
        setup.recipe.train,
        setup.recipe.answer.question,
        _identity(setup),
        announce,
    )
    result = loop.run(resume=resume)
    first_writes(lambda: write_guide(out, setup, result))
    return load_guide(out)


def _silent(line: str) -> None:
    """Other processes than the first say nothing."""


def prepare(
    dataset: Dataset,
    recipe: Recipe,
    encoder: VisionEncoder | None = None,
    announce: Callable[[str], None] = print,
) -> Setup:
    """Features, warm start and the model with its fresh adapter."""
    from fieldguide.model.trained import model_cards
    from fieldguide.model.vision import load_encoder
    from fieldguide.train.features import embed_pictures

    labels = dataset.trained_labels()
    cards = model_cards()  # says at once when weights are missing
    encoder = encoder or load_encoder(recipe.embed, announce)
    wanted = [e for e in dataset.examples if e.split in ("train", "val") and e.label]
    pictures = [(dataset.path(e), e.sha256) for e in wanted]
    table = embed_pictures(
        pictures, encoder, batch_size=recipe.embed.batch_size, announce=announce, together=True
    )
    _name_failed(table.failed, wanted, announce)
    train, val = (pictures_of(dataset, table, labels, split) for split in ("train", "val"))
    lost = set(labels) - {e.label for e in train.examples}
    if lost:
        raise DataError(f"{dataset.folder}: no training picture of {min(lost)!r} can be read", "import again")
    start = warm_start(train, labels)
    right = f"{start.left_out_accuracy:.1%} of the training pictures named rightly, each left out in turn"
    announce(f"warm start: {right}")
    model = new_model(labels, encoder, start, recipe)
    return Setup(recipe, dataset, labels, dataset.notes_of(labels), encoder, train, val, start, model, cards)


def _name_failed(failed: dict[str, str], wanted: Sequence[Example], announce: Callable[[str], None]) -> None:
    for example in wanted:
        if example.sha256 in failed:
            announce(f"left out: {example.image}: {failed[example.sha256]}")


def pictures_of(dataset: Dataset, table: FeatureTable, labels: Sequence[str], split: str) -> Pictures:
    """The pictures of a split with a known label and features, in the data set's order."""
    row = {key: i for i, key in enumerate(table.keys)}
    number = {label: i for i, label in enumerate(labels)}
    examples = tuple(e for e in dataset.of(split) if e.label in number and e.sha256 in row)
    rows = [row[e.sha256] for e in examples]
    targets = np.array([number[e.label] for e in examples], dtype=np.int64)
    return Pictures(examples, table.grid[rows], table.pooled[rows], targets)


def warm_start(train: Pictures, labels: Sequence[str]) -> WarmStart:
    """The ridge solution on the training pictures, groups left out together."""
    from fieldguide.train.warmstart import solve

    groups = np.unique([e.group or e.id for e in train.examples], return_inverse=True)[1]
    return solve(train.grid, train.pooled, train.targets, len(labels), groups)


def new_model(labels: Sequence[str], encoder: VisionEncoder, start: WarmStart, recipe: Recipe) -> Assembled:
    """The starter's language model with a fresh adapter and a warm-started projector."""
    import torch

    from fieldguide.model.assemble import Assembled
    from fieldguide.model.language import attach_adapter, load_language_model
    from fieldguide.model.projector import Projector, ProjectorConfig
    from fieldguide.model.prompt import Prompt
    from fieldguide.model.starter import starter_folder
    from fieldguide.model.trained import BASE_NAME
    from fieldguide.train.warmstart import install, label_embeddings

    settings = recipe.train
    tokenizer, language = load_language_model(starter_folder("language"))
    embedding = language.get_input_embeddings().weight
    torch.manual_seed(settings.seed)  # the adapter and a patch projector start at random
    adapted = attach_adapter(
        language,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        base_name=BASE_NAME,
    )
    patches, channels = encoder.grid_shape
    config = ProjectorConfig(
        patches=patches,
        channels=channels,
        pooled=encoder.pooled_size,
        hidden=embedding.shape[1],
        evidence=len(labels) if settings.summary_tokens else 0,
        summary_tokens=settings.summary_tokens,
        patch_tokens=settings.patch_tokens,
    )
    projector, prompt = Projector(config), Prompt(tokenizer)
    words = [prompt.words(label) for label in labels]
    install(projector, start, label_embeddings(embedding, words, settings.summary_tokens))
    return Assembled(tokenizer, adapted, projector, prompt)


def _rows(setup: Setup) -> Callable[[int], list[Row]]:
    """The rows of each epoch, checked to fit the language model's context."""
    from fieldguide.train.rows import check_lengths, epoch_rows

    model, recipe = setup.model, setup.recipe

    def rows_of(epoch: int) -> list[Row]:
        examples = setup.train.examples
        return epoch_rows(model.prompt, examples, setup.notes, recipe.train, recipe.answer, epoch)

    before = len(model.prompt.before(recipe.answer.question))
    limit = model.language_model.config.max_position_embeddings
    for epoch in range(min(3, recipe.train.epochs)):  # the three follow-up questions take turns
        check_lengths(rows_of(epoch), before, model.projector.config.tokens, limit)
    return rows_of


def _identity(setup: Setup) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    return {
        "data set": setup.dataset.fingerprint,
        "training settings": asdict(setup.recipe.train),
        "questions": asdict(setup.recipe.answer),
        "prompt": setup.model.prompt.template.to_dict(),
        "features": f"{setup.encoder.key}-{setup.encoder.runtime_name}",
        "weights": {role: card["sha256"] for role, card in setup.cards.items()},
    }


def _validation(setup: Setup) -> Callable[[], dict[str, float]]:
    """Closed-set loss (nats) and accuracy on the validation pictures."""
    from fieldguide.answer.calibrate import measure

    answer, trie, features = setup.recipe.answer, setup.trie, setup.val.tensors()
    labels = [setup.labels[target] for target in setup.val.targets]

    def validate() -> dict[str, float]:
        loss, accuracy = measure(
            setup.model, answer.question, features, labels, trie, batch_size=answer.batch_size
        )
        return {"loss": loss, "accuracy": accuracy}

    return validate


def write_guide(out: Path, setup: Setup, result: TrainResult) -> Guide:
    """Calibrate, then write the guide's parts, and `guide.json` last."""
    from fieldguide.answer.calibrate import calibrate
    from fieldguide.answer.familiar import write_novelty
    from fieldguide.answer.novelty import flatten_features
    from fieldguide.model.trained import ADAPTER_FOLDER, BASE_NAME, PROJECTOR_FILE, save_assembled

    setup.model.eval()
    actual = [setup.labels[target] for target in setup.val.targets]
    question = setup.recipe.answer.question
    calibration = calibrate(
        setup.model, question, setup.val.tensors(), actual, setup.trie, left_out=_left_out(setup)
    )
    train, val = (flatten_features(part.grid, part.pooled) for part in (setup.train, setup.val))
    novelty, told = write_novelty(
        out, train, setup.train.examples, setup.labels, val, setup.train.pooled.shape[1]
    )
    save_assembled(out, setup.model)
    adapter = [f"{ADAPTER_FOLDER}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")]
    identity = {
        "labels": list(setup.labels),
        "template": setup.model.prompt.template.to_dict(),
        "projector": setup.model.projector.config.to_dict(),
        "encoder": {"key": setup.encoder.key, "runtime": setup.encoder.runtime_name},
        "base_model": {"name": BASE_NAME, "sha256": setup.cards["language model"]["sha256"]},
        "calibration": {**calibration.to_dict(), "novelty": told},
        "settings": setup.recipe.to_dict(),
    }
    return write_guide_folder(
        out,
        (*adapter, PROJECTOR_FILE, *novelty),
        identity,
        dataset=setup.dataset,
        notes=list(setup.notes.values()),
        examples=[*setup.train.examples, *setup.val.examples],
        models=setup.cards,
        training=_record(setup, result),
    )


def _left_out(setup: Setup) -> tuple[PictureFeatures, list[str]] | None:
    """The training pictures with left-out evidence, and their labels.

    None where the model sees more of a picture than its evidence: of that it has seen theirs.
    """
    if not setup.recipe.train.summary_tokens or setup.recipe.train.patch_tokens:
        return None
    return setup.train.tensors(setup.start.left_out), [e.label for e in setup.train.examples]


def _record(setup: Setup, result: TrainResult) -> dict[str, Any]:
    start = setup.start
    return {
        "training_pictures": len(setup.train),
        "validation_pictures": len(setup.val),
        "warm_start": {
            "penalty": start.penalty,
            "pooled_share": start.pooled_share,
            "left_out_accuracy": start.left_out_accuracy,
        },
        **result.record(),
    }
