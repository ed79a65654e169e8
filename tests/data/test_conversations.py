"""Files of conversations become data sets: what is read, what is refused by row, and what shares a side."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from fieldguide.cli import app
from fieldguide.data.conversations import holds_conversations
from fieldguide.data.dataset import Dataset, load_dataset, read_problems
from fieldguide.data.importer import import_pictures
from fieldguide.errors import DataError
from fieldguide.records import Problem, Turn
from fieldguide.settings import ImportSettings

Make = Callable[..., Path]


def talk(name: str, *images: str, question: str = "", answer: str = "It is.", **more: Any) -> dict[str, Any]:
    """A LLaVA row; several pictures as a list."""
    asked = "<image>\n" * len(images) + (question or f"What about {name}?")
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    picture: Any = list(images) if len(images) > 1 else images[0] if images else None
    return {"id": name, **({"image": picture} if picture else {}), "conversations": turns, **more}


def run(
    folder: Path, rows: list[Any], settings: ImportSettings | None = None, **more: Any
) -> tuple[Dataset, tuple[Problem, ...]]:
    """Write the rows as chats.json in `folder`, import them, and see that the result loads as it was."""
    path = folder / "chats.json"
    path.write_text(json.dumps(rows))
    said: list[str] = []
    dataset = import_pictures(path, folder / "set", settings, announce=said.append, **more)
    assert load_dataset(folder / "set") == dataset
    assert f"of {len(rows)} conversations" in "\n".join(said)
    return dataset, read_problems(folder / "set")


@pytest.fixture
def pictures(tmp_path: Path, make_picture: Make) -> Path:
    for number in range(8):
        make_picture(f"{number}.jpg", seed=number)
    return tmp_path


def test_rows_become_examples_of_their_own(pictures: Path) -> None:
    rows = [
        talk("a", "0.jpg", source="COCO", license="CC", model="x"),
        talk("a", "0.jpg", question="And now?"),
        talk("b", "1.jpg", "2.jpg"),
        talk("c", system="Be brief."),
    ]
    dataset, problems = run(pictures, rows)
    assert problems == ()
    one, again, two, text = dataset.examples
    assert [e.id for e in dataset.examples] == ["a", "a#2", "b", "c"]
    assert (one.image, one.width, len(one.sha256)) == ("../0.jpg", 64, 64)
    assert (one.source, one.licence, one.meta) == ("COCO", "CC", {"model": "x"})
    assert one.messages == (Turn("user", "What about a?"), Turn("assistant", "It is."))
    assert (again.image, again.group, again.split) == (one.image, one.group, one.split)
    assert (two.image, two.meta["images"]) == ("../1.jpg", ["../1.jpg", "../2.jpg"])
    assert dataset.paths(two) == (pictures / "1.jpg", pictures / "2.jpg")
    assert (text.image, text.sha256, text.phash, dataset.paths(text)) == ("", "", "", ())
    assert text.messages[0] == Turn("system", "Be brief.")
    assert dataset.info["inferred"]["conversations"] == "4 in chats.json, 1 of them without a picture"


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same(pictures: Path, suffix: str) -> None:
    rows = [
        {
            "id": f"{n}",
            "images": [f"{n}.jpg"],
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "text": None}, {"type": "text", "text": "x?"}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": f"{n}."}]},
            ],
        }
        for n in range(4)
    ]
    path = pictures / f"chats{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    dataset = import_pictures(path, pictures / "set", announce=lambda line: None)
    assert [(e.id, e.image, e.messages) for e in dataset.examples] == [
        (f"{n}", f"../{n}.jpg", (Turn("user", "x?"), Turn("assistant", f"{n}."))) for n in range(4)
    ]


def test_faulty_rows_are_left_out_by_row_and_file(pictures: Path) -> None:
    (pictures / "bad.jpg").write_bytes(b"")
    Image.new("RGB", (60, 60), "white").save(pictures / "white.jpg")
    rows = [
        talk("good", "0.jpg"),
        talk("gone", "gone.jpg"),
        talk("web", "http://a.b/c.jpg"),
        talk("bad", "bad.jpg"),
        talk("white", "white.jpg"),
        talk("empty", "1.jpg", answer=""),
        "text",
        {"id": "who", "conversations": [{"from": "alien", "value": "x"}]},
        {"id": "order", "conversations": [{"from": "human", "value": "x"}, {"from": "human", "value": "y"}]},
        {
            "id": "inside",
            "images": [{"bytes": "xx", "path": "in.jpg"}],
            "conversations": talk("", "x")["conversations"],
        },
    ]
    dataset, problems = run(pictures, rows)
    assert [e.id for e in dataset.examples] == ["good"]
    assert [(p.file, p.kind) for p in problems if p.done.startswith("left out")] == [
        ("chats.json row 2: gone.jpg", "missing"),
        ("chats.json row 3: http://a.b/c.jpg", "missing"),
        ("chats.json row 6: empty", "row"),
        ("chats.json row 7", "row"),
        ("chats.json row 8: who", "row"),
        ("chats.json row 9: order", "row"),
        ("chats.json row 10: in.jpg", "missing"),
        ("bad.jpg", "unreadable"),
        ("white.jpg", "blank"),
    ]
    assert next(p.done for p in problems if p.file == "bad.jpg") == "left out, with chats.json row 4: bad"


def test_placeholders_must_agree_with_pictures(pictures: Path) -> None:
    """Case 18: a mismatch is found at import, by row and file, not deep in a run."""
    two = talk("two", "0.jpg", "1.jpg")
    two["image"] = "0.jpg"
    one = talk("one", "0.jpg")
    one["image"] = ["0.jpg", "1.jpg"]
    none = talk("none", "0.jpg")
    del none["image"]
    bare = talk("bare")
    bare["image"] = "2.jpg"
    late = talk("late", question="Hi")
    late["conversations"] += talk("", "3.jpg", question="And?")["conversations"]
    late["image"] = "3.jpg"
    dataset, problems = run(pictures, [two, one, none, bare, late, talk("good", "4.jpg")])
    assert [e.id for e in dataset.examples] == ["late", "good"]
    assert {p.file: (p.done, p.kind) for p in problems} == {
        "chats.json row 1: two": ("left out", "placeholder"),
        "chats.json row 2: one": ("left out", "placeholder"),
        "chats.json row 3: none": ("left out", "placeholder"),
        "chats.json row 4: bare": ("left out", "placeholder"),
        "chats.json row 5: late": ("kept", "placeholder"),
    }
    assert problems[0].reason == "2 <image> in the text, but 1 pictures"
    assert not any("<image>" in turn.text for e in dataset.examples for turn in e.messages)


def test_a_file_that_never_writes_placeholders_is_taken_at_its_word(pictures: Path) -> None:
    rows = [{**talk(f"{n}"), "image": f"{n}.jpg"} for n in range(3)]
    dataset, problems = run(pictures, rows)
    assert (len(dataset.examples), problems) == (3, ())
    assert "before the first turn" in dataset.info["inferred"]["placeholders"]


def test_all_about_one_picture_shares_a_side(tmp_path: Path, make_picture: Make) -> None:
    """Case 27: several questions on a picture, its copies and look-alikes, and what rows bring together."""
    for number in range(40):
        make_picture(f"{number}.png", seed=number)
    shutil.copyfile(tmp_path / "0.png", tmp_path / "copy.png")
    with Image.open(tmp_path / "1.png") as image:
        image.save(tmp_path / "again.jpg", quality=90)
    rows = [talk(f"{n}", f"{n % 40}.png", question=f"Question {n}") for n in range(200)]
    rows += [talk("c", "copy.png"), talk("d", "again.jpg"), talk("e", "2.png", "3.png")]
    rows += [talk(f"t{n % 30}", question=f"Text {n}") for n in range(90)]  # pieces of 30 chats
    rows += [talk(f"u{n}", question=f"Text  {n}", answer="Other.") for n in range(10)]  # asked before
    dataset, problems = run(tmp_path, rows)
    split = {e.id: e.split for e in dataset.examples}
    assert len(split) == len(rows)
    assert Counter(split.values()).keys() == {"train", "val", "test"}
    for n in range(200):
        assert split[f"{n}"] == split[f"{n % 40}"]
    assert (split["c"], split["d"], split["2"]) == (split["0"], split["1"], split["3"])
    assert split["e"] == split["2"]
    for n in range(30):
        assert split[f"t{n}"] == split[f"t{n}#2"] == split[f"t{n}#3"]
    assert all(split[f"u{n}"] == split[f"t{n}"] for n in range(10))
    assert {p.kind for p in problems} == {"near_duplicate"}


def test_splits_stay_when_rows_are_added(pictures: Path) -> None:
    rows = [talk(f"{n}", f"{n % 8}.jpg") for n in range(16)] + [talk(f"t{n}") for n in range(20)]
    before, _ = run(pictures, rows[:30])
    after, _ = run(pictures, [*rows, talk("more", "0.jpg", "t.jpg")])
    split = {e.id: e.split for e in after.examples}
    assert all(split[e.id] == e.split for e in before.examples)


def test_given_splits_hold_and_leaks_between_them_are_named(pictures: Path) -> None:
    rows = [
        talk("a", "0.jpg", split="test"),
        talk("b", "0.jpg", split="train"),
        talk("c", "0.jpg"),
        talk("d", "1.jpg", split="training"),
        talk("e", "2.jpg", split="nonsense"),
        talk("f", split="val"),
        talk("g", question="What about f?", answer="Other.", split="train"),
    ]
    dataset, problems = run(pictures, rows, ImportSettings(val=0, test=0))
    assert {e.id: e.split for e in dataset.examples} == {
        "a": "test", "c": "test", "d": "train", "e": "train", "f": "val"
    }  # fmt: skip
    kinds = {(p.file, p.kind) for p in problems}
    assert {("chats.json row 2: b", "leak"), ("chats.json row 7: g", "leak"), ("chats.json", "row")} <= kinds


def test_repeated_rows_and_two_labels_for_one_picture(pictures: Path) -> None:
    rows = [
        talk("a", "0.jpg"),
        talk("b", "0.jpg", question="What about a?"),
        talk("c", "1.jpg", label="cat"),
        talk("d", "1.jpg", label="dog"),
        talk("e", "1.jpg"),
        talk("f", "2.jpg", label="owl"),
    ]
    dataset, problems = run(pictures, rows)
    assert [(e.id, e.label) for e in dataset.examples] == [("a", ""), ("e", ""), ("f", "owl")]
    assert Counter(p.kind for p in problems if p.done == "left out") == {"duplicate": 1, "conflict": 2}


def test_groups_are_given_by_a_key(pictures: Path) -> None:
    rows = [talk(f"{n}", f"{n}.jpg", site=f"s{n % 2}") for n in range(8)]
    dataset, _ = run(pictures, rows, ImportSettings(group_by="site"))
    assert len({e.group for e in dataset.examples}) == 2
    assert len({(e.group, e.split) for e in dataset.examples}) == 2


def test_decisions_go_by_id_or_picture(pictures: Path) -> None:
    fixes = pictures / "fixes.csv"
    fixes.write_text("file,action,label\n0.jpg,drop,\nc,drop,\nd,relabel,owl\nwhite.png,keep,\n")
    Image.new("RGB", (60, 60), "white").save(pictures / "white.png")
    rows = [talk("a", "0.jpg"), talk("b", "0.jpg"), talk("c"), talk("d", "1.jpg"), talk("e", "white.png")]
    dataset, problems = run(pictures, rows, fixes=fixes)
    assert [(e.id, e.label) for e in dataset.examples] == [("d", "owl"), ("e", "")]
    assert Counter(p.kind for p in problems)["fix"] == 4


def test_pictures_lie_where_the_user_says(tmp_path: Path, make_picture: Make) -> None:
    make_picture("coco/train/1.jpg", seed=1)
    make_picture("coco/vg/2.jpg", seed=2)
    chats = tmp_path / "text" / "chats.json"
    chats.parent.mkdir()
    chats.write_text(
        json.dumps(
            [
                talk("a", "1.jpg"),  # anywhere below
                talk("b", "coco/train/1.jpg"),  # longer than from the folder
                talk("c", "train/1.jpg"),
                talk("d", "gqa/2.jpg"),  # another picture of the same name
            ]
        )
    )
    command = [
        "import",
        str(chats),
        "-o",
        str(tmp_path / "set"),
        "--images",
        str(tmp_path / "coco"),
        "--copy",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    dataset = load_dataset(tmp_path / "set")
    assert [(e.id, e.image) for e in dataset.examples] == [(i, "images/train/1.jpg") for i in "abc"]
    assert (tmp_path / "set/images/train/1.jpg").is_file()
    assert [p.file for p in read_problems(tmp_path / "set")] == ["chats.json row 4: gqa/2.jpg"]
    with pytest.raises(DataError, match="no such folder"):
        import_pictures(chats, tmp_path / "other", images=tmp_path / "none")
    with pytest.raises(DataError, match=r"row 1: 1\.jpg: no such picture") as error:
        import_pictures(chats, tmp_path / "other", images=chats.parent)
    assert "--images" in error.value.hint
    with pytest.raises(DataError, match="is a folder of pictures itself"):
        import_pictures(tmp_path / "coco", tmp_path / "other", images=tmp_path / "coco")
    assert not (tmp_path / "other").exists()


def test_tables_may_have_their_pictures_elsewhere_too(tmp_path: Path, make_picture: Make) -> None:
    for number in range(6):
        make_picture(f"pictures/{number}.png", seed=number)
    table = tmp_path / "labels" / "t.csv"
    table.parent.mkdir()
    table.write_text("file,label\n" + "".join(f"{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(6)))
    dataset = import_pictures(
        table, tmp_path / "set", images=tmp_path / "pictures", announce=lambda line: None
    )
    assert [e.id for e in dataset.examples] == [f"{n}.png" for n in range(6)]


def test_what_counts_as_a_file_of_conversations(tmp_path: Path) -> None:
    def holds(value: Any, name: str = "a.json") -> bool:
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
        return holds_conversations(tmp_path / name)

    assert holds([talk("a")])
    assert holds(["faulty", {}, talk("a")])
    assert not holds([{"image": "a.jpg", "captions": ["b"]}])
    assert not holds({"a": "caption"})
    assert not holds([{"messages": [], "label": "cat"}])
    assert not holds("[{")
    assert not holds("id,conversations\n", "a.csv")
    assert not holds_conversations(tmp_path)


def test_other_pictures_count_for_the_fingerprint(pictures: Path) -> None:
    one, _ = run(pictures, [talk("a", "0.jpg", "1.jpg")])
    two, _ = run(pictures, [talk("a", "0.jpg", "2.jpg")])
    assert one.examples[0].sha256 == two.examples[0].sha256
    assert one.fingerprint != two.fingerprint


def test_odd_ids(pictures: Path) -> None:
    rows = [
        talk("../x", "0.jpg"),
        talk("a\0b"),
        {**talk("n", "1.jpg"), "id": 7},
        talk("", "2.jpg"),
        talk("7"),
    ]
    fixes = pictures / "fixes.csv"
    fixes.write_text("file,action,label\n7,relabel,owl\n")
    dataset, _ = run(pictures, rows, fixes=fixes)
    assert [e.id for e in dataset.examples] == ["../x", "a\0b", "7", "chats-4", "7#2"]
    assert [e.label for e in dataset.examples] == ["", "", "owl", "", ""]


def test_a_real_file_of_answers(shared_data: Path, tmp_path: Path) -> None:
    """100 questions and answers about galaxies, none with a placeholder; pictures stand in for theirs."""
    path = shared_data / "talk" / "talk_qa_sample.json"
    with pytest.raises(DataError, match=r"row 1: 85226661\.png: no such picture"):
        import_pictures(path, tmp_path / "set", announce=lambda line: None)
    galaxies = sorted((shared_data / "galaxies").rglob("*.jpg"))
    (tmp_path / "images").mkdir()
    for row, picture in zip(json.loads(path.read_text()), galaxies, strict=False):
        (tmp_path / "images" / row["image"]).unlink(missing_ok=True)
        (tmp_path / "images" / row["image"]).symlink_to(picture)
    dataset = import_pictures(path, tmp_path / "set", images=tmp_path / "images", announce=lambda line: None)
    assert len(dataset.examples) == 100
    assert read_problems(tmp_path / "set") == ()
