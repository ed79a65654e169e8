"""Reading sources: which files are pictures, and what folders, names and tables say about them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fieldguide.data.folders import labels_in_names
from fieldguide.data.read import read_source
from fieldguide.data.rows import clean_label, is_picture_start, split_of
from fieldguide.errors import DataError, SettingsError
from fieldguide.files import write_json
from fieldguide.records import Turn
from fieldguide.settings import ImportSettings

JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 40


def put(root: Path, *names: str, data: bytes = JPEG) -> None:
    """Files that begin like pictures; reading a source never decodes."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def places(source_rows: object) -> set[tuple[str, str, str]]:
    return {(row.name, row.label, row.split) for row in source_rows}  # type: ignore[attr-defined]


# ---- folders


def test_sub_folders_are_labels(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "cat/10.jpg", "cat/2.jpg", "dog/a.png")
    source = read_source(tmp_path)
    assert [row.name for row in source.rows] == ["cat/1.jpg", "cat/2.jpg", "cat/10.jpg", "dog/a.png"]
    assert {row.label for row in source.rows} == {"cat", "dog"}
    assert source.inferred["labels"] == "2 sub-folders: cat, dog"
    assert source.problems == ()


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Training", "VALID", "Testing"), ("train", "validation", "eval"),
     ("train2017", "val2017", "test_images"), ("seg_train", "dev", "test-set")],
)  # fmt: skip
def test_split_folders_are_never_labels(tmp_path: Path, train: str, val: str, test: str) -> None:
    """Case 30: a folder level named for a split is one."""
    put(tmp_path, f"{train}/cat/1.jpg", f"{val}/cat/2.jpg", f"{test}/dog/3.jpg", f"{train}/dog/4.jpg")
    source = read_source(tmp_path)
    assert places(source.rows) == {
        (f"{train}/cat/1.jpg", "cat", "train"), (f"{val}/cat/2.jpg", "cat", "val"),
        (f"{test}/dog/3.jpg", "dog", "test"), (f"{train}/dog/4.jpg", "dog", "train"),
    }  # fmt: skip
    assert train in source.inferred["splits"]


@pytest.mark.parametrize(
    "layout",
    ["images/train/{}", "train/images/{}", "my birds/train/{}", "data/images/train/{}", "train/{}/images",
     "a/b/train/{}", "{}/train"],
)  # fmt: skip
def test_wrappers_are_never_labels(tmp_path: Path, layout: str) -> None:
    """Case 30: nor is a folder that only holds pictures together a label."""
    put(tmp_path, *(f"{layout.format(label)}/{n}.jpg" for label in ("cat", "dog") for n in (1, 2)))
    rows = read_source(tmp_path).rows
    assert {(row.label, row.split) for row in rows} == {("cat", "train"), ("dog", "train")}


def test_photo_beside_drawing_is_a_label_but_alone_is_a_wrapper(tmp_path: Path) -> None:
    put(tmp_path / "styles", "photo/1.jpg", "drawing/2.jpg")
    assert {row.label for row in read_source(tmp_path / "styles").rows} == {"photo", "drawing"}
    put(tmp_path / "zip", "photos/cat/1.jpg", "photos/dog/2.jpg")
    source = read_source(tmp_path / "zip")
    assert {row.label for row in source.rows} == {"cat", "dog"}
    assert "photos" in source.inferred["looked through"]


def test_folders_below_a_label_are_kept_as_meta(tmp_path: Path) -> None:
    put(tmp_path, "cat/tom/1.jpg", "cat/tom/2.jpg", "cat/felix/1.jpg", "dog/3.jpg")
    source = read_source(tmp_path, ImportSettings(group_by="parent"))
    assert {row.label for row in source.rows} == {"cat", "dog"}
    assert [row.meta.get("folder") for row in source.rows] == ["cat/felix", "cat/tom", "cat/tom", None]
    assert [row.group for row in source.rows] == ["cat/felix", "cat/tom", "cat/tom", "dog"]


def test_pictures_without_label_and_empty_folders_are_named(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/2.jpg")
    (tmp_path / "train" / "owl").mkdir()
    source = read_source(tmp_path)
    assert {row.name for row in source.rows} == {"train/cat/1.jpg", "train/dog/1.jpg"}
    kinds = {(problem.file, problem.kind) for problem in source.problems}
    assert kinds == {("test/2.jpg", "no_label"), ("train/owl", "empty_class")}
    assert "rename" in next(p.reason for p in source.problems if p.kind == "no_label")


def test_what_is_a_picture_is_decided_by_content_too(tmp_path: Path) -> None:
    put(tmp_path, "cat/photo.php", "cat/noextension", "cat/empty.jpg")
    (tmp_path / "cat" / "empty.jpg").write_bytes(b"")
    put(
        tmp_path, "cat/NOTES.md", "cat/table.csv", "cat/BMW.txt", data=b"BM is not enough to be a bitmap file"
    )
    put(tmp_path, "cat/.DS_Store", "cat/Thumbs.db", ".hidden/1.jpg", "__MACOSX/cat/1.jpg", "dog/1.jpg")
    os.mkfifo(tmp_path / "cat" / "pipe")  # opening it would wait for ever
    source = read_source(tmp_path)
    assert {row.name for row in source.rows} == {
        "cat/photo.php", "cat/noextension", "cat/empty.jpg", "dog/1.jpg"
    }  # fmt: skip
    ignored = {problem.file for problem in source.problems if problem.kind == "ignored"}
    assert ignored == {"cat/NOTES.md", "cat/table.csv", "cat/BMW.txt", "cat/pipe"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF"])
def test_picture_formats_are_sniffed(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "picture", kind)
    assert is_picture_start((tmp_path / "picture").read_bytes()[:32])


@given(st.text(max_size=32))
def test_ordinary_text_is_no_picture(text: str) -> None:
    if not text.startswith(("GIF87a", "GIF89a", "II*\0", "MM\0*", "II+\0", "MM\0+", "SIMPLE  =")):
        assert not is_picture_start(("# " + text).encode("utf-8", "replace")[:32])


def test_link_loops_end_and_linked_folders_are_read_once(tmp_path: Path) -> None:
    put(tmp_path / "p", "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "p" / "cat" / "loop").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "another dog").symlink_to(tmp_path / "p" / "dog")
    put(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "p" / "owl").symlink_to(tmp_path / "elsewhere")
    source = read_source(tmp_path / "p")
    assert {row.name for row in source.rows} == {"cat/1.jpg", "dog/1.jpg", "owl/1.jpg"}
    assert {p.file for p in source.problems} == {"another dog", "cat/loop"}


def test_a_data_set_inside_the_source_is_not_entered(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/1.jpg", "set/images/cat/1.jpg", "set/dataset.json")
    assert len(read_source(tmp_path).rows) == 2


def test_a_name_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/1.jpg")
    with open(os.path.join(os.fsencode(tmp_path / "cat"), b"caf\xe9.jpg"), "wb") as file:
        file.write(JPEG)
    source = read_source(tmp_path)
    assert len(source.rows) == 2
    assert [p.kind for p in source.problems] == ["unreadable"]
    assert source.problems[0].file.encode()  # can be written


def test_labels_are_normalised(tmp_path: Path) -> None:
    put(tmp_path, 'Zu\u0308rich, "b"/1.jpg', "猫/1.jpg", " owl /1.jpg")
    assert [row.label for row in read_source(tmp_path).rows] == ["owl", 'Zürich, "b"', "猫"]


def test_sources_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_source(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no picture"):
        read_source(tmp_path)
    put(tmp_path, "a.txt", data=b"text")
    with pytest.raises(DataError, match="neither a folder nor a table"):
        read_source(tmp_path / "a.txt")


@given(st.sampled_from(["train", "test", "val", "Training", "valid", "eval", "testing", "validation"]))
def test_split_names(name: str) -> None:
    assert split_of(name) == split_of(f" {name.upper()} ") in ("train", "val", "test")
    assert split_of(f"{name}s of fish") == ""


# ---- labels in file names


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([f"{d}_img_{n}.jpg" for d in range(3) for n in range(4)], {"0", "1", "2"}),
        ([f"{a} ({n}).jpg" for a in ("cat", "dog") for n in range(3)], {"cat", "dog"}),
        ([f"{a}.{n}.jpg" for a in ("cat", "dog") for n in range(3)], {"cat", "dog"}),
        ([f"{a}-{n}.jpg" for a in ("cat", "dog") for n in range(3)], {"cat", "dog"}),
        ([f"{a}{n}.jpg" for a in ("cat", "dog") for n in range(3)], {"cat", "dog"}),
        ([f"white_{a}_{n}.jpg" for a in ("king", "queen") for n in range(3)], {"white_king", "white_queen"}),
        ([f"{a}_{n}_7.jpg" for a in ("cat", "dog") for n in range(3)], {"cat", "dog"}),
    ],
)
def test_labels_in_file_names(tmp_path: Path, names: list[str], labels: set[str]) -> None:
    put(tmp_path, *names)
    source = read_source(tmp_path)
    assert {row.label for row in source.rows} == labels
    assert "file names" in source.inferred["labels"]


@pytest.mark.parametrize(
    "names",
    [
        [f"IMG_{n}.jpg" for n in range(20)],
        [f"{'IMG' if n % 2 else 'DSC'}_{n}.jpg" for n in range(20)],
        [f"{n:012d}.jpg" for n in range(20)],
        [f"2023050{n % 3}_{n}.jpg" for n in range(20)],
        [f"word{'abcdefghij'[n]}_x.jpg" for n in range(10)],
    ],
)
def test_file_names_without_labels_are_refused_with_the_way_out(tmp_path: Path, names: list[str]) -> None:
    put(tmp_path, *names)
    assert labels_in_names(names) is None
    with pytest.raises(DataError, match="--label-pattern"):
        read_source(tmp_path)
    put(tmp_path, "labels.csv", data=b"file,label\n")
    with pytest.raises(DataError, match=r"labels\.csv"):
        read_source(tmp_path)


def test_label_pattern(tmp_path: Path) -> None:
    put(tmp_path, "x-cat-1.jpg", "x-dog-2.jpg", "odd.jpg")
    source = read_source(tmp_path, ImportSettings(label_pattern=r"-(\w+)-"))
    assert places(source.rows) == {("x-cat-1.jpg", "cat", ""), ("x-dog-2.jpg", "dog", "")}
    assert [(p.file, p.kind) for p in source.problems] == [("odd.jpg", "no_label")]
    for pattern, error in ((r"(", SettingsError), (r"\w+", SettingsError), (r"(zebra)", DataError)):
        with pytest.raises(error):
            read_source(tmp_path, ImportSettings(label_pattern=pattern))


# ---- tables


def test_csv_columns_are_found(tmp_path: Path) -> None:
    put(tmp_path, "p/1.jpg", "p/2.jpg", "images/3.jpg")
    text = (
        "no,File Name,Class,caption,split,source,licence,lens\n"
        '1,p/1.jpg,cat,"a, cat",train,web,CC0,50mm\n2,p\\2.jpg,dog,,Testing,web,,\n3,3,dog,,val,,,\n'
        "4,missing.jpg,cat,,,,,\n5,short\n6,p/1.jpg,,,,,,\n7,https://a.b/c.jpg,cat,,,,,\n"
    )
    (tmp_path / "t.csv").write_text(text)
    source = read_source(tmp_path / "t.csv")
    one, two, three = source.rows
    assert (one.label, one.captions, one.split, one.licence) == ("cat", ("a, cat",), "train", "CC0")
    assert one.meta == {"no": "1", "lens": "50mm"}
    assert (two.label, two.split, three.image.name, three.split) == ("dog", "test", "3.jpg", "val")
    assert {(p.file, p.kind) for p in source.problems} == {
        ("t.csv row 5: missing.jpg", "missing"), ("t.csv row 6", "row"),
        ("t.csv row 7: p/1.jpg", "no_label"), ("t.csv row 8: https://a.b/c.jpg", "missing"),
    }  # fmt: skip
    assert "File Name → image" in source.inferred["columns"]


def test_tsv_semicolon_utf16_and_windows_1252(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    for name, data in (
        ("a.tsv", "image\tlabel\n1.jpg\tMöwe\n".encode()),
        ("b.csv", "image;label\n1.jpg;Möwe\n".encode("utf-8-sig")),
        ("c.csv", "image,label\n1.jpg,Möwe\n".encode("utf-16")),
        ("d.csv", "image,label\n1.jpg,Möwe\n".encode("cp1252")),
    ):
        (tmp_path / name).write_bytes(data)
        source = read_source(tmp_path / name)
        assert [row.label for row in source.rows] == ["Möwe"], name
        assert [p.kind for p in source.problems] == (["encoding"] if name == "d.csv" else [])


def test_jsonl_and_parquet(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    records = [
        {"image": "1.jpg", "labels": ["cat", "tabby"], "captions": ["one", "two"], "n": 1},
        {"image": "2.jpg", "labels": ["dog"], "captions": [], "n": 2},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        one, two = read_source(tmp_path / name).rows
        assert (one.labels, one.label, one.captions) == (("cat", "tabby"), "", ("one", "two"))
        assert (two.labels, two.label, two.meta) == (("dog",), "dog", {"n": 2})


def test_labels_split_at_semicolon_or_bar(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "t.csv").write_text("image,label,labels\n1.jpg,cat,cat; tabby\n2.jpg,dog,dog|puppy\n")
    rows = read_source(tmp_path / "t.csv").rows
    assert [(row.label, row.labels) for row in rows] == [("cat", ("cat", "tabby")), ("dog", ("dog", "puppy"))]


def test_columns_by_settings_and_words_for_numbers(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "t.csv").write_text("a,label,class_name,b\n1.jpg,0,cat,x\n2.jpg,1,dog,y\n")
    assert [row.label for row in read_source(tmp_path / "t.csv").rows] == ["cat", "dog"]
    settings = ImportSettings(image_column="a", label_column="b", group_by="label")
    rows = read_source(tmp_path / "t.csv", settings).rows
    assert [(row.label, row.group) for row in rows] == [("x", "0"), ("y", "1")]
    for wrong in ({"image_column": "z"}, {"label_column": "z"}, {"group_by": "z"}):
        with pytest.raises(DataError, match=r"'z'.*its columns: a, label, class_name, b"):
            read_source(tmp_path / "t.csv", ImportSettings(**wrong))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "empty"),
        ("t.csv", "a,b\nx,y\n", "no column names existing pictures"),
        ("t.csv", "image,image\n1.jpg,2\n", "named twice"),
        ("t.jsonl", '{"image": "1.jpg"}\n{oops\n', "line 2: not valid JSON"),
        ("t.jsonl", "[1]\n", "line 1: not an object"),
        ("t.json", '{"a": 1,}', "not valid JSON"),
        ("t.json", "[]", "no list of records"),
        ("t.json", '{"1.jpg": 3}', "neither a caption"),
        ("t.json", '{"images": [], "annotations": []}', "COCO"),
        ("t.parquet", "nonsense", "not a readable Parquet"),
        ("t.csv", "image,x\n1.jpg,2\n", "labels or captions"),
    ],
)
def test_broken_tables_are_refused_by_name(tmp_path: Path, name: str, text: str, message: str) -> None:
    put(tmp_path, "1.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_source(tmp_path / name)
    assert name in str(caught.value)


def test_json_mapping_of_ids_to_captions(tmp_path: Path) -> None:
    put(tmp_path, "images/a1.jpg", "images/000000000139.jpg", "b.png")
    mapping = {"a1": ["one", "two"], "139": "three", "b.png": "four", "gone": "five"}
    (tmp_path / "captions.json").write_text(json.dumps(mapping))
    source = read_source(tmp_path / "captions.json")
    assert {row.name: row.captions for row in source.rows} == {
        "images/a1.jpg": ("one", "two"), "images/000000000139.jpg": ("three",), "b.png": ("four",),
    }  # fmt: skip
    assert [p.file for p in source.problems] == ["captions.json row 4: gone"]


def test_a_name_that_several_pictures_have_is_not_guessed(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/1.jpg", "c/2.jpg")
    (tmp_path / "t.csv").write_text("image,label\n1.jpg,cat\n2.jpg,dog\n")
    source = read_source(tmp_path / "t.csv")
    assert [row.name for row in source.rows] == ["c/2.jpg"]
    assert "several pictures" in source.problems[0].reason


def test_questions_become_turns(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    (tmp_path / "t.csv").write_text("image,question,answer\n1.jpg,What?,A cat.\n")
    assert read_source(tmp_path / "t.csv").rows[0].messages == (
        Turn("user", "What?"), Turn("assistant", "A cat.")
    )  # fmt: skip


def test_a_group_column_with_few_values_is_not_taken_for_subjects(tmp_path: Path) -> None:
    put(tmp_path, *(f"{n}.jpg" for n in range(8)))
    rows = "".join(f"{n}.jpg,{'abcd'[n // 2]},{'xy'[n // 4]}\n" for n in range(8))
    (tmp_path / "t.csv").write_text("image,label,group\n" + rows)
    source = read_source(tmp_path / "t.csv")
    assert {row.group for row in source.rows} == {""}
    assert "--group-by group" in source.inferred["groups"]
    rows = read_source(tmp_path / "t.csv", ImportSettings(group_by="group")).rows  # type: ignore[assignment]
    assert {row.group for row in rows} == {"x", "y"}  # type: ignore[attr-defined]


# ---- imagefolder with metadata


def test_imagefolder_metadata_in_split_folders(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "train/2.png", "test/sub/3.png")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n1.png,cat\n2.png,dog\n")
    (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "sub/3.png", "label": "cat", "n": 3}\n')
    source = read_source(tmp_path)
    assert places(source.rows) == {
        ("train/1.png", "cat", "train"), ("train/2.png", "dog", "train"), ("test/sub/3.png", "cat", "test"),
    }  # fmt: skip
    assert "file_name → image" in source.inferred["metadata train/metadata.csv"]


def test_imagefolder_metadata_with_captions_keeps_folder_labels(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/2.png", "dog/3.png")
    text = '{"file_name": "cat/1.png", "text": "a cat"}\n{"file_name": "dog/9.png", "text": "gone"}\n'
    (tmp_path / "metadata.jsonl").write_text(text)
    source = read_source(tmp_path)
    assert {(row.name, row.label, row.text) for row in source.rows} == {
        ("cat/1.png", "cat", "a cat"), ("dog/2.png", "dog", ""), ("dog/3.png", "dog", ""),
    }  # fmt: skip
    assert [p.kind for p in source.problems] == ["missing"]


def test_imagefolder_metadata_of_captions_alone(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,a cat\n")
    source = read_source(tmp_path)
    assert [(row.name, row.label, row.text) for row in source.rows] == [("1.png", "", "a cat")]
    assert [(p.file, p.kind) for p in source.problems] == [("2.png", "no_label")]


@pytest.mark.parametrize(
    ("name", "content"),
    [("gone.json", None), ("deep.json", b"[" * 100_000), ("endless.json", b'{"a": ' + b"9" * 5000 + b"}"),
     ("deep.jsonl", b'{"a": ' + b"[" * 100_000), ("cut.csv", b"\xff\xfea\0b")],
)  # fmt: skip
def test_a_table_beyond_reading_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_source(tmp_path / name)


def test_half_an_emoji_in_a_caption_is_replaced(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    (tmp_path / "cut.json").write_text('{"1": "fish \\ud83d", "2": "fish \\ud83d\\udc1f"}')
    assert [row.captions for row in read_source(tmp_path / "cut.json").rows] == [("fish ?",), ("fish 🐟",)]


def test_control_characters_never_get_into_labels() -> None:
    assert clean_label(" red\x1b[31m\tfish\0\n\x00 ") == "red[31m fish"


def test_a_data_set_is_not_imported_again(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset.json", {})
    with pytest.raises(DataError, match="is a data set already") as caught:
        read_source(tmp_path)
    assert caught.value.hint.startswith("fieldguide train")
