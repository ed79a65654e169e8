"""Free replies: a label where one was given as the answer, and nothing where none was."""

from __future__ import annotations

import json
import string
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fieldguide.remote import replies
from fieldguide.remote.names import FUNCTION, NONE, plain, words
from fieldguide.remote.replies import ReplyReader

LABELS = ("cat", "dog", "catfish", "leopard", "snow leopard", "lion", "knight", "Épée", "8", "Steller's jay")
READER = ReplyReader(LABELS, {"dog": ["hound", "Canis familiaris"], "cat": ["Felis catus"]})


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("cat", "cat"), ("A Cat.", "cat"), ('"CAT"', "cat"), ("**cat**", "cat"), ("`cat`\n", "cat"),
        ("ｃａｔ", "cat"),
        ("cats", "cat"), ("The dogs", "dog"), ("hounds", "dog"), ("canis familiaris", "dog"),
        ("Knights!", "knight"),
        ("It is a catfish.", "catfish"), ("This is a snow leopard resting on a rock.", "snow leopard"),
        ("snow_leopard", "snow leopard"), ("Snow-Leopard", "snow leopard"), ("leopards", "leopard"),
        ("epee", "Épée"), ("E\u0301PE\u0301E", "Épée"), ("Steller’s Jay", "Steller's jay"),
        ("steller's jays", "Steller's jay"),
        ("8", "8"), ("The digit is an 8.", "8"), ("Answer: cat", "cat"), ("**Answer:** Cat", "cat"),
        ("I see fur and whiskers.\nFinal answer: it is a dog", "dog"), ("The answer is cat.", "cat"),
        ("Answer: cat. Then again, no.\nFinal answer: dog", "dog"), ("The best answer is: dog", "dog"),
        ('{"label": "cat"}', "cat"), ('```json\n{"label": "Dog"}\n```', "dog"),
        ('Sure!\n{"answer": "a cat"} Bye', "cat"),
        ('{"label": "cat", "confi', "cat"), ('["cat"]', "cat"), ('"cat"', "cat"), ('{"label": 8}', "8"),
        ('{"result": "cat"}', "cat"), ('{"label": "cat", "reason": "not a dog, a dog or a lion"}', "cat"),
        ("It's a cat, not a dog.", "cat"), ("It isn't a dog, it's a cat.", "cat"),
        ("It isn’t a dog but a cat", "cat"),
        ("a cat rather than a dog", "cat"), ("More like a cat than a dog", "cat"),
        ("A cat instead of a dog", "cat"),
        ("Unlike a dog, this is a cat", "cat"), ("A cat, not to be confused with a dog", "cat"),
        ("Neither a dog nor a lion: a cat", "cat"), ("Is it a dog? No, it is a cat.", "cat"),
        ("There is no doubt that it is a cat", "cat"), ("Without a doubt a cat", "cat"),
        ("I'm not sure, but it looks like a cat", "cat"), ("The cat is not looking at us", "cat"),
        ("A dog can be ruled out. It is a cat.", "cat"), ("The dog is very unlikely; a cat", "cat"),
        ("Cat. Its tail is unlike that of a dog.", "cat"), ("Cat\nA dog would have another nose.", "cat"),
        ("a white knight chess piece", "knight"), ("a fluffy orange tabby cat", "cat"),
        ("<think>a dog? a lion? hmm, a dog</think>\ncat", "cat"),
    ],
)  # fmt: skip
def test_the_answer_is_read(reply: str, label: str) -> None:
    reading = READER.read(reply)
    assert (reading.label, reading.ambiguous) == (label, False)
    assert reading.named[0] == label


@pytest.mark.parametrize(
    "reply",
    [
        "", " \n", "wolf", "It is a wolf.", "none of these", "None of these.",
        '{"label": "none of these"}', "None of the above",
        "not a cat", "It isn't a dog", "This is no cat", "It can't be a cat",
        "Neither a cat nor a dog", "Never a cat",
        "cat: no", "A lion it is not", "The cat is not visible here", "A cat can be excluded",
        "Is it a cat?",
        "I am not certain that this is a cat", "not a cat, nor a dog", "not a cat or a dog",
        "sea lion", "a sea lion on a rock", "cat shark", "cat-fish", "dog-like", "were-cat", "catdog",
        "bobcat", "concatenate",
        "1.8", "88", "18", "the cat's eye nebula", "rather than a dog", "other than a cat",
        "smaller than a dog",
        "Answer: wolf. It has the ears of a cat", "Answer: not a cat",
        '{"label": "wolf"}', '{"label": "not a cat"}',
        '{"label": null}', '{"label": ""}', "<think>cat", "<think>cat</think>wolf", "{" * 3000,
        "[" * 100_000,
    ],
)  # fmt: skip
def test_what_names_no_label_gives_none(reply: str) -> None:
    reading = READER.read(reply)
    assert (reading.label, reading.ambiguous) == ("", False)


@pytest.mark.parametrize(
    "reply",
    [
        "cat or dog", "Cat, dog", "cat/dog", "It could be a cat or a lion", "A cat chasing a dog",
        "Cat\nDog", "Cat. Dog.",
        "Answer: cat or dog", '{"label": ["cat", "dog"]}', '{"label": "cat"} {"label": "dog"}',
        '{"label": "cat or dog"}', "['cat', 'dog']", "None of these. Perhaps a cat.",
    ],
)  # fmt: skip
def test_several_labels_are_no_answer(reply: str) -> None:
    reading = READER.read(reply)
    assert reading.label == ""
    assert reading.ambiguous or NONE in plain(reply)


def test_others_that_were_named_follow_the_answer() -> None:
    reading = READER.read("Label: cat\nRunner-up: dog, or a lion perhaps")
    assert reading.named == ("cat", "dog", "lion")
    assert not reading.whole
    assert READER.read("Cat").whole


def test_labels_that_are_words_of_any_sentence_count_only_alone() -> None:
    reader = ReplyReader(["yes", "no", "A", "B"])
    assert reader.read("No").label == "no"
    assert reader.read("Yes, there is a tumour.").label == "yes"
    assert reader.read("B").label == "B"
    assert reader.read("There is no way to tell; it is as it is").label == ""
    assert reader.read("This is a letter").label == ""


def test_names_that_differ_in_case_accents_or_signs_only_stay_apart() -> None:
    reader = ReplyReader(["resume", "résumé", "Turkey", "turkey", "C", "C++", "🐟", "鱼", "鲸鱼"])
    for label in ("resume", "résumé", "Turkey", "turkey", "C", "C++", "🐟", "鱼", "鲸鱼"):
        assert reader.read(label).label == label
        assert reader.read(f"Answer: {label}").label == label
        assert reader.read(json.dumps({"label": label})).label == label
    assert reader.read("TURKEY").label == ""
    assert reader.read("TURKEY").ambiguous
    assert reader.read("C#").label == ""
    assert reader.read("鲨鱼").label == "", "a shark is not a fish that happens to end its word"


def test_a_synonym_of_two_labels_or_that_is_a_label_names_neither() -> None:
    reader = ReplyReader(
        ["sea swallow", "tern", "gull"], {"tern": ["sea bird", "gull"], "gull": ["sea bird"]}
    )
    assert reader.read("gull").label == "gull"
    assert reader.read("sea bird").label == ""
    assert reader.read("a sea swallow").label == "sea swallow"


def test_none_of_these_may_be_a_label_of_its_own() -> None:
    assert ReplyReader(["none of these", "cat"]).read("None of these.").label == "none of these"


# ---- properties

# Random words that are words of grammar are left out: a label "but" is read only where it stands alone.
GRAMMAR = {
    *FUNCTION,
    *replies._NEGATORS,
    *replies._TURNS,
    *replies._VERBS,
    *replies._RULED_OUT,
    "than",
    "unlike",
}
WORD = st.text(string.ascii_lowercase + "éüñøßж狐", min_size=3, max_size=9).filter(lambda w: w not in GRAMMAR)
NAME = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
LISTS = st.lists(NAME, min_size=1, max_size=8, unique_by=lambda n: tuple(w.bare for w in words(n)))


@given(LISTS, st.data())
def test_every_label_is_read_however_it_is_written(labels: list[str], data: st.DataObject) -> None:
    reader = ReplyReader(labels)
    label = data.draw(st.sampled_from(labels))
    form = data.draw(st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
    change = data.draw(st.sampled_from([str, str.upper, str.title]))
    frame = data.draw(
        st.sampled_from(
            ["{}", " {}.", '"{}"', "**{}**", "`{}`\n", "({})", "- {}", "Answer: {}", '{{"label": "{}"}}']
        )
    )
    assume("ß" not in label or change is str)  # "ss" in capitals, which may be another name
    assert reader.read(unicodedata.normalize(form, frame.format(change(label)))).label == label


@given(LISTS, st.text())
def test_any_reply_gives_a_label_of_the_list_or_none(labels: list[str], reply: str) -> None:
    reading = ReplyReader(labels).read(reply)
    assert reading.label in (*labels, "")
    assert set(reading.named) <= set(labels)
    assert not (reading.label and reading.ambiguous)


@given(LISTS, st.data())
def test_a_denied_label_is_never_the_answer(labels: list[str], data: st.DataObject) -> None:
    label = data.draw(st.sampled_from(labels))
    frame = data.draw(
        st.sampled_from(
            [
                "not a {}",
                "It is not a {}.",
                "This isn't the {}",
                "It can't be a {}",
                "anything other than a {}",
            ]
        )
    )
    assert ReplyReader(labels).read(frame.format(label)).label == ""


@given(NAME, WORD, st.booleans())
def test_a_part_of_a_longer_word_is_no_name(label: str, more: str, before: bool) -> None:
    reader = ReplyReader([label])
    reply = more + label if before else label + more
    assume(reader.names.whole(reply) == ())  # the plural of the label
    assert reader.read(f"It is the {reply}").label == "" or " " in label


@given(LISTS.filter(lambda names: len(names) > 1), st.data())
def test_two_labels_side_by_side_are_ambiguous(labels: list[str], data: st.DataObject) -> None:
    one, two = data.draw(st.lists(st.sampled_from(labels), min_size=2, max_size=2, unique=True))
    reading = ReplyReader(labels).read(f"It may be a {one}, or a {two}")
    assert reading.label == ""
    assert reading.ambiguous


@given(LISTS, st.sampled_from(["cat", "wolf", "quagga", "zzz"]))
def test_an_answer_off_the_list_is_none(labels: list[str], other: str) -> None:
    assume(all(other not in w.bare and w.bare not in other for label in labels for w in words(label)))
    assert ReplyReader(labels).read(f"Answer: {other}").label == ""
    assert ReplyReader(labels).read(json.dumps({"label": other})).label == ""
