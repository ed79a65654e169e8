"""The model card of a guide on a model hub: README.md, made from what was measured, with nothing added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from fieldguide.train.folder import Licence

MANY = 60  # labels listed by name; more are counted
# SPDX names as the hub writes them; other licences are named in words.
HUB_LICENCES = {name.lower(): name.lower() for name in (
    "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0",
    "CC-BY-NC-4.0", "GPL-3.0", "AGPL-3.0", "LGPL-3.0", "MPL-2.0", "llama2", "llama3", "llama3.1",
    "llama3.2", "llama3.3", "gemma", "OpenRAIL",
)}  # fmt: skip


def model_card(
    guide: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    certificate: Mapping[str, Any],
    *,
    title: str,
    pictures: bool,
    licences: Sequence[Licence],
    repo_id: str = "",
) -> str:
    """README.md of the merged folder.

    Args:
        guide: guide.json.
        metrics: metrics.json of its evaluation; None when it was never evaluated, which the card then says.
        certificate: certificate.json of the merge.
        title: of the guide.
        pictures: whether the model reads pictures.
        licences: of weights and data sets.
        repo_id: where it will lie; the example loads it from there.
    """
    parts = [
        f"# {title}",
        _opening(guide, certificate, pictures),
        *_figures(metrics),
        *_labels(guide),
        *_loading(repo_id, pictures, str(certificate.get("needed_import", ""))),
        *_merged(certificate),
        *_licences(licences),
    ]
    front = _front_matter(metrics, certificate, title, pictures, licences)
    return f"---\n{front}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(
    metrics: Mapping[str, Any] | None,
    certificate: Mapping[str, Any],
    title: str,
    pictures: bool,
    licences: Sequence[Licence],
) -> str:
    terms = {card.licence.strip().lower() for card in licences}
    known = HUB_LICENCES.get(terms.pop()) if len(terms) == 1 else None
    results = None
    if metrics and "guide" in metrics:
        results = [
            EvalResult(
                task_type="image-classification" if pictures else "text-classification",
                dataset_type="own",
                dataset_name=f"{metrics['title']} ({metrics['split']} split)",
                metric_type="accuracy",
                metric_value=round(metrics["guide"]["accuracy"], 4),
            )
        ]
    base = str(certificate["base"])
    return ModelCardData(
        license=known or "other",
        license_name=None if known else "see-licences",
        license_link=None if known else "licences.json",
        base_model=base if _is_hub_name(base) else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text" if pictures else "text-generation",
        tags=["fieldguide"],
        model_name=title if results else None,
        eval_results=results,
    ).to_yaml()


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(("/", ".", "~"))


def _opening(guide: Mapping[str, Any], certificate: Mapping[str, Any], pictures: bool) -> str:
    what = "pictures" if pictures else "texts"
    counts = guide.get("training", {})
    seen = f", trained on {counts['training_pictures']:,} of them" if counts.get("training_pictures") else ""
    does = (
        f"Names {what} by {len(guide['labels'])} labels"
        if guide["labels"]
        else f"Answers about {what} in words"
    )
    return f"{does}{seen}. Base model: {certificate['base']}."


def _figures(metrics: Mapping[str, Any] | None) -> list[str]:
    if not metrics:
        return ["## How good it is", "It has not been evaluated: nothing is known of its accuracy."]
    if "guide" not in metrics:
        return _words_figures(metrics)
    scores = metrics["guide"]
    lines = [
        f"On {scores['count']:,} examples of the {metrics['split']} split, which training has not seen"
        + (
            f" (but {len(metrics['overlap'])} of them were: the figures are too good)"
            if metrics.get("overlap")
            else ""
        ),
        "",
        "| | accuracy | 95% interval | macro F1 |",
        "|---|---|---|---|",
        _figure_row("**this model**", scores),
        *(_figure_row(baseline["name"], baseline) for baseline in metrics["baselines"]),
    ]
    parts = ["## How good it is", "\n".join(lines)]
    if metrics.get("baseline_wins"):
        parts.append(f"**The baseline {metrics['best_baseline']} does better than this model.**")
    if scores.get("unanswered"):
        parts.append(f"{scores['unanswered']:,} without an answer count as wrong.")
    return parts


def _words_figures(metrics: Mapping[str, Any]) -> list[str]:
    """Of a guide that answers in words: the loss of the right answers, beside its untouched base."""
    interval, gain = metrics["loss_interval"], metrics["gain_interval"]
    text = (
        f"On {metrics['rows']:,} rows of the {metrics['split']} split ({metrics['tokens']:,} tokens of right "
        f"answers), its loss is {metrics['loss']:.3f} nats a token (95% interval {interval['low']:.3f} to "
        f"{interval['high']:.3f}). The base model's is {metrics['base_loss']:.3f}; the gain lies between "
        f"{gain['low']:.3f} and {gain['high']:.3f}. Whether its answers are true was not measured."
    )
    seen = len(metrics.get("overlap") or ())
    warning = f"{seen:,} of these rows show pictures that training has seen: the figures are too good."
    return ["## How good it is", text, *([warning] if seen else [])]


def _figure_row(name: str, scores: Mapping[str, Any]) -> str:
    interval = scores["accuracy_interval"]
    span = f"{interval['low']:.1%} – {interval['high']:.1%}"
    return f"| {name} | {scores['accuracy']:.1%} | {span} | {scores['macro']['f1']:.3f} |"


def _labels(guide: Mapping[str, Any]) -> list[str]:
    labels = [_plain(str(label)) for label in guide["labels"]]
    more = f" … and {len(labels) - MANY} more, in guide.json" if len(labels) > MANY else ""
    return ["## Labels", ", ".join(labels[:MANY]) + more] if labels else []


def _loading(repo_id: str, pictures: bool, needed_import: str) -> list[str]:
    model = "AutoModelForImageTextToText" if pictures else "AutoModelForCausalLM"
    reader = "AutoProcessor" if pictures else "AutoTokenizer"
    name = repo_id or "the folder this file lies in"
    code = (
        (f"import {needed_import}  # pip install fieldguide\n" if needed_import else "")
        + f"from transformers import {model}, {reader}\n\n"
        f'model = {model}.from_pretrained("{name}", dtype="auto")\n'
        f'{"processor" if pictures else "tokenizer"} = {reader}.from_pretrained("{name}")'
    )
    return ["## Load it", f"```python\n{code}\n```"]


def _merged(certificate: Mapping[str, Any]) -> list[str]:
    moved = certificate["before_and_after"]
    words = (
        f"{certificate['merged_modules']} adapted modules and {certificate['full_tensors']} trained tensors "
        f"were merged; {certificate['unchanged_tensors']} tensors are the base's, bit for bit. On "
        f"{certificate['probe_rows']} rows the loss was {moved['loss_before']:.6g} before and "
        f"{moved['loss_after']:.6g} after, and no logit moved by more than {moved['max_logit']:.3g} "
        "(certificate.json)."
    )
    return ["## Merged", words]


def _licences(licences: Sequence[Licence]) -> list[str]:
    rows = [
        f"| {_plain(card.role)} | {_plain(card.name)} | {_plain(card.licence)} | {_plain(card.source)} |"
        for card in licences
    ]
    table = "\n".join(["| part | name | licence | source |", "|---|---|---|---|", *rows])
    return ["## Licences", table]


def _plain(text: str) -> str:
    """Text that Markdown leaves alone, on one line."""
    return "".join(f"\\{c}" if c in r"\|*_`[]<>#" else c for c in " ".join(text.split()))
