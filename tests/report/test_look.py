import dataclasses
import random
import re

import numpy as np
import pytest

from fieldguide.data.dataset import load_dataset, write_dataset
from fieldguide.files import sha256_file
from fieldguide.records import Example, Problem
from fieldguide.report.look import look_at
from fieldguide.report.suspects import Features

EVIL = "<script>alert('x\")</script>"


@pytest.fixture
def dataset(tmp_path, make_picture):
    examples = []
    for index in range(40):
        label = EVIL if index % 2 else "bee"
        path = make_picture(f"photos/{index}.png", seed=index)
        examples.append(
            Example(
                id=f"{index}.png",
                image=f"../photos/{index}.png",
                sha256=sha256_file(path),
                label=label,
                group=f"g{index}",
                split="test" if index > 30 else "train",
            )
        )
    make_picture("photos/copy.png", seed=2)
    problems = [
        Problem("copy.png", "exact duplicate of 2.png", "left out", "duplicate", "2.png"),
        Problem("0.png", "the same picture is labelled 'a' and 'b'", "left out", "conflict", "4.png"),
        Problem(f"{EVIL}.jpg", "empty file", "left out", "unreadable"),
    ]
    write_dataset(tmp_path / "data", examples, [], {}, problems, {}, source=str(tmp_path / "photos"))
    return load_dataset(tmp_path / "data")


def features(dataset) -> Features:
    x = np.random.default_rng(0).normal(scale=0.3, size=(40, 8)).astype(np.float32)
    x[:, 0] += [1.0 if e.label == "bee" else -1.0 for e in dataset.examples]
    x[6] = -x[6]  # looks like the other label
    return Features(tuple(e.sha256 for e in dataset.examples), x[:, None], x)


def test_page_shows_counts_pairs_problems_pictures_and_suspects(dataset, tmp_path):
    found = look_at(dataset, tmp_path / "page.html", features(dataset))
    html = found.page.read_text()
    assert found.suspects[0].example.id == "6.png"
    assert (tmp_path / "suspects.csv").exists()
    assert html.count('class="tile"') == 40
    assert "empty file" in html
    assert html.index("the same picture is labelled") < html.index("exact duplicate of"), (
        "conflicts come first"
    )
    pairs = html[html.index('id="pairs"') : html.index('id="problems"')]
    assert pairs.count("data:image/jpeg") == 4, "a picture that import left out is still shown"


def test_everything_is_escaped_and_nothing_is_loaded(dataset, tmp_path):
    html = look_at(dataset, tmp_path / "page.html", features(dataset)).page.read_text()
    assert EVIL not in html
    assert "alert('x" not in html
    assert html.count("<script") == 1, "only the page's own script"
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", html)
    assert "http:" not in html
    assert "https:" not in html


def test_without_features_the_page_says_the_command(dataset):
    found = look_at(dataset)
    assert found.page == dataset.folder / "look.html"
    assert "fieldguide embed DATASET" in found.page.read_text()
    assert not (dataset.folder / "suspects.csv").exists()
    load_dataset(dataset.folder)  # the page in it does no harm


def test_unreadable_pictures_are_named_and_not_replaced(dataset, tmp_path):
    (tmp_path / "photos" / "3.png").write_bytes(b"")
    html = look_at(dataset, tmp_path / "page.html").page.read_text()
    tile = re.search(r'<button type="button" class="tile" data-file="3\.png".*?</button>', html, re.DOTALL)[0]
    assert "<img" not in tile
    assert re.search(r"<span>.+</span>", tile)


def test_many_pictures_of_a_label_are_bounded(dataset, tmp_path):
    many = [dataclasses.replace(dataset.examples[0], id=f"e{i}", label="bee") for i in range(120)]
    html = look_at(
        dataclasses.replace(dataset, examples=tuple(many)), tmp_path / "page.html"
    ).page.read_text()
    assert html.count('class="tile"') == 40
    assert "… 80 more" in html


@pytest.mark.starter
def test_finds_swapped_labels_among_real_animals(shared_data, tmp_path):
    """20 labels of 411 are swapped; at least 17 of them must be among the first 40 suspects."""
    from fieldguide.data.importer import import_pictures
    from fieldguide.model.vision import load_encoder
    from fieldguide.report.suspects import find_suspects
    from fieldguide.train.features import embed_pictures

    dataset = import_pictures(shared_data / "animals", tmp_path / "animals", announce=lambda line: None)
    chance = random.Random(0)
    swapped = {e.id for e in chance.sample(sorted(dataset.examples, key=lambda e: e.id), 20)}
    examples = [
        dataclasses.replace(e, label=chance.choice([label for label in dataset.labels if label != e.label]))
        if e.id in swapped
        else e
        for e in dataset.examples
    ]
    table = embed_pictures([(dataset.path(e), e.sha256) for e in examples], load_encoder())
    suspects = find_suspects(examples, Features(table.keys, table.grid, table.pooled))
    assert sum(s.example.id in swapped for s in suspects[:40]) >= 17


def test_decisions_under_the_page_s_file_names_are_understood_by_import(tmp_path, make_picture):
    """The page's own names go into fixes.csv; the browser only puts them into columns."""
    from fieldguide.data.importer import import_pictures

    for index in range(12):
        make_picture(f"photos/{'ant' if index % 2 else 'bee'}/{index}.png", seed=index)
    original = make_picture("photos/ant/same.png", seed=99)
    (tmp_path / "photos" / "bee" / "same.png").write_bytes(original.read_bytes())

    def imported(**options):
        return import_pictures(tmp_path / "photos", tmp_path / "data", announce=lambda line: None, **options)

    html = look_at(imported(), tmp_path / "page.html").page.read_text()
    names = re.findall(r'class="decide" data-file="([^"]+)"', html)
    assert sorted(names[:2]) == ["ant/same.png", "bee/same.png"], "the conflict offers both to be decided"
    tiles = re.findall(r'class="tile" data-file="([^"]+)" data-sha256="([^"]+)"', html)
    assert "ant/same.png" not in dict(tiles), "a conflict is left out until it is decided"
    (dropped, dropped_sha), (moved, moved_sha) = tiles[0], tiles[1]
    lines = [
        "file,action,label,sha256",
        f'"{dropped}","drop","","{dropped_sha}"',
        f'"{moved}","relabel","fly, house","{moved_sha}"',
        '"bee/same.png","keep","",""',
    ]
    (tmp_path / "fixes.csv").write_text("\n".join(lines) + "\n")
    labels = {e.id: e.label for e in imported(fixes=tmp_path / "fixes.csv").examples}
    assert dropped not in labels
    assert labels[moved] == "fly, house"
    assert labels["bee/same.png"] == "bee"
