"""Calibration recovers a known temperature, and says when it cannot know."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.answer.calibrate import calibrate, expected_calibration_error, fit_temperature
from fieldguide.answer.choose import choose, choose_all
from fieldguide.answer.trie import LabelTrie
from fieldguide.errors import GuideError
from fieldguide.testing import tiny_features, tiny_model

QUESTION = "What is it?"
LABELS = ("cat", "catfish", "dog", "dogfish", "eel")


def drawn(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> list[int]:
    """What happens when the truth follows the logits at a temperature."""
    return (logits / temperature).softmax(1).multinomial(1, generator=generator)[:, 0].tolist()


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(truth: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1500, 6, generator=generator, dtype=torch.float64)
    found = fit_temperature(list(zip(logits, drawn(logits, truth, generator), strict=True)))
    assert found == pytest.approx(truth, rel=0.15)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.lists(st.floats(-9, 9), min_size=3, max_size=3), st.integers(0, 2)), min_size=1))
def test_no_other_temperature_is_better(decisions: list[tuple[list[float], int]]) -> None:
    recorded = [(torch.tensor(logits, dtype=torch.float64), right) for logits, right in decisions]

    def loss(temperature: float) -> float:
        return -sum(float((logits / temperature).log_softmax(0)[right]) for logits, right in recorded)

    found = fit_temperature(recorded)
    assert 0.25 <= found <= 10
    for other in (0.25, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 7.0, 10.0):
        assert loss(found) <= loss(other) + 1e-3 * len(recorded)


def test_a_model_too_sure_of_itself_is_cooled() -> None:
    """The truth is drawn from the model's own scores at temperature 4: that is what has to come out."""
    model = tiny_model(LABELS, merges=("cat", "dog"))
    model.language_model.get_output_embeddings().weight.data *= 4
    trie = LabelTrie({label: model.label_tokens(label) for label in LABELS})
    features = tiny_features(model, 400)
    truth = choose_all(model, QUESTION, features, trie, temperature=4.0).exp()
    numbers = truth.multinomial(1, generator=torch.Generator().manual_seed(0))[:, 0].tolist()
    found = calibrate(model, QUESTION, features, [LABELS[n] for n in numbers], trie, batch_size=64)
    assert found.temperature == pytest.approx(4, rel=0.25)
    assert found.ece_after < found.ece_before / 2
    assert (found.pictures, found.note) == (400, "")
    every = choose_all(model, QUESTION, features, trie)
    assert found.nll_before == pytest.approx(-float(every[range(400), numbers].mean()), abs=1e-4)
    cooled = choose_all(model, QUESTION, features, trie, temperature=found.temperature)
    assert found.nll_after == pytest.approx(-float(cooled[range(400), numbers].mean()), abs=1e-4)
    assert found.nll_after < found.nll_before


def test_few_pictures_leave_the_temperature_alone_and_it_says_so() -> None:
    model = tiny_model(LABELS)
    trie = LabelTrie({label: model.label_tokens(label) for label in LABELS})
    found = calibrate(model, QUESTION, tiny_features(model, 19), ["cat"] * 19, trie)
    assert found.temperature == 1
    assert "only 19 validation pictures" in found.note
    assert found.ece_after == found.ece_before
    assert found.to_dict()["pictures"] == 19


def test_one_label_needs_no_calibration() -> None:
    model = tiny_model(("cat",))
    trie = LabelTrie({"cat": model.label_tokens("cat")})
    found = calibrate(model, QUESTION, tiny_features(model, 20), ["cat"] * 20, trie)
    assert (found.temperature, found.nll_before, found.ece_before) == (1, 0, 0)
    assert found.note == "there is only one label"


def test_the_error_is_that_of_the_stated_probabilities() -> None:
    model = tiny_model(LABELS)
    trie = LabelTrie({label: model.label_tokens(label) for label in LABELS})
    features = tiny_features(model, 30)
    found = calibrate(model, QUESTION, features, ["eel"] * 30, trie, batch_size=7)
    answers = choose(model, QUESTION, features, trie, top_k=1)
    stated = [scores[0].probability for scores in answers]
    expected = expected_calibration_error(stated, [scores[0].label == "eel" for scores in answers])
    assert found.ece_before == pytest.approx(expected, abs=1e-6)


def test_an_unknown_label_is_named() -> None:
    model = tiny_model(LABELS)
    trie = LabelTrie({label: model.label_tokens(label) for label in LABELS})
    with pytest.raises(GuideError, match="heron"):
        calibrate(model, QUESTION, tiny_features(model, 2), ["cat", "heron"], trie)


def test_expected_calibration_error_by_hand() -> None:
    assert expected_calibration_error([0.9, 0.9, 0.9, 0.9], [True, True, True, False]) == pytest.approx(0.15)
    assert expected_calibration_error([1.0, 0.05], [True, False]) == pytest.approx(0.025)
    assert expected_calibration_error([], []) == 0


def test_pictures_left_out_in_turn_tell_the_temperature_too() -> None:
    """Ten validation pictures tell nothing; 400 others, whose truth follows temperature 4, do."""
    model = tiny_model(LABELS, merges=("cat", "dog"))
    model.language_model.get_output_embeddings().weight.data *= 4
    trie = LabelTrie({label: model.label_tokens(label) for label in LABELS})
    more, few = tiny_features(model, 400), tiny_features(model, 10, seed=1)
    truth = choose_all(model, QUESTION, more, trie, temperature=4.0).exp()
    numbers = truth.multinomial(1, generator=torch.Generator().manual_seed(0))[:, 0].tolist()
    left_out = (more, [LABELS[n] for n in numbers])
    found = calibrate(model, QUESTION, few, ["cat"] * 10, trie, left_out=left_out, batch_size=64)
    assert found.temperature == pytest.approx(4, rel=0.25)
    assert (found.pictures, found.left_out, found.note) == (10, 400, "")
    assert len(found.conformal_scores) == 10, "those of training pictures are not kept"


def test_conformal_scores_are_those_of_the_calibrated_answers() -> None:
    model = tiny_model(LABELS, merges=("cat", "dog"))
    trie = LabelTrie({label: model.label_tokens(label) for label in LABELS})
    features, labels = tiny_features(model, 30), [LABELS[n % 5] for n in range(30)]
    found = calibrate(model, QUESTION, features, labels, trie, batch_size=7)
    every = choose_all(model, QUESTION, features, trie, temperature=found.temperature).exp()
    expected = sorted(1 - float(every[n, n % 5]) for n in range(30))
    assert found.conformal_scores == pytest.approx(expected, abs=1e-5)
