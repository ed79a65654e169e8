"""Probabilities of labels: from the tokens that spell them, never too large, and none made up."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.remote.logprobs import Token, label_probabilities

LABELS = ("cat", "catfish", "dog", "none of these")


def tokens(*parts: tuple[str, float] | tuple[str, float, dict[str, float]]) -> list[Token]:
    made = []
    for text, p, *others in parts:
        listed = {text: p, **(others[0] if others else {})}
        made.append(
            Token(text.encode(), math.log(p), tuple((t.encode(), math.log(q)) for t, q in listed.items()))
        )
    return made


def test_shares_go_to_the_only_label_a_token_leads_to() -> None:
    told = tokens(
        ('{"label": "', 1.0), ("dog", 0.5, {"cat": 0.3, "catf": 0.1, "no": 0.05, "x": 0.05}), ('"}', 1.0)
    )
    found = label_probabilities('{"label": "dog"}', told, "dog", LABELS)
    # "cat" may go on to catfish, so its share is nobody's
    assert found == pytest.approx({"dog": 0.5, "catfish": 0.1, "none of these": 0.05})


def test_tokens_may_hold_more_than_the_label() -> None:
    told = tokens(
        ('{"label"', 1.0), (': "do', 0.6, {': "cat"}': 0.2, ': "catf': 0.1}), ('g"}', 0.9, {"ts": 0.1})
    )
    found = label_probabilities('{"label": "dog"}', told, "dog", LABELS)
    assert found == pytest.approx({"dog": 0.54, "cat": 0.2, "catfish": 0.1})


def test_a_bare_label_is_told_whole_or_not_at_all() -> None:
    assert label_probabilities(
        "dog", tokens(("dog", 0.7, {"cat": 0.2})), "dog", ("cat", "dog")
    ) == pytest.approx({"dog": 0.7, "cat": 0.2})
    assert label_probabilities("dog", tokens(("dog", 0.7, {"c": 0.2})), "dog", ("cat", "dog")) == {"dog": 0.7}
    # what ends a reply is not among its tokens: "cat" might have gone on to "catfish"
    assert label_probabilities("cat", tokens(("cat", 0.7)), "cat", LABELS) == {}


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ('{"label": "dog"}', []),
        ('{"label": "dog"}', tokens(('{"label": "cat"}', 1.0))),
        ('{"label": "dog"}', tokens(('{"label": "do', 1.0))),
        ("It is a dog", tokens(("It is a ", 1.0), ("dog", 0.9))),
        ('{"label": "dog", "why": "dog"}', tokens(('{"label": "dog", "why": "dog"}', 1.0))),
        ("dog", [Token(b"dog", math.nan)]),
        ("dog", [Token(b"dog", 0.5)]),
    ],
)
def test_nothing_is_made_up(reply: str, told: list[Token]) -> None:
    assert label_probabilities(reply, told, "dog", LABELS) == {}


@given(st.data())
def test_whatever_is_told_the_sum_stays_within_one(data: st.DataObject) -> None:
    labels = data.draw(
        st.lists(st.text('abcé"\\ ', min_size=1, max_size=6), min_size=1, max_size=6, unique=True)
    )
    label = data.draw(st.sampled_from(labels))
    reply = json.dumps({"label": label}, ensure_ascii=False)
    raw = reply.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    told = []
    for piece in pieces:
        p = data.draw(st.floats(0.01, 1))
        other = data.draw(st.sampled_from(["a", "ab", 'b"}', "é", '"}', "abc", " "])).encode()
        rest = ((other, math.log(max(1 - p, 1e-9))),) if other != piece else ()
        told.append(Token(piece, math.log(p), ((piece, math.log(p)), *rest)))
    found = label_probabilities(reply, told, label, labels)
    assert set(found) <= set(labels)
    assert all(0 <= p <= 1 for p in found.values())
    assert sum(found.values()) <= 1 + 1e-9
