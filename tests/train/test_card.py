"""The model card says what was measured, and says so where nothing was."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard

from fieldguide.report.baselines import BaselineResult
from fieldguide.report.metrics import compute_metrics
from fieldguide.train.card import model_card
from fieldguide.train.folder import Licence

BASE = Licence("base model", "HuggingFaceTB/SmolLM2", "Apache-2.0", "https://example.org/base")
PICTURES = Licence("data set", "terns | gulls", "CC-BY-4.0")
GUIDE = {"labels": ["tern", "gull_*small*", "auk"], "training": {"training_pictures": 1200}}
CERTIFICATE = {
    "base": "HuggingFaceTB/SmolLM2", "merged_modules": 14, "full_tensors": 4, "unchanged_tensors": 9,
    "probe_rows": 3, "before_and_after": {"loss_before": 0.5, "loss_after": 0.5000001, "max_logit": 4e-6},
}  # fmt: skip


def metrics(**more: Any) -> dict[str, Any]:
    actual, predicted = ["tern"] * 6 + ["auk"] * 4, ["tern"] * 5 + ["auk"] * 4 + [""]
    majority = ("tern",) * 10
    baseline = BaselineResult(
        "majority class", "always", majority, (1.0,) * 10, compute_metrics(actual, majority)
    )
    return {
        "title": "Birds", "split": "test", "guide": compute_metrics(actual, predicted).to_dict(),
        "baselines": [baseline.to_dict()], "best_baseline": "majority class", "baseline_wins": False,
        "overlap": [], **more,
    }  # fmt: skip


def card(found: dict[str, Any] | None, *licences: Licence, pictures: bool = True, **more: Any) -> str:
    return model_card(GUIDE, found, CERTIFICATE, title="Birds", pictures=pictures, licences=licences, **more)


def test_figures_stand_beside_their_baselines_with_intervals() -> None:
    text = card(metrics(), BASE, PICTURES, repo_id="me/birds")
    assert "| **this model** | 80.0% | 49.0% – 94.3% | " in text
    assert "| majority class | 60.0% | " in text
    assert "1 without an answer count as wrong" in text
    assert "trained on 1,200 of them" in text
    assert 'AutoModelForImageTextToText.from_pretrained("me/birds"' in text
    assert "gull\\_\\*small\\*" in text
    assert "| data set | terns \\| gulls | CC-BY-4.0 |" in text
    assert "14 adapted modules" in text


def test_the_hub_reads_its_front_matter() -> None:
    data = ModelCard(card(metrics(), BASE)).data
    assert data.license == "apache-2.0"
    assert data.base_model == "HuggingFaceTB/SmolLM2"
    assert data.pipeline_tag == "image-text-to-text"
    assert data.eval_results[0].metric_value == 0.8
    mixed = ModelCard(card(metrics(), BASE, PICTURES)).data
    assert (mixed.license, mixed["license_link"]) == ("other", "licences.json")


def test_a_text_model_without_evaluation_says_so() -> None:
    text = card(None, BASE, pictures=False)
    assert "It has not been evaluated" in text
    assert "AutoModelForCausalLM" in text
    assert "accuracy |" not in text
    assert ModelCard(text).data.pipeline_tag == "text-generation"


def test_figures_that_are_too_good_or_worse_than_a_baseline_are_said_so() -> None:
    text = card(metrics(overlap=[{}, {}], baseline_wins=True), BASE)
    assert "2 of them were" in text
    assert "**The baseline majority class does better than this model.**" in text
