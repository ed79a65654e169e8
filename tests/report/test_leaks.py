import dataclasses

import pytest

from fieldguide.data.near import SIGNATURE_DIGITS
from fieldguide.errors import LeakError
from fieldguide.records import Example
from fieldguide.report.leaks import Overlap, find_overlap, refuse_overlap


def example(name: str, sha: str, signature: int) -> Example:
    return Example(
        id=name, image=f"../{name}", sha256=sha, phash=f"{signature:0{SIGNATURE_DIGITS}x}", split="test"
    )


def record(name: str, sha: str, signature: int, split: str = "train") -> dict[str, str]:
    return {"image": name, "sha256": sha, "phash": f"{signature:0{SIGNATURE_DIGITS}x}", "split": split}


FAR = int("f0" * (SIGNATURE_DIGITS // 2), 16)


def test_same_bytes_and_near_duplicates_are_found_and_others_are_not():
    examples = [example("same.jpg", "aa", 1), example("near.jpg", "bb", 0b11), example("new.jpg", "cc", FAR)]
    training = [record("t1.jpg", "aa", FAR >> 1), record("t2.jpg", "dd", 0b111)]
    found = find_overlap(examples, training, distance=6)
    assert found == [
        Overlap("same.jpg", "t1.jpg", "same file"),
        Overlap("near.jpg", "t2.jpg", "near-duplicate"),
    ]


def test_pictures_the_guide_keeps_for_testing_are_not_seen():
    examples = [example("a.jpg", "aa", 1)]
    assert find_overlap(examples, [record("a.jpg", "aa", 1, "test")], distance=6) == []


def test_validation_pictures_count_as_seen_unless_they_are_what_is_evaluated():
    examples, training = [example("a.jpg", "aa", 1)], [record("a.jpg", "aa", 1, "val")]
    assert len(find_overlap(examples, training, distance=6)) == 1
    assert find_overlap(examples, training, distance=6, split="val") == []


def test_blank_pictures_without_a_hash_resemble_nothing():
    blank = dataclasses.replace(example("a.jpg", "aa", 1), phash="")
    assert find_overlap([blank], [{**record("b.jpg", "bb", 0), "phash": ""}], distance=6) == []


def test_the_error_names_ten_files_and_counts_the_rest():
    refuse_overlap([], "test")
    overlap = [Overlap(f"picture{i}.jpg", "seen.jpg", "same file") for i in range(13)]
    with pytest.raises(LeakError) as caught:
        refuse_overlap(overlap, "test")
    message = str(caught.value)
    assert message.startswith("13 pictures of the test split were seen in training")
    assert "picture9.jpg" in message
    assert "picture10.jpg" not in message
    assert "and 3 more" in message
