"""Guide folders that are whole and that are not; and one built from pictures with the real weights."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fieldguide.data.notes import write_notes
from fieldguide.errors import DataError, FieldguideError, GuideError, LeakError, PictureError, SettingsError
from fieldguide.files import cache_dir, fingerprint, read_json, sha256_file, write_json
from fieldguide.guide import IDENTITY, MANIFEST, SCHEMA_VERSION, Guide, check_free, load_guide
from fieldguide.model.prompt import PromptTemplate
from fieldguide.records import Note
from fieldguide.settings import AnswerSettings, EmbedSettings, Recipe, TrainSettings

BOUND = (
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "projector.safetensors",
    "notes.csv",
    "training_pictures.parquet",
)
LABELS = ("ox", "catfish", "鱼")
NOTES = [Note("ox", field_marks=("horns", "hooves")), Note("鱼", description="It swims.")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A guide folder made by hand: what opening it looks at is there, the weights are not weights."""
    made = tmp_path / "made.guide"
    for name in BOUND:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(f"the bytes of {name}")
    write_notes(made / "notes.csv", NOTES)
    info = {
        "schema": SCHEMA_VERSION,
        "labels": list(LABELS),
        "files": {name: sha256_file(made / name) for name in BOUND},
        "template": asdict(PromptTemplate()),
        "projector": {"summary_tokens": 3},
        "base_model": {"name": "org/base", "sha256": "b" * 64},
        "encoder": {"key": "1234", "runtime": "torch"},
        "calibration": {"temperature": 2.0},
        "settings": Recipe(answer=AnswerSettings(question="What?", top_k=2, batch_size=3)).to_dict(),
        "versions": {"fieldguide": "0.1.0"},
    }
    write_json(made / MANIFEST, signed(info))
    return made


def signed(info: dict[str, Any]) -> dict[str, Any]:
    return {**info, "fingerprint": fingerprint({name: info.get(name) for name in IDENTITY})}


def changed(folder: Path, **values: Any) -> None:
    write_json(folder / MANIFEST, signed({**read_json(folder / MANIFEST), **values}))


# --- opening ----------------------------------------------------------------------------------------------


def test_a_whole_guide_opens(folder: Path) -> None:
    guide = load_guide(folder)
    assert guide.labels == LABELS
    assert guide.notes == {note.label: note for note in NOTES}
    assert (guide.fingerprint, guide.temperature) == (read_json(folder / MANIFEST)["fingerprint"], 2.0)
    assert (guide.answer_settings.question, guide.answer_settings.top_k) == ("What?", 2)
    assert guide.report == folder / "report" / "index.html"


def test_the_same_guide_answers_under_other_settings(folder: Path) -> None:
    changed(folder, calibration={"temperature": 2.0, "conformal_scores": [0.1] * 30})
    guide = load_guide(folder)
    guide.__dict__["model"] = object()  # as if it had been loaded
    other = guide.answering(coverage=0.9, abstain=False)
    assert (other.answer_settings.coverage, other.answer_settings.abstain) == (0.9, False)
    assert (other.answer_settings.question, other.temperature) == ("What?", 2.0)
    assert other.model is guide.model
    assert other.fingerprint != guide.fingerprint, "a ledger must not mix their rows"
    assert guide.answer_settings.coverage == 0
    assert guide.answering(abstain=True).fingerprint == guide.fingerprint
    with pytest.raises(SettingsError, match="coverage=1"):
        guide.answering(coverage=1.0)


def test_an_older_guide_promises_no_coverage_and_never_refuses(folder: Path) -> None:
    guide = load_guide(folder)
    assert guide._judge.novelty is None
    with pytest.raises(GuideError, match="keeps no validation scores"):
        guide.answering(coverage=0.9)


def test_a_guide_without_notes_opens(folder: Path) -> None:
    write_notes(folder / "notes.csv", [])
    files = read_json(folder / MANIFEST)["files"] | {"notes.csv": sha256_file(folder / "notes.csv")}
    changed(folder, files=files)
    assert load_guide(folder).notes == {}


def test_a_guide_is_not_made_among_other_files(tmp_path: Path) -> None:
    check_free(tmp_path / "new")
    for left in ("checkpoints", "dataset"):  # of a build that was stopped
        (tmp_path / left / left).mkdir(parents=True)
        check_free(tmp_path / left)
    (tmp_path / "photo.jpg").write_text("")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    with pytest.raises(GuideError, match="is a file"):
        check_free(tmp_path / "photo.jpg")
    with pytest.raises(GuideError, match="holds other files"):
        check_free(tmp_path / "photos")


def test_a_folder_without_a_guide_names_the_command(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(GuideError, match="no guide there") as caught:
            load_guide(place)
        assert "fieldguide build" in caught.value.hint


def test_an_unfinished_training_is_told_from_no_guide(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / "checkpoints").mkdir()
    with pytest.raises(GuideError, match="its training is not finished"):
        load_guide(folder)


@pytest.mark.parametrize("name", BOUND)
def test_a_part_of_another_guide_is_refused_by_name(folder: Path, name: str) -> None:
    """Case 8: adapter and projector of different trainings never answer together."""
    with open(folder / name, "ab") as file:
        file.write(b"\n")
    with pytest.raises(GuideError, match=f"{name} is not the one this guide was written with"):
        load_guide(folder)


@pytest.mark.parametrize("name", BOUND)
def test_a_missing_part_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(GuideError, match=f"{name} is missing"):
        load_guide(folder)


@pytest.mark.parametrize("versions", [{"fieldguide": "9.0"}, {}])
def test_a_newer_guide_asks_for_an_update(folder: Path, versions: dict[str, str]) -> None:
    write_json(folder / MANIFEST, {"schema": SCHEMA_VERSION + 1, "versions": versions})
    with pytest.raises(GuideError, match="made by a newer version") as caught:
        load_guide(folder)
    assert caught.value.hint == "update fieldguide"
    assert versions.get("fieldguide", "unknown") in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "one"}'])
def test_a_broken_description_is_named(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(FieldguideError, match=r"guide\.json"):
        load_guide(folder)


def test_a_description_edited_by_hand_is_refused(folder: Path) -> None:
    info = read_json(folder / MANIFEST)
    for part in ({"template": {"end": 7}}, {"labels": ["ox", "fish"]}, {"calibration": {"temperature": 9.0}}):
        write_json(folder / MANIFEST, {**info, **part})
        with pytest.raises(GuideError, match=r"guide\.json: changed since the guide was written"):
            load_guide(folder)


def test_a_description_that_lacks_something_is_named(folder: Path) -> None:
    info = read_json(folder / MANIFEST)
    for name in ("files", "settings", "calibration"):
        write_json(folder / MANIFEST, {key: value for key, value in info.items() if key != name})
        with pytest.raises(GuideError, match=f"says nothing of {name}"):
            load_guide(folder)
    changed(folder, **{**info, "labels": []})
    with pytest.raises(GuideError, match="says nothing of labels"):
        load_guide(folder)


def test_features_of_another_encoder_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fieldguide.model import vision

    guide = load_guide(folder)
    monkeypatch.setattr(vision, "load_encoder", lambda settings: SimpleNamespace(key="5678"))
    with pytest.raises(GuideError, match="trained on features 1234, and this version computes 5678"):
        _ = guide.encoder


def test_other_weights_of_the_language_model_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldguide.model import trained

    guide = load_guide(folder)
    monkeypatch.setattr(trained, "model_cards", lambda: {"language model": {"sha256": "c" * 64}})
    with pytest.raises(GuideError, match=r"trained on other weights of org/base .*bbbbbbbbbbbb…, here cccc"):
        _ = guide.model


# --- answering, with a tiny random model -------------------------------------------------------------------


class Shades:
    """An encoder whose features are the mean colours of four stripes."""

    key, runtime_name, grid_shape, pooled_size, shrink_to = "shades", "", (4, 3), 3, 16

    def prepare(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((16, 16)))

    def encode(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        stripes = pictures.reshape(len(pictures), 4, 64, 3).mean(2) / 32 - 4
        return stripes.astype(np.float32), stripes.mean(1).astype(np.float32)


@pytest.fixture
def answering(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guide:
    from fieldguide.testing import tiny_model

    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    guide = load_guide(folder)
    guide.__dict__["encoder"] = Shades()  # where the guide keeps what it has loaded
    guide.__dict__["model"] = tiny_model(LABELS, pooled=3)
    return guide


def test_many_pictures_are_answered_in_order_and_bad_ones_say_why(
    answering: Guide, make_picture: Callable[..., Path], tmp_path: Path
) -> None:
    """Cases 21 and 40: one bad picture costs its own answer, not those beside it."""
    pictures = [make_picture(f"{number}.png", number) for number in range(7)]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    asked = [broken, *pictures, tmp_path / "absent.png", pictures[2], tmp_path]
    answers = answering.classify(asked)
    assert [answer.image for answer in answers] == [str(path) for path in asked]
    bad = {0, 8, 10}
    for place, answer in enumerate(answers):
        assert bool(answer.error) == (place in bad) == (not answer.label) == (not answer.scores)
    assert answers[9].scores == answers[3].scores  # the same picture twice
    assert len({answer.scores[0].probability for answer in answers if not answer.error}) == 7


def test_a_picture_is_answered_alone_as_among_others(
    answering: Guide, make_picture: Callable[..., Path]
) -> None:
    """Case 19: in a batch of pictures of all sizes."""
    sizes = ((64, 48), (20, 90), (300, 200), (16, 16), (33, 31))
    pictures = [make_picture(f"{number}.png", number, size) for number, size in enumerate(sizes)]
    together = answering.classify(pictures, top_k=3)
    for picture, answer in zip(pictures, together, strict=True):
        (alone,) = answering.classify([picture], top_k=3)
        assert [score.label for score in alone.scores] == [score.label for score in answer.scores]
        assert [score.probability for score in alone.scores] == pytest.approx(
            [score.probability for score in answer.scores], abs=1e-5
        )
        assert sum(score.probability for score in answer.scores) == pytest.approx(1)
        assert (answer.label, answer.probability) == (answer.scores[0].label, answer.scores[0].probability)


def test_eight_orientations_are_one_picture_to_training_and_to_answering(
    answering: Guide, draw: Callable[..., Image.Image], tmp_path: Path
) -> None:
    """Case 22: both get their features through the one loader."""
    from fieldguide.train.features import embed_pictures

    turn = Image.Transpose
    stored = (
        None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_90,
        turn.TRANSVERSE, turn.ROTATE_270,
    )  # fmt: skip
    scene, paths = draw(3, (64, 40)), []
    for orientation, how in enumerate(stored, start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(tmp_path / f"{orientation}.png")
        (scene if how is None else scene.transpose(how)).save(paths[-1], exif=exif)
    assert len({path.read_bytes() for path in paths}) == 8
    table = embed_pictures([(path, "") for path in paths], answering.encoder, cache=tmp_path / "training")
    assert len({row.tobytes() for row in table.grid}) == 1
    turned = answering.encoder.encode(answering.encoder.prepare(scene.transpose(turn.ROTATE_90))[None])
    assert not np.array_equal(turned[0][0], table.grid[0]), "these features do see a turn"
    asked, _, _ = answering._features(paths)
    assert np.array_equal(asked.grid.numpy(), table.grid)
    assert len({tuple(answer.scores) for answer in answering.classify(paths)}) == 1


def test_the_guides_own_settings_hold_unless_others_are_given(
    answering: Guide, make_picture: Callable[..., Path]
) -> None:
    picture = make_picture("a.png")
    assert len(answering.classify([picture])[0].scores) == 2
    assert len(answering.classify([picture], top_k=1)[0].scores) == 1
    calm = answering.classify([picture], top_k=3)[0]
    answering.info["calibration"]["temperature"] = 0.5
    sure = answering.classify([picture], top_k=3)[0]
    assert sure.probability > calm.probability + 0.05
    assert [s.log_score for s in sure.scores] == pytest.approx([s.log_score for s in calm.scores], abs=1e-5)


def test_no_pictures_give_no_answers(answering: Guide) -> None:
    assert answering.classify([]) == []


def test_asking_gives_the_label_of_classifying_and_words(
    answering: Guide, make_picture: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = make_picture("a.png")
    answer = answering.ask(picture, top_k=3)
    (named,) = answering.classify([picture], top_k=3)
    assert (answer.label, answer.scores) == (named.label, named.scores)
    monkeypatch.setattr(answering, "notes", {})
    assert answering.ask(picture).text == "", "nothing is made up about a label without notes"
    assert answering.ask(picture, answering.answer_settings.why).text != ""
    monkeypatch.setattr(answering, "notes", {answer.label: Note(answer.label, field_marks=("horns",))})
    answer = answering.ask(picture)
    assert answer.text == answering.ask(picture, answering.answer_settings.why).text != ""
    assert answer.text != answering.ask(picture, "Where does it live?").text
    with pytest.raises(PictureError, match=r"absent\.png"):
        answering.ask(tmp_path / "absent.png")


def test_a_question_longer_than_the_context_is_refused(
    answering: Guide, make_picture: Callable[..., Path]
) -> None:
    picture = make_picture("a.png")
    assert answering.ask(picture, "\udcff?").label
    with pytest.raises(DataError, match=r"the question .*ha(s|ve) \d+ tokens, of which"):
        answering.ask(picture, "why " * 20_000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX pipes")
def test_a_pipe_is_not_waited_for(answering: Guide, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (answer,) = answering.classify([tmp_path / "pipe.jpg"])
    assert answer.error == "not an ordinary file"


# --- from pictures to a guide, with the real weights -------------------------------------------------------

SHAPES = {"red circle": (220, 30, 30), "green square": (30, 170, 60), "blue triangle": (40, 60, 230)}
RECIPE = Recipe(
    embed=EmbedSettings(runtime="torch"),  # the others would be measured first
    train=TrainSettings(epochs=1, batch_size=8, explain_per_label=1),
    answer=AnswerSettings(max_new_tokens=24),
)


def shape(background: Image.Image, label: str, seed: int) -> Image.Image:
    """A large coloured shape somewhere on the background."""
    rng = np.random.default_rng(seed)
    x, y, size = rng.integers(4, 40), rng.integers(4, 40), int(rng.integers(44, 60))
    box = (int(x), int(y), int(x) + size, int(y) + size)
    draw = ImageDraw.Draw(background)
    if label == "red circle":
        draw.ellipse(box, fill=SHAPES[label])
    elif label == "green square":
        draw.rectangle(box, fill=SHAPES[label])
    else:
        draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], SHAPES[label])
    return background


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for these tests, with the weights that are on this machine."""
    real, made = cache_dir(), tmp_path_factory.mktemp("cache")
    os.symlink(real / "models", made / "models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIELDGUIDE_CACHE", str(made))
        yield made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., Image.Image]) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    for number, label in enumerate(list(SHAPES) * 12):
        path = folder / "photos" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape(draw(number, (104, 104)), label, number).save(path)
    with open(folder / "photos" / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        names = [(f"{label}/{number}.png", "CC-BY-4.0") for number, label in enumerate(list(SHAPES) * 12)]
        csv.writer(file).writerows([("file_name", "licence"), *names])
    with open(folder / "notes.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(label, f"it is {label.split()[0]};it is a {label.split()[1]}") for label in SHAPES]
        csv.writer(file).writerows([("label", "field_marks"), *rows])
    return folder


@pytest.fixture(scope="module")
def built(photos: Path, own_cache: Path, guard: Any) -> tuple[Guide, list[str]]:
    """The guide, and what was announced while it was built.

    Case 43: import, features, training, calibration, evaluation and report ask for no host but this one,
    not even where a refusal would be swallowed; and no switch of the hub's library is needed for that.
    """
    from fieldguide.build import build

    told: list[str] = []
    out = photos / "shapes.guide"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.delenv(name, raising=False)
        refused = len(guard.refused)
        guide = build(photos / "photos", out, notes=photos / "notes.csv", recipe=RECIPE, announce=told.append)
        guide.classify([photos / "photos" / "red circle" / "0.png"])
    assert guard.refused[refused:] == []
    return guide, told


@pytest.mark.starter
def test_build_leaves_a_whole_guide_with_its_report(built: tuple[Guide, list[str]]) -> None:
    guide, told = built
    assert load_guide(guide.folder).fingerprint == guide.fingerprint
    assert guide.labels == tuple(sorted(SHAPES))
    assert set(guide.info["files"]) == {*BOUND, "novelty.safetensors"}
    for name in ("index.html", "metrics.json", "predictions.parquet"):
        assert (guide.folder / "report" / name).stat().st_size > 100
    assert read_json(guide.folder / "report" / "metrics.json")["split"] == "test"
    seen = {row["split"] for row in guide.training_pictures()}
    assert seen == {"train", "val"}
    text = "\n".join(told)
    assert "plan:" in text
    assert f"fieldguide ask {guide.folder}" in text
    assert not [path for path in guide.folder.rglob("*") if path.suffix in (".pkl", ".pt", ".bin", ".tmp")]


@pytest.mark.starter
def test_the_guide_says_what_it_is_made_of(built: tuple[Guide, list[str]]) -> None:
    """Case 44: licences of weights and pictures are in the guide and in its report."""
    info = built[0].info
    page = built[0].report.read_text(encoding="utf-8")
    assert info["dataset"]["licences"] == ["CC-BY-4.0"]
    assert all(text in page for text in ("Apache-2.0", "CC-BY-4.0", "SmolLM2-135M-Instruct"))
    assert {card["role"]: card["licence"] for card in info["models"].values()} == {
        "language model": "Apache-2.0", "vision encoder": "Apache-2.0",
    }  # fmt: skip
    assert all(card["attribution"] and card["sha256"] for card in info["models"].values())
    assert info["template"] == asdict(PromptTemplate())
    training = info["training"]
    assert training["frozen_parts_unchanged"] is True
    assert training["parts"]["language model: base"]["trained"] == 0
    assert set(training["changes"]) == {"language model: LoRA adapter", "projector: summary tokens"}
    assert all(change["relative_change"] > 0 for change in training["changes"].values())
    assert training["supervised_tokens"] > training["training_pictures"] * 2
    home = str(built[0].folder.parent)
    assert home not in json.dumps(info)


@pytest.mark.starter
def test_new_pictures_are_named(
    built: tuple[Guide, list[str]], draw: Callable[..., Image.Image], tmp_path: Path
) -> None:
    guide, _ = built
    wanted = list(SHAPES) * 4
    pictures = []
    for number, label in enumerate(wanted, start=100):
        pictures.append(tmp_path / f"{number}.png")
        shape(draw(number, (104, 104)), label, number).save(pictures[-1])
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:100])
    answers = guide.classify([*pictures, broken])
    assert answers[-1].error
    assert not answers[-1].label
    right = [answer.label == label for answer, label in zip(answers, wanted, strict=False)]
    assert sum(right) >= 9
    assert all(sum(s.probability for s in answer.scores) == pytest.approx(1) for answer in answers[:-1])
    said = guide.ask(pictures[0])
    assert said.label == answers[0].label
    assert len(said.text) > 5


@pytest.mark.starter
def test_an_explanation_shows_what_can_be_checked(built: tuple[Guide, list[str]], tmp_path: Path) -> None:
    from fieldguide.report.explained import render_explanations

    guide, _ = built
    rows = guide.training_pictures()
    taught = next(row for row in rows if row["split"] == "train")
    picture = guide.folder / "dataset" / taught["image"]
    found = guide.explain(picture, heat=False)
    assert found.answer.label == guide.classify([picture])[0].label
    assert found.marks == guide.notes[found.answer.label].field_marks
    assert len(found.neighbours) == 5
    near = [one.similarity for one in found.neighbours]
    assert near == sorted(near, reverse=True)
    by_image = {row["image"]: row["label"] for row in rows if row["split"] == "train"}
    assert all(by_image[one.image] == one.label for one in found.neighbours)
    assert taught["image"] not in {one.image for one in found.neighbours}, "the picture itself says nothing"
    assert all(one.path is not None for one in found.neighbours)
    assert all(one.differences for one in found.rivals), "the marks of both are in the notes"
    page = render_explanations([found], "one")
    assert all(text in page for text in (*found.marks, found.answer.label, found.neighbours[0].label))
    assert page.count("<img") == 6
    assert json.loads(json.dumps(found.to_dict()))["neighbours"][0]["similarity"] == near[0]

    elsewhere = guide.explain(picture, heat=False, dataset=tmp_path)
    assert [one.image for one in elsewhere.neighbours] == [one.image for one in found.neighbours]
    assert all(one.path is None for one in elsewhere.neighbours)
    assert "not here: " in render_explanations([elsewhere], "two")


@pytest.mark.starter
def test_the_order_of_the_labels_changes_nothing(built: tuple[Guide, list[str]]) -> None:
    """Case 33, measured: the trie is built anew for each order."""
    from fieldguide.report.audit import audit

    guide, _ = built
    dataset = guide.folder / "dataset"
    shown = [dataset / row["image"] for row in guide.training_pictures()[:8]]
    found = audit(guide, guide.labels, shown)
    assert [one.changed for one in found.order] == [0, 0]
    assert max(one.difference for one in found.order) < 1e-4
    assert len(found.words) == 6
    assert len(found.blanks) == 4


@pytest.mark.starter
def test_the_report_says_whether_heat_maps_mean_something(built: tuple[Guide, list[str]]) -> None:
    found = read_json(built[0].folder / "report" / "metrics.json")["deletion_test"]
    assert found["pictures"] == 1
    assert found["difference"] == pytest.approx(found["hottest"] - found["random"])
    assert "Do its heat maps mean something?" in built[0].report.read_text(encoding="utf-8")


@pytest.mark.starter
def test_a_page_explains_the_least_sure_answers(built: tuple[Guide, list[str]], tmp_path: Path) -> None:
    from fieldguide.answer.classify import classify_pictures
    from fieldguide.answer.explain import explain_least_sure

    guide, _ = built
    dataset = guide.folder / "dataset"
    chosen = [dataset / row["image"] for row in guide.training_pictures()[:6]]
    summary = classify_pictures(guide, chosen, tmp_path / "names.csv", announce=lambda line: None)
    sure = {answer.image: answer.probability for answer in guide.classify(chosen)}
    assert [str(path) for path in summary.least_sure] == sorted(sure, key=lambda image: (sure[image], image))
    [found] = explain_least_sure(guide, summary.least_sure[:1])
    assert found.where is not None
    assert found.answer.image == str(summary.least_sure[0])


@pytest.mark.starter
def test_plain_peft_loads_the_guides_adapter(built: tuple[Guide, list[str]]) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fieldguide.model.starter import starter_folder

    plain = AutoModelForCausalLM.from_pretrained(starter_folder("language"), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, built[0].folder / "adapter").eval()
    ids = torch.tensor([built[0].model.tokenizer.encode("A red circle is")])
    with torch.no_grad():
        wanted = built[0].model.language_model(input_ids=ids).logits
        found = adapted(input_ids=ids).logits
        with adapted.disable_adapter():
            without = adapted(input_ids=ids).logits
    assert torch.equal(found, wanted)
    assert not torch.allclose(found, without, atol=1e-4)


@pytest.mark.starter
def test_training_pictures_are_not_evaluated(built: tuple[Guide, list[str]]) -> None:
    from fieldguide.build import evaluate
    from fieldguide.data.dataset import load_dataset

    guide, _ = built
    before = sha256_file(guide.folder / "report" / "metrics.json")
    with pytest.raises(LeakError, match=r"of the train split were seen in training: .*\.png \(same file"):
        evaluate(guide, load_dataset(guide.folder / "dataset"), split="train")
    assert sha256_file(guide.folder / "report" / "metrics.json") == before


@pytest.mark.starter
def test_a_second_build_into_the_same_folder_is_refused(built: tuple[Guide, list[str]], photos: Path) -> None:
    from fieldguide.build import build

    with pytest.raises(GuideError, match="already holds a guide"):
        build(photos / "photos", built[0].folder, recipe=RECIPE, announce=lambda line: None)


@pytest.mark.starter
def test_a_build_that_was_stopped_before_its_report_is_only_evaluated(
    built: tuple[Guide, list[str]], photos: Path, tmp_path: Path
) -> None:
    from fieldguide.build import build

    guide, out = built[0], built[0].folder
    wanted = read_json(out / "report" / "metrics.json")["guide"]["confusion"]
    before = sha256_file(out / MANIFEST)
    shutil.move(out / "report", tmp_path / "report")
    other = tmp_path / "other"
    shutil.copytree(photos / "photos", other)
    with pytest.raises(GuideError, match="already holds a guide"):  # from other pictures
        build(other, out, recipe=RECIPE, announce=lambda line: None)
    told: list[str] = []
    again = build(photos / "photos", out, notes=photos / "notes.csv", recipe=RECIPE, announce=told.append)
    assert again.fingerprint == guide.fingerprint
    assert sha256_file(out / MANIFEST) == before
    assert read_json(out / "report" / "metrics.json")["guide"]["confusion"] == wanted
    assert told[0].endswith("only its evaluation is missing")
    assert not any("epoch" in line for line in told)


@pytest.mark.starter
def test_a_build_that_was_stopped_before_its_last_file_ends_with_the_same_guide(
    built: tuple[Guide, list[str]], tmp_path: Path
) -> None:
    from fieldguide.data.dataset import load_dataset
    from fieldguide.training import train_guide

    guide, _ = built
    copy = tmp_path / "copy.guide"
    shutil.copytree(guide.folder / "checkpoints", copy / "checkpoints")
    with pytest.raises(GuideError, match="its training is not finished"):
        load_guide(copy)
    dataset = load_dataset(guide.folder / "dataset")
    again = train_guide(dataset, copy, RECIPE, resume=True, encoder=guide.encoder, announce=lambda line: None)
    assert again.info["files"] == guide.info["files"]
    assert again.fingerprint == guide.fingerprint


@pytest.mark.starter
def test_pictures_of_something_else_are_not_in_the_guide(
    built: tuple[Guide, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = built[0]
    told = guide.info["calibration"]["novelty"]
    assert told["known"] >= 19
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(len(noise))]
    for path, pixels in zip(paths, noise, strict=True):
        Image.fromarray(pixels).save(path)
    answers = guide.classify(paths)
    assert all(answer.in_guide is False and answer.label in guide.labels for answer in answers)
    assert guide.ask(paths[0]).familiarity == answers[0].familiarity
    silent = guide.answering(abstain=False).classify(paths)
    assert {(answer.in_guide, answer.familiarity) for answer in silent} == {(None, None)}
    assert [answer.label for answer in silent] == [answer.label for answer in answers]
    sets = guide.answering(coverage=0.8).classify(paths)
    assert all(answer.coverage == 0.8 and answer.scores for answer in sets)
