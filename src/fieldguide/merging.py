"""The merge and export stages: a guide becomes a folder that needs nothing of ours.

merge_guide(guide, out)                   a plain transformers folder, proved on the guide's own rows
export_guide(guide, out, to="ollama")     …made ready for somewhere else
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldguide.errors import DataError, GuideError, PictureError
from fieldguide.files import read_json
from fieldguide.guide import Guide

if TYPE_CHECKING:
    from fieldguide.data.dataset import Dataset
    from fieldguide.model.kinds import Opened
    from fieldguide.train.folder import Licence
    from fieldguide.train.identity import MergeIdentity
    from fieldguide.train.merge import Certificate
    from fieldguide.train.probe import Probe

PROBES = 8  # rows on which answers before and after are compared
TARGETS = ("transformers", "ollama", "hub")


def merge_guide(
    guide: Guide, out: Path | str, dataset: Dataset, *, announce: Callable[[str], None] = print
) -> Certificate:
    """Merge a guide's adapter and trained tensors into its base, or write nothing.

    Args:
        guide: of a model of transformers.
        out: the folder to write; must not exist, or be empty.
        dataset: holds rows like those it was trained on: answers are compared on them.

    Raises:
        GuideError: when base, adapter and trained tensors do not belong together.
        MergeError: when the merged model would answer otherwise; the figures are in the message.
    """
    from fieldguide.model.tuned import full_tensors
    from fieldguide.train.merge import merge

    opened = base_of(guide, announce)
    full, identity = full_tensors(guide.folder), identity_of(guide)
    certificate = merge(
        opened.model.network,
        guide.folder / "adapter" if identity.adapter else None,
        full,
        opened.model.processor or opened.model.tokenizer,
        probes(opened, guide, dataset),
        out,
        identity=identity,
    )
    announce(f"merged into {out}: {certificate.before_and_after.in_words()}")
    if module := certificate.needed_import:
        announce(
            f"transformers opens it after `import {module}`: its projector or encoder is not LLaVA's own"
        )
    return certificate


def identity_of(guide: Guide) -> MergeIdentity:
    """What belongs together, as the guide recorded it."""
    from fieldguide.model.tuned import full_tensors
    from fieldguide.train.fingerprints import tensors_hash
    from fieldguide.train.identity import MergeIdentity

    files, base = guide.info["files"], guide.info["base_model"]
    return MergeIdentity(
        base=base["name"],
        base_sha256=base["network_sha256"],
        adapter={n.partition("/")[2]: digest for n, digest in files.items() if n.startswith("adapter/")},
        full_sha256=tensors_hash(full_tensors(guide.folder)),
        quantised=bool(guide.recipe.train.quantise),
        licences=licences_of(guide),
    )


def check_merged_from(guide: Guide, merged: Path) -> dict[str, Any]:
    """The certificate of a merged folder that is whole, and was merged from this guide.

    Raises:
        MergeError: when it is not.
    """
    from fieldguide.errors import MergeError
    from fieldguide.train.export import check_merged

    certificate, identity = check_merged(merged), identity_of(guide)
    parts = {
        "base_sha256": identity.base_sha256,
        "adapter": dict(identity.adapter),
        "full_sha256": identity.full_sha256,
    }
    other = [name for name, value in parts.items() if certificate.get(name) != value]
    if other:
        raise MergeError(
            f"{merged}: was merged from another guide than {guide.folder} (its certificate has another "
            f"{', '.join(other)})",
            f"fieldguide merge {guide.folder} --out FOLDER",
        )
    return certificate


def base_of(guide: Guide, announce: Callable[[str], None]) -> Opened:
    """The guide's base as it was trained on, without its adapter."""
    from fieldguide.model.opening import open_model
    from fieldguide.model.prompt import PromptTemplate

    if not guide.tuned:
        raise GuideError(
            f"{guide.folder}: made from the starter, whose parts are no single model of transformers",
            "its adapter/ loads with plain PEFT; to merge, train a model of transformers (docs/full-size.md)",
        )
    settings = replace(guide.recipe.train, attention="auto")
    template = PromptTemplate(**guide.info["template"])
    return open_model(settings, template, announce, guide.info["base_model"]["sha256"])


def licences_of(guide: Guide) -> tuple[Licence, ...]:
    """The cards of the models and of the data that a guide is made from."""
    from fieldguide.train.folder import Licence

    cards = [
        Licence(c["role"], c["name"], c["licence"], c.get("source", ""))
        for c in guide.info["models"].values()
    ]
    stated = guide.info["dataset"]["licences"] or ["not stated"]
    return (*cards, *(Licence("data set", "training pictures", licence) for licence in stated))


def probes(opened: Opened, guide: Guide, dataset: Dataset) -> list[Probe]:
    """Rows of the guide's own data, ready for merging: each prepares itself with the processor it is given.

    Raises:
        DataError: when the data set has none that fits.
    """
    from fieldguide.train.part import probe_rows

    learn, question = str(guide.info["training"]["learns"]), guide.answer_settings.question
    rows = probe_rows(opened.model.prompt, dataset, learn, guide.labels, question, PROBES)
    if not rows:
        raise DataError(
            f"{dataset.folder}: no row there that this guide could have learnt",
            "give the data set it was trained on",
        )
    return [_probe(opened, paths, before, ids, supervised) for paths, before, ids, supervised in rows]


def _probe(
    opened: Opened, paths: Sequence[Path], before: list[int], ids: Sequence[int], supervised: Sequence[bool]
) -> Callable[[Any], dict[str, Any]]:
    def row(processor: Any) -> dict[str, Any]:
        import torch

        from fieldguide.images import load_picture

        model = opened.model
        try:
            images = [load_picture(path).image for path in paths]
        except PictureError as error:
            raise DataError(str(error), "the pictures of the data set must be there") from error
        shown = [model.show(image, processor) for image in images]
        prepared = model.side_by_side(shown)
        start = [*before, *prepared.tokens]
        whole = torch.tensor([[*start, *ids]])
        learnt = torch.tensor([[False] * len(start) + list(supervised)])
        found: dict[str, Any] = {
            "input_ids": whole,
            "attention_mask": torch.ones_like(whole),
            "labels": torch.where(learnt, whole, torch.full_like(whole, -100)),
        }
        if shown:
            found |= model.joined(shown, whole.device)
        if hasattr(model.bare.model, "get_rope_index"):
            found["mm_token_type_ids"] = (whole == model.image_token).int()
        return found

    return row


def export_guide(
    guide: Guide,
    out: Path | str,
    *,
    to: str,
    dataset: Dataset | None = None,
    merged: Path | None = None,
    repo_id: str = "",
    push: bool = False,
    base: str = "",
    announce: Callable[[str], None] = print,
) -> None:
    """Make a guide ready for another program.

    Args:
        to: `transformers` (a plain folder), `ollama` (a Modelfile and adapter), `hub` (with a model card).
        dataset: rows to prove a merge on, where `merged` is not given.
        merged: what `merge_guide` wrote.
        repo_id, push: of the hub; without `push` the folder is written and shown, and nothing sent.
        base: what Ollama calls the base model; of no use where `merged` is given.

    Raises:
        GuideError, MergeError, DataError: when it cannot be done as it was trained; the message says why.
    """
    if merged is not None:
        check_merged_from(guide, merged)
    if to == "ollama":
        _export_ollama(guide, Path(out), base, merged, announce)
        return
    if to == "transformers" and merged is None:
        _merge(guide, Path(out), dataset, announce)
        return
    if merged is None:
        merged = Path(out).with_name(Path(out).name + "-merged")
        _merge(guide, merged, dataset, announce)
    if to == "transformers":
        from fieldguide.train.export import export_transformers

        announce(f"exported to {export_transformers(merged, out)}")
        return
    from fieldguide.train.card import model_card
    from fieldguide.train.export import check_merged, export_hub

    report = guide.folder / "report" / "metrics.json"
    card = model_card(
        guide.info,
        read_json(report) if report.is_file() else None,
        check_merged(merged),
        title=guide.folder.stem,
        pictures=bool(guide.info["encoder"]["key"]) or _shows(guide),
        licences=licences_of(guide),
        repo_id=repo_id,
    )
    announce(export_hub(merged, out, card, repo_id=repo_id, push=push).in_words(repo_id))


def _shows(guide: Guide) -> bool:
    return bool(guide.info["template"].get("open_picture"))


def _merge(guide: Guide, out: Path, dataset: Dataset | None, announce: Callable[[str], None]) -> None:
    if dataset is None:
        raise DataError(
            "merging is proved on rows of a data set, and none was given",
            f"--dataset DATASET, for {guide.folder}",
        )
    merge_guide(guide, out, dataset, announce=announce)


def _export_ollama(
    guide: Guide, out: Path, base: str, merged: Path | None, announce: Callable[[str], None]
) -> None:
    """An adapter beside its base; or the merged folder, which Ollama reads itself."""
    from fieldguide.model.tuned import full_tensors
    from fieldguide.train.ollama import export_ollama

    opened = base_of(guide, announce)
    adapter = guide.folder / "adapter"
    beside = adapter.is_dir() and merged is None
    made = export_ollama(
        out,
        opened.model.bare.config,
        opened.model.tokenizer,
        base=base if merged is None else str(merged.resolve()),
        adapter_folder=adapter if beside else None,
        licences=licences_of(guide),
        quantised=bool(guide.recipe.train.quantise),
        full=bool(full_tensors(guide.folder)),
        stops=(opened.model.prompt.end_id,),
    )
    announce(f"{made}: ollama create NAME -f {made}")
