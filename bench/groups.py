"""Is a group of pictures answered better than its pictures one by one, and as surely as it says?

    python bench/groups.py GUIDE... [--seeds 5]

Each guide holds its data set. Of its test pictures, groups of one label are made: of two, three and five
different pictures, which is more independent than frames of one animal would be; and of one picture as it is
and four times altered (cropped, turned, blurred, lighter), which is less. Accuracy and expected calibration
error of single pictures and of groups, for three weights (independent, the shipped one, as one picture).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from fieldguide import load_dataset, load_guide
from fieldguide.answer.pooling import DEPENDENCE, Member, pool
from fieldguide.guide import Guide
from fieldguide.images import load_picture
from fieldguide.report.metrics import compute_metrics

RESULTS = Path(__file__).parent / "results" / "groups.json"
WEIGHTS = {"independent": 0.0, "shipped": DEPENDENCE, "as one": 1.0}


def altered(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    """A frame as it might follow in a burst."""
    width, height = image.size
    share = dice.uniform(0.75, 0.95)
    left, top = dice.uniform(0, 1 - share, 2)
    box = (left * width, top * height, (left + share) * width, (top + share) * height)
    made = image.crop(tuple(int(value) for value in box)).rotate(
        dice.uniform(-12, 12), fillcolor=(128, 128, 128)
    )
    made = ImageEnhance.Brightness(made).enhance(dice.uniform(0.7, 1.3))
    return made.filter(ImageFilter.GaussianBlur(dice.uniform(0, max(width, height) / 150)))


def members_of(guide: Guide, paths: list[Path]) -> list[Member]:
    answers = guide.classify(paths, len(guide.labels))
    return [Member(a.image, a.scores, a.error, a.in_guide) for a in answers]


def figures(labels: list[str], groups: list[list[Member]], weight: float) -> tuple[float, float]:
    """(accuracy, expected calibration error)"""
    found = [pool(str(number), group, weight) for number, group in enumerate(groups)]
    metrics = compute_metrics(labels, [p.label for p in found], confidence=[p.probability for p in found])
    assert metrics.calibration is not None
    return metrics.accuracy, metrics.calibration.ece


def made_groups(
    labels: list[str], members: list[Member], size: int, seed: int
) -> tuple[list[str], list[list[Member]]]:
    """Different pictures of one label, each in one group."""
    dice = np.random.default_rng(seed)
    found: list[tuple[str, list[Member]]] = []
    for label in sorted(set(labels)):
        own = dice.permutation([i for i, one in enumerate(labels) if one == label])
        for start in range(0, len(own) - size + 1, size):
            found.append((label, [members[i] for i in own[start : start + size]]))
    return [label for label, _ in found], [group for _, group in found]


def measure(folder: Path, seeds: int) -> dict[str, object]:
    guide, dataset = load_guide(folder), load_dataset(folder / "dataset")
    examples = [e for e in dataset.of("test") if e.label]
    labels, paths = [e.label for e in examples], [dataset.path(e) for e in examples]
    members = members_of(guide, paths)
    rows: dict[str, object] = {
        "pictures": len(members),
        "single": figures(labels, [[m] for m in members], 0.0),
    }
    for size in (2, 3, 5):
        drawn = [made_groups(labels, members, size, seed) for seed in range(seeds)]
        rows[f"{size} different"] = {
            name: np.mean([figures(*one, weight) for one in drawn], axis=0).tolist()
            for name, weight in WEIGHTS.items()
        }
    dice = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        frames: list[Path] = []
        for number, path in enumerate(paths):
            image = load_picture(path).image.convert("RGB")
            for frame in range(4):
                frames.append(Path(temporary) / f"{number}-{frame}.png")
                altered(image, dice).save(frames[-1])
        later = members_of(guide, frames)
    bursts = [[members[i], *later[4 * i : 4 * i + 4]] for i in range(len(members))]
    rows["frames, one by one"] = figures(
        [label for label in labels for _ in range(4)], [[m] for m in later], 0.0
    )
    rows["5 frames of one"] = {name: figures(labels, bursts, weight) for name, weight in WEIGHTS.items()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("guides", type=Path, nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    if not arguments.guides:
        print("left out: give guides that hold their data set")
        return
    results = {}
    for folder in arguments.guides:
        results[folder.name] = measure(folder, arguments.seeds)
        print(folder.name, json.dumps(results[folder.name], indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
