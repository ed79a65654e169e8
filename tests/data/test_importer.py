"""The import stage as a whole, on pictures made here and on real ones."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fieldguide.cli import app
from fieldguide.data.dataset import Dataset, load_dataset, read_problems
from fieldguide.data.importer import import_pictures
from fieldguide.data.rows import clean_label
from fieldguide.errors import DataError, SettingsError
from fieldguide.records import Example
from fieldguide.settings import ImportSettings

Make = Callable[..., Path]


def run(source: Path, out: Path, settings: ImportSettings | None = None, **more: object) -> Dataset:
    said: list[str] = []
    dataset = import_pictures(source, out, settings, announce=said.append, **more)  # type: ignore[arg-type]
    assert load_dataset(out) == dataset
    assert said[-1]
    return dataset


def make_many(make: Make, root: str = "p", labels: str = "cat dog", count: int = 8, first: int = 0) -> None:
    for place, label in enumerate(labels.split()):
        for n in range(first, first + count):
            make(f"{root}/{label}/{n}.png", seed=1000 * place + n)


def kinds(out: Path) -> Counter[str]:
    return Counter(problem.kind for problem in read_problems(out))


def splits(dataset: Dataset) -> dict[str, str]:
    return {example.id: example.split for example in dataset.examples}


def test_a_folder_becomes_a_data_set(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture)
    dataset = run(tmp_path / "p", tmp_path / "set")
    assert dataset.labels == ("cat", "dog")
    assert len(dataset.examples) == 16
    one = dataset.examples[0]
    assert (one.id, one.image, one.width, one.height) == ("cat/0.png", "../p/cat/0.png", 64, 48)
    assert len(one.sha256) == 64
    assert dataset.path(one) == tmp_path / "p" / "cat" / "0.png"
    assert all(dataset.of(split) for split in ("train", "val", "test"))
    assert dataset.info["inferred"]["labels"] == "2 sub-folders: cat, dog"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_was_inferred_is_said_before_work_starts(
    tmp_path: Path, make_picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 30: folder levels are shown as they were understood, before any picture is opened."""
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            make_picture(f"p/images/{split}/{label}/1.png", seed=hash((split, label)) % 1000)
    said: list[str] = []

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fieldguide.data.importer.examine_pictures", stop)
    with pytest.raises(KeyboardInterrupt):
        import_pictures(tmp_path / "p", tmp_path / "set", announce=said.append)
    assert "  labels: 2 sub-folders: cat, dog" in said
    assert "  splits: folders test, train" in said
    assert any("val (10%) taken from the training pictures" in line for line in said)
    assert not (tmp_path / "set").exists()  # Ctrl-C leaves nothing


def test_bad_pictures_are_left_out_by_name(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture)
    (tmp_path / "p/cat/empty.jpg").write_bytes(b"")
    (tmp_path / "p/cat/page.jpg").write_text("<html><body>404</body></html>")
    Image.new("RGB", (60, 60), "white").save(tmp_path / "p/dog/white.png")
    (tmp_path / "p/owl").mkdir()
    dataset = run(tmp_path / "p", tmp_path / "set")
    assert len(dataset.examples) == 16
    found = {(problem.file, problem.kind) for problem in read_problems(tmp_path / "set")}
    assert found == {
        ("cat/empty.jpg", "unreadable"), ("cat/page.jpg", "unreadable"), ("dog/white.png", "blank"),
        ("owl", "empty_class"),
    }  # fmt: skip
    assert dataset.info["problems"] == {"unreadable": 2, "blank": 1, "empty_class": 1}


def test_exact_and_near_duplicates(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture)
    shutil.copyfile(tmp_path / "p/cat/0.png", tmp_path / "p/cat/copy.png")
    shutil.copyfile(tmp_path / "p/cat/1.png", tmp_path / "p/dog/cat1.png")
    with Image.open(tmp_path / "p/dog/3.png") as image:
        image.save(tmp_path / "p/dog/again.jpg", quality=90)
        image.resize((128, 96)).save(tmp_path / "p/cat/larger.png")
    dataset = run(tmp_path / "p", tmp_path / "set")
    by_id = {example.id: example for example in dataset.examples}
    assert "cat/copy.png" not in by_id
    assert not {"cat/1.png", "dog/cat1.png"} & set(by_id)  # two labels for one picture: neither is believed
    alike = [by_id[name] for name in ("dog/3.png", "dog/again.jpg", "cat/larger.png")]
    assert len({example.group for example in alike}) == len({example.split for example in alike}) == 1
    assert kinds(tmp_path / "set") == {"duplicate": 1, "conflict": 2, "near_duplicate": 2}
    reasons = " ".join(problem.reason for problem in read_problems(tmp_path / "set"))
    assert "exact duplicate of cat/0.png" in reasons
    assert "labelled 'cat'" in reasons


def test_near_duplicates_across_given_splits_never_leak(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture, "p/train")
    make_many(make_picture, "p/test", first=100)
    shutil.copyfile(tmp_path / "p/train/cat/0.png", tmp_path / "p/test/cat/same.png")
    with Image.open(tmp_path / "p/test/dog/100.png") as image:
        image.save(tmp_path / "p/train/dog/alike.jpg", quality=90)
    placed = splits(run(tmp_path / "p", tmp_path / "set"))
    assert not {"train/cat/0.png", "train/dog/alike.jpg"} & set(placed)
    assert placed["test/cat/same.png"] == placed["test/dog/100.png"] == "test"
    assert all((split == "test") == name.startswith("test/") for name, split in placed.items())
    placed = splits(run(tmp_path / "p", tmp_path / "other", ImportSettings(val=0.0)))
    assert all(name.startswith(split) for name, split in placed.items())


def test_all_pictures_linked_to_a_test_picture_are_left_out(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture, "p/train")
    make_many(make_picture, "p/test", first=100)
    with Image.open(tmp_path / "p/train/cat/0.png") as image:
        for quality in range(80, 98, 3):
            image.save(tmp_path / f"p/train/cat/q{quality}.jpg", quality=quality)
        image.resize((128, 96)).save(tmp_path / "p/test/cat/large.png")
    dataset = run(tmp_path / "p", tmp_path / "set")
    assert not [name for name in splits(dataset) if name.startswith(("train/cat/q", "train/cat/0."))]
    assert splits(dataset)["test/cat/large.png"] == "test"


def test_bursts_stay_together(tmp_path: Path, make_picture: Make) -> None:
    """Case 26: frames shot moments apart, unlike as they may look, are one group."""
    make_many(make_picture, count=4)
    for n in range(6):
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = "Maker", "Model"
        exif.get_ifd(0x8769)[0x9003] = f"2024:05:01 10:00:{2 * n:02d}"
        make_picture(f"p/{'cat' if n % 2 else 'dog'}/burst{n}.jpg", seed=500 + n, exif=exif)
    dataset = run(tmp_path / "p", tmp_path / "set")
    burst = [example for example in dataset.examples if "burst" in example.id]
    assert len(burst) == 6
    assert len({example.group for example in burst}) == len({example.split for example in burst}) == 1
    apart = run(tmp_path / "p", tmp_path / "off", ImportSettings(burst_seconds=0.0))
    assert len({example.group for example in apart.examples if "burst" in example.id}) == 6


def test_bursts_that_the_source_put_on_two_sides_do_not_leak(tmp_path: Path, make_picture: Make) -> None:
    """Case 26: of every burst that lies across train and test folders only the test frames stay."""
    make_many(make_picture, "p/train", count=5)
    make_many(make_picture, "p/test", first=100, count=5)
    for burst in range(4):
        for n in range(4):
            exif = Image.Exif()
            exif[0x010F], exif[0x0110] = "Maker", "Model"
            exif.get_ifd(0x8769)[0x9003] = f"2024:05:01 1{burst}:00:{2 * n:02d}"
            side, label = ("test" if n == burst else "train"), ("cat" if burst % 2 else "dog")
            make_picture(f"p/{side}/{label}/burst{burst}-{n}.jpg", seed=500 + 10 * burst + n, exif=exif)
    placed = splits(run(tmp_path / "p", tmp_path / "set"))
    assert {name: split for name, split in placed.items() if "burst" in name} == {
        f"test/{'cat' if burst % 2 else 'dog'}/burst{burst}-{burst}.jpg": "test" for burst in range(4)
    }
    leaks = [problem for problem in read_problems(tmp_path / "set") if problem.kind == "leak"]
    assert len(leaks) == 12
    assert all("same burst of test/" in problem.reason and problem.done == "left out" for problem in leaks)


def test_several_questions_on_one_picture_are_one_example(tmp_path: Path, make_picture: Make) -> None:
    """Case 27, also when the picture lies there under two names."""
    make_many(make_picture, count=3)
    shutil.copyfile(tmp_path / "p/cat/0.png", tmp_path / "p/cat/twin.png")
    rows = [("cat/0.png", "cat", "Who?", "A cat."), ("cat/0.png", "cat", "Where?", "Here."),
            ("cat/twin.png", "cat", "Why?", "So."), ("dog/1.png", "dog", "Who?", "A dog.")]  # fmt: skip
    with open(tmp_path / "p/t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "question", "answer"), *rows])
    dataset = run(tmp_path / "p/t.csv", tmp_path / "set")
    one = dataset.examples[0]
    assert len(dataset.examples) == 2
    assert [turn.text for turn in one.messages if turn.role == "user"] == ["Who?", "Where?", "Why?"]


def test_groups_by_column_and_parent(tmp_path: Path, make_picture: Make) -> None:
    for label in ("cat", "dog"):
        for animal in range(5):
            for n in range(3):
                make_picture(
                    f"p/{label}/{label}{animal}/{n}.png", seed=len(label) * animal + 100 * n + ord(label[0])
                )
    dataset = run(tmp_path / "p", tmp_path / "set", ImportSettings(group_by="parent"))
    by_animal: dict[str, set[str]] = {}
    for example in dataset.examples:
        by_animal.setdefault(str(example.meta["folder"]), set()).add(example.split)
    assert len(by_animal) == 10
    assert all(len(found) == 1 for found in by_animal.values())


def test_importing_again_moves_none(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture)
    before = splits(run(tmp_path / "p", tmp_path / "set"))
    make_many(make_picture, count=30, first=50)
    fresh = splits(run(tmp_path / "p", tmp_path / "fresh", splits_from=tmp_path / "set"))
    again = splits(run(tmp_path / "p", tmp_path / "set"))
    assert len(again) == 76
    assert fresh == again
    assert {name: again[name] for name in before} == before
    other = splits(run(tmp_path / "p", tmp_path / "set", ImportSettings(seed=1)))  # the user asks for another
    assert {name: other[name] for name in before} != before


def test_a_new_picture_cannot_join_test_and_training(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture, count=3)
    make_picture("p/cat/a.png", seed=77)
    make_picture("p/cat/b.png", seed=78)
    table = "image,label,subject\n" + "".join(f"cat/{n}.png,cat,s{n}\n" for n in ("0", "1", "2", "a", "b"))
    (tmp_path / "p/t.csv").write_text(table + "dog/1.png,dog,s1d\n")
    before = run(tmp_path / "p/t.csv", tmp_path / "set", ImportSettings(group_by="subject", test=0.4))
    sides = {example.split: example.id for example in before.examples if example.label == "cat"}
    with Image.open(tmp_path / "p" / sides["train"]) as image:
        image.save(tmp_path / "p/bridge.jpg", quality=92)
    subject = f"s{Path(sides['test']).stem}"
    (tmp_path / "p/t.csv").write_text(table + f"dog/1.png,dog,s1d\nbridge.jpg,cat,{subject}\n")
    after = run(tmp_path / "p/t.csv", tmp_path / "set", ImportSettings(group_by="subject", test=0.4))
    assert splits(after) == splits(before)
    left_out = [problem for problem in read_problems(tmp_path / "set") if problem.file == "bridge.jpg"]
    assert [problem.done for problem in left_out] == ["left out"]


def test_folds(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture)
    dataset = run(tmp_path / "p", tmp_path / "set", ImportSettings(folds=4))
    counts = Counter((example.label, example.fold) for example in dataset.examples)
    assert set(counts.values()) == {2}
    assert {example.fold for example in run(tmp_path / "p", tmp_path / "no").examples} == {-1}


def test_fixes(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture)
    shutil.copyfile(tmp_path / "p/cat/1.png", tmp_path / "p/dog/cat1.png")
    Image.new("RGB", (60, 60), "white").save(tmp_path / "p/dog/white.png")
    first = run(tmp_path / "p", tmp_path / "first")
    by_hash = next(example for example in first.examples if example.id == "dog/5.png").sha256
    fixes = tmp_path / "fixes.csv"
    fixes.write_text(
        f"file,action,label\ncat/0.png,drop,\n{by_hash},relabel,owl\ndog/white.png,keep,\n"
        f"{tmp_path / 'p/cat/1.png'},keep,\nnowhere.png,drop,\n"
    )
    dataset = run(tmp_path / "p", tmp_path / "set", fixes=fixes)
    labels = {example.id: example.label for example in dataset.examples}
    assert "cat/0.png" not in labels
    assert (labels["dog/5.png"], labels["dog/white.png"], labels["cat/1.png"]) == ("owl", "dog", "cat")
    assert "dog/cat1.png" not in labels
    assert kinds(tmp_path / "set")["fix"] == 3
    assert any("nowhere.png" in problem.file for problem in read_problems(tmp_path / "set"))


def test_notes_are_joined_and_what_has_none_is_listed(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture, labels="cat dog owl")
    notes = tmp_path / "notes.csv"
    notes.write_text("label,synonyms,description\nCAT,,Small.\nhound,dog,Loud.\nzebra,,Striped.\n")
    said: list[str] = []
    dataset = import_pictures(tmp_path / "p", tmp_path / "set", notes=notes, announce=said.append)
    assert [note.label for note in dataset.notes] == ["cat", "dog"]
    note = dataset.note("dog")
    assert note is not None
    assert note.synonyms == ("hound",)
    assert "labels without notes: owl" in said
    assert "notes without pictures: zebra" in said
    assert load_dataset(tmp_path / "set") == dataset


def test_copies_and_links(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    dataset = run(tmp_path / "p", tmp_path / "link" / "set")
    assert all(dataset.path(example).resolve().is_file() for example in dataset.examples)
    assert all((dataset.folder.resolve() / example.image).is_file() for example in dataset.examples)
    copied = run(tmp_path / "p", tmp_path / "copied", ImportSettings(copy=True))
    assert copied.fingerprint == dataset.fingerprint
    shutil.rmtree(tmp_path / "p")
    shutil.move(tmp_path / "copied", tmp_path / "moved")
    moved = load_dataset(tmp_path / "moved")
    assert moved.fingerprint == copied.fingerprint
    assert all(moved.path(example).is_file() for example in moved.examples)


def test_any_label_passes_through(tmp_path: Path, make_picture: Make) -> None:
    labels = ['a, "b"', "Zürich", "猫", "it's; 50%"]
    for place, label in enumerate(labels):
        for n in range(4):
            make_picture(f"p/{label}/{n}.png", seed=10 * place + n)
    notes = tmp_path / "notes.csv"
    with open(notes, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["label", "description"], *([label, f"about {label}"] for label in labels)]
        )
    dataset = run(tmp_path / "p", tmp_path / "set", notes=notes)
    assert set(dataset.labels) == set(labels)
    assert {note.label for note in dataset.notes} == set(labels)


def test_captions_without_labels(tmp_path: Path, make_picture: Make) -> None:
    for n in range(12):
        make_picture(f"p/images/{n}.png", seed=n)
    (tmp_path / "p/captions.json").write_text(
        "{" + ",".join(f'"{n}": ["one {n}", "two {n}"]' for n in range(12)) + "}"
    )
    dataset = run(tmp_path / "p/captions.json", tmp_path / "set")
    assert dataset.labels == ()
    assert dataset.examples[3].captions == ("one 3", "two 3")


def test_what_cannot_be_imported_is_refused(tmp_path: Path, make_picture: Make) -> None:
    make_picture("p/cat/1.png")
    with pytest.raises(SettingsError, match=r"val=0\.9"):
        run(tmp_path / "p", tmp_path / "set", ImportSettings(val=0.9, test=0.9))
    with pytest.raises(DataError, match="holds other files"):
        run(tmp_path / "p", tmp_path / "p")
    with pytest.raises(DataError, match="no such file"):
        run(tmp_path / "p", tmp_path / "set", notes=tmp_path / "none.csv")
    with pytest.raises(DataError, match="no such data set"):
        run(tmp_path / "p", tmp_path / "set", splits_from=tmp_path / "none")
    (tmp_path / "p/cat/1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of 1 pictures can be read"):
        run(tmp_path / "p", tmp_path / "set")
    Image.new("RGB", (60, 60), "white").save(tmp_path / "p/cat/1.png")
    with pytest.raises(DataError, match="no picture is left"):
        run(tmp_path / "p", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_the_command(tmp_path: Path, make_picture: Make) -> None:
    make_many(make_picture)
    (tmp_path / "recipe.toml").write_text("[import]\nfolds = 3\nseed = 5\nval = 0.0\n")
    arguments = ["import", tmp_path / "p", "-o", tmp_path / "set", "--recipe", tmp_path / "recipe.toml",
                 "--seed", "7", "--set", "import.test=0.3", "--copy"]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "imported 16 of 16 pictures" in result.stdout
    settings = load_dataset(tmp_path / "set").info["settings"]
    assert [settings[name] for name in ("folds", "seed", "val", "test", "copy")] == [3, 7, 0.0, 0.3, True]
    result = CliRunner().invoke(app, ["import", str(tmp_path / "none"), "-o", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert "no such file or folder" in result.stderr


# ---- real pictures


@pytest.mark.parametrize(
    ("name", "count", "labels"),
    [("digits", 500, 10), ("animals", 411, 7), ("chess", 358, 6), ("galaxies", 226, 4), ("fish", 248, 7)],
)
def test_real_sets(tmp_path: Path, shared_data: Path, name: str, count: int, labels: int) -> None:
    notes = shared_data / "notes" / f"{name}.csv"
    dataset = run(shared_data / name, tmp_path / "set", notes=notes)
    assert len(dataset.examples) + kinds(tmp_path / "set")["unreadable"] == count
    assert len(dataset.labels) == len(dataset.notes) == labels
    for label in dataset.labels:
        have = {example.split for example in dataset.examples if example.label == label}
        assert have == {"train", "val", "test"}
    assert 0.6 < len(dataset.of("train")) / count < 0.8


def test_odd_files_in_awkward_folders(tmp_path: Path, shared_data: Path) -> None:
    names = ['Zürich, "quoted"', "猫", "plain"]
    for place, path in enumerate(sorted((shared_data / "odd").iterdir())):
        target = tmp_path / "p" / ("train" if place % 4 else "test") / names[place % 3] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (tmp_path / "p/train/empty").mkdir()
    cats = shared_data / "animals" / "cat"
    for file, target in (
        ("cat (1).jpg", "train/猫/x.jpg"),
        ("cat (1).jpg", "train/plain/x.jpg"),
        ("cat (2).jpg", "train/plain/y.jpg"),
        ("cat (2).jpg", "test/plain/y.jpg"),
    ):
        shutil.copyfile(cats / file, tmp_path / "p" / target)
    dataset = run(tmp_path / "p", tmp_path / "set")
    assert set(dataset.labels) == {clean_label(name) for name in names}
    found = kinds(tmp_path / "set")
    assert (found["unreadable"], found["conflict"], found["empty_class"], found["duplicate"]) == (3, 2, 1, 1)
    placed = splits(dataset)
    assert placed["test/plain/y.jpg"] == "test"
    assert not {"train/plain/y.jpg", "train/plain/x.jpg", "train/猫/x.jpg"} & set(placed)
    _assert_no_copy_on_two_sides(dataset.examples)


def _assert_no_copy_on_two_sides(examples: tuple[Example, ...]) -> None:
    from fieldguide.data.near import near_matches

    test = [example.phash for example in examples if example.split == "test"]
    rest = [example.phash for example in examples if example.split != "test"]
    assert near_matches(rest, test, 6) == []
