import csv

import numpy as np

from fieldguide.records import Example
from fieldguide.report.suspects import Features, find_outliers, find_suspects, out_of_fold, write_suspects

LABELS = ("ant", "bee", "fly")


def made(count=150, swapped=(), noise=1.0, seed=0):
    """Examples whose features point towards their true label, some with another label written on them."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(42).normal(size=(3, 40)) * 1.2
    true = np.arange(count) % 3
    x = (centres[true] + random.normal(scale=noise, size=(count, 40))).astype(np.float32)
    examples = [
        Example(
            id=f"{i}.jpg",
            image=f"../{i}.jpg",
            sha256=f"sha{i}",
            label=LABELS[(true[i] + 1) % 3] if i in swapped else LABELS[true[i]],
            group=f"group{i}",
        )
        for i in range(count)
    ]
    return examples, Features(tuple(e.sha256 for e in examples), x[:, None, :], x)


def test_swapped_labels_come_first_with_the_right_label_beside_them():
    swapped = {3, 20, 41, 77, 100, 130}
    examples, features = made(swapped=swapped)
    suspects = find_suspects(examples, features)
    first = suspects[: len(swapped)]
    assert {int(s.example.id[:-4]) for s in first} == swapped
    assert all(s.likelier == LABELS[int(s.example.id[:-4]) % 3] for s in first)
    assert sum(s.flagged for s in first) >= 4
    assert not any(s.flagged for s in suspects[12:])
    assert all(s.likelier_probability > s.given_probability for s in suspects)


def test_clean_labels_give_few_suspects():
    examples, features = made(noise=0.3)
    assert find_suspects(examples, features) == []


def test_the_probe_never_sees_a_picture_or_its_group():
    """Twins with a private direction: who saw the twin would be sure, who did not can only guess."""
    random = np.random.default_rng(0)
    count = 60
    x = np.repeat(random.normal(size=(count, 200)), 2, axis=0)
    y = [LABELS[i] for i in random.integers(0, 3, count) for _ in range(2)]
    twins = [f"g{i // 2}" for i in range(2 * count)]
    labels, apart, seen = out_of_fold(x, y, twins)
    own = apart[np.arange(len(y)), [labels.index(label) for label in y]]
    assert seen.all()
    assert own.mean() < 0.45, "grouped: no better than chance on random features"
    _, leaked, _ = out_of_fold(x, y, [str(i) for i in range(2 * count)])
    assert leaked[np.arange(len(y)), [labels.index(label) for label in y]].mean() > 0.55, "the test can fail"


def test_a_label_that_cannot_be_judged_is_left_alone():
    examples, features = made(count=60)
    rare = Example(id="rare.jpg", image="r", sha256="rare", label="wasp", group="r")
    x = np.concatenate([features.pooled, features.pooled[:1]])
    both = Features((*features.keys, "rare"), x[:, None], x)
    assert all(s.example.label != "wasp" for s in find_suspects([*examples, rare], both))


def test_pictures_without_features_or_label_are_skipped():
    examples, features = made(count=60, swapped={5})
    half = Features(features.keys[:30], features.grid[:30], features.pooled[:30])
    unlabelled = Example(id="u", image="u", sha256="sha1", label="")
    assert {int(s.example.id[:-4]) for s in find_suspects([*examples, unlabelled], half)} <= set(range(30))
    assert find_suspects([], features) == []
    assert find_suspects([e for e in examples if e.label == "ant"], features) == []


def test_outliers_are_the_farthest_from_their_own_label():
    examples, features = made(count=90, noise=0.4)
    x = features.pooled.copy()
    x[7] = -4 * x[7]
    found = find_outliers(examples, Features(features.keys, x[:, None], x))
    assert found[0].example.id == "7.jpg"
    assert found[0].times > 1.5
    assert [o.times for o in found] == sorted((o.times for o in found), reverse=True)
    assert find_outliers(examples[:4], features) == []


def test_suspects_csv(tmp_path):
    examples, features = made(swapped={3})
    suspects = find_suspects(examples, features)
    write_suspects(tmp_path / "suspects.csv", suspects)
    with open(tmp_path / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(suspects)
    assert (rows[0]["file"], rows[0]["label"], rows[0]["likelier"], rows[0]["sha256"]) == (
        "3.jpg",
        "bee",
        "ant",
        "sha3",
    )
