"""Settings: every fault is named, all of them at once, and the documents show every setting."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.errors import SettingsError
from fieldguide.settings import (
    AnswerSettings,
    EmbedSettings,
    ImportSettings,
    Recipe,
    TrainSettings,
    load_recipe,
    parse_overrides,
)

RECIPES = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"


def documented() -> dict[str, Any]:
    block = re.search(r"```toml\n(.*?)```", RECIPES.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    return tomllib.loads(block[1])


def test_defaults_have_no_faults() -> None:
    assert Recipe.from_dict({}) == Recipe()
    for stage in (ImportSettings(), EmbedSettings(), TrainSettings(), AnswerSettings()):
        assert stage.faults() == []


def test_dictionary_and_back() -> None:
    recipe = Recipe(train=TrainSettings(epochs=7), imports=ImportSettings(folds=5))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert set(recipe.to_dict()) == {"import", "embed", "train", "answer"}


def test_the_document_lists_every_setting_with_its_default() -> None:
    assert documented() == Recipe().to_dict()


def test_all_faults_are_reported_together() -> None:
    tables = {
        "import": {"val": 0.6, "test": 0.5, "speling": 1},
        "train": {"epochs": 0, "learning_rate": "fast", "summary_tokens": "2"},
        "embed": {"runtime": "abacus"},
        "cooking": {},
        "answer": 3,
    }
    with pytest.raises(SettingsError) as caught:
        Recipe.from_dict(tables, "fish.toml")
    message = caught.value.message
    assert message.startswith("fish.toml: ")
    for fault in (
        "[import] val=0.6 and test=0.5",
        "[import] unknown setting 'speling'",
        "near_duplicate_distance",  # listed among the known ones
        "[train] epochs=0 must be at least 1",
        "[train] learning_rate='fast' must be float",
        "[train] summary_tokens='2' must be int",
        "[embed] runtime='abacus'",
        "unknown table [cooking]",
        "[answer] must be a table",
    ):
        assert fault in message
    assert "docs/recipes.md" in caught.value.hint


@pytest.mark.parametrize(
    ("stage", "setting", "value"),
    [
        ("import", "folds", 1),
        ("import", "folds", -2),
        ("import", "test", 1.0),
        ("import", "val", -0.1),
        ("import", "val", float("nan")),
        ("import", "near_duplicate_distance", 17),
        ("import", "burst_seconds", -1.0),
        ("import", "burst_seconds", float("nan")),
        ("import", "max_pixels", 0),
        ("import", "label_pattern", "("),
        ("import", "label_pattern", "no group"),
        ("import", "label_pattern", "(two)(groups)"),
        ("embed", "grid", 0),
        ("embed", "grid", 9),
        ("embed", "batch_size", 0),
        ("train", "learning_rate", 0.0),
        ("train", "learning_rate", float("inf")),
        ("train", "clip", float("nan")),
        ("train", "weight_decay", -0.1),
        ("train", "patience", -1),
        ("train", "explain_per_label", -1),
        ("train", "keep", 0),
        ("train", "patch_tokens", 3),
        ("train", "patch_tokens", -4),
        ("train", "summary_tokens", 0),  # with no patch tokens either, the model would see nothing
        ("train", "language_model", "llama"),
        ("train", "warmup", 1.5),
        ("train", "lora_dropout", 1.0),
        ("answer", "top_k", 0),
        ("answer", "question", "  "),
    ],
)
def test_impossible_values_are_refused_by_name(stage: str, setting: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"\[{stage}\].*{setting}"):
        Recipe.from_dict({stage: {setting: value}})


def test_whole_numbers_are_accepted_for_shares_but_not_the_reverse() -> None:
    recipe = Recipe.from_dict({"import": {"burst_seconds": 2}})
    assert recipe.imports.burst_seconds == 2.0
    assert isinstance(recipe.imports.burst_seconds, float)
    with pytest.raises(SettingsError, match=r"epochs=2\.0 must be int"):
        Recipe.from_dict({"train": {"epochs": 2.0}})
    with pytest.raises(SettingsError, match="epochs=True must be int"):
        Recipe.from_dict({"train": {"epochs": True}})


def test_single_values_go_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("[train]\nepochs = 5\nseed = 3\n", encoding="utf-8")
    recipe = load_recipe(file, {"train": {"epochs": 9, "keep": None}, "embed": {"batch_size": 2}})
    assert (recipe.train.epochs, recipe.train.seed, recipe.train.keep) == (9, 3, TrainSettings().keep)
    assert recipe.embed.batch_size == 2
    assert load_recipe() == Recipe()


def test_recipe_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml: no such recipe"):
        load_recipe(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[train\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"broken\.toml: not valid TOML"):
        load_recipe(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_recipe(broken)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_recipe(tmp_path)
    broken.write_text("train = 5\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"broken\.toml: \[train\] must be a table"):
        load_recipe(broken, {"train": {"epochs": 2}})


def test_overrides_from_the_command_line() -> None:
    texts = ["train.epochs=5", "embed.grid=2", "answer.question=What is it?", "import.val = 0.2"]
    assert parse_overrides(texts) == {
        "train": {"epochs": 5},
        "embed": {"grid": 2},
        "answer": {"question": "What is it?"},
        "import": {"val": 0.2},
    }
    assert parse_overrides(["import.label_pattern=^(.+?)_"]) == {"import": {"label_pattern": "^(.+?)_"}}
    for bad in ("epochs=5", "train.epochs", ".epochs=5", "train.=5", ""):
        with pytest.raises(SettingsError, match=r"table\.setting=value"):
            parse_overrides([bad])


@given(st.text())
def test_any_text_is_a_value(value: str) -> None:
    parsed = parse_overrides([f"answer.question={value}"])
    assert list(parsed["answer"]) == ["question"]


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(TrainSettings)] + ["nonsense"]),
        st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5), st.none(), st.just([])),
    )
)
def test_any_table_gives_a_recipe_or_a_settings_error(values: dict[str, Any]) -> None:
    try:
        recipe = Recipe.from_dict({"train": values})
    except SettingsError:
        return
    assert recipe.train.faults() == []
    assert Recipe.from_dict(recipe.to_dict()) == recipe
