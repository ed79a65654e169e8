"""How well pictures of a label that a guide was never taught are told from those it knows.

    python bench/novelty.py [PICTURES] [--sets digits animals chess] [--others galaxies fish] [--seeds 0 1 2]

PICTURES holds one folder a set. Each label is held out in turn: a guide's novelty score is fitted on the
training pictures of all others, and ranks all pictures of the label against the test and validation pictures
of the others (70/10/20 splits by seed). Only the ridge regression and the distances are fitted anew; no
language model is trained, since the score does not use it. Beside the shipped score stand its four parts
(the last is the distance to five neighbours by cosine of the pooled features), the largest probability of the
ridge evidence, and the Mahalanobis distance to the nearest label. The figures are areas under the ROC curve,
means over labels and seeds. The last lines are shares refused when 95% of the known pictures are to be kept:
of known ones, of those of the label held out, and of the pictures of all other sets that are named.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from fieldguide.answer import novelty as shipped
from fieldguide.answer.crossfit import fit_novelty
from fieldguide.data.importer import import_pictures
from fieldguide.model.vision import load_encoder
from fieldguide.settings import ImportSettings
from fieldguide.train.features import embed_pictures
from fieldguide.train.warmstart import solve

RESULTS = Path(__file__).parent / "results" / "novelty.json"
GOALS = {"digits": 0.93, "animals": 0.88, "chess": 0.70}


def load(pictures: Path, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Features, label, group and split of every picture of a set that can be read."""
    data = import_pictures(pictures, folder, ImportSettings(seed=seed), announce=lambda line: None)
    examples = [e for e in data.examples if e.label]
    table = embed_pictures([(data.path(e), e.sha256) for e in examples], load_encoder())
    place = {key: row for row, key in enumerate(table.keys)}
    examples = [e for e in examples if e.sha256 in place]
    rows = [place[e.sha256] for e in examples]
    return {
        "grid": table.grid[rows],
        "pooled": table.pooled[rows],
        "label": np.array([e.label for e in examples]),
        "group": np.unique([e.group or e.id for e in examples], return_inverse=True)[1],
        "split": np.array([e.split for e in examples]),
    }


def one(data: dict[str, np.ndarray], held_out: str, others: np.ndarray) -> dict[str, float]:
    """Areas and refused shares with one label held out.

    Args:
        others: (N, F) features of pictures of other sets.
    """
    strange = data["label"] == held_out
    train = np.flatnonzero((data["split"] == "train") & ~strange)
    val = np.flatnonzero((data["split"] == "val") & ~strange)
    asked = np.flatnonzero(strange | (data["split"] == "test"))
    unknown = strange[asked]
    flat = shipped.flatten_features(data["grid"], data["pooled"])
    targets = np.unique(data["label"][train], return_inverse=True)[1]
    count, pooled = int(targets.max()) + 1, data["pooled"].shape[1]
    fitted = fit_novelty(flat[train], targets, count, data["group"][train], flat[val], pooled)
    assert fitted is not None
    model, record = fitted
    measures = model.map.components(flat[asked])
    score = shipped.combine(measures, model.offset, model.spread)
    refused = shipped.p_values(score, model.known) <= 0.05
    ridge = solve(data["grid"][train], data["pooled"][train], targets, count, data["group"][train])
    evidence = np.clip((flat[asked] - ridge.mean) / ridge.scale, -10, 10) @ ridge.weights + ridge.bias
    evidence = np.exp(ridge.sharpness * (evidence - evidence.max(1, keepdims=True)))
    scores = {
        "shipped": score,
        **{name: measures[:, i] for i, name in enumerate(shipped.COMPONENTS)},
        "largest probability": -(evidence / evidence.sum(1, keepdims=True)).max(1),
        "Mahalanobis": mahalanobis(model.map, flat[asked]),
    }
    found = {name: float(roc_auc_score(unknown, values)) for name, values in scores.items()}
    foretold = {"foretold": record["auroc"]} if record["auroc"] is not None else {}
    return {
        **found,
        **foretold,
        "known refused": float(refused[~unknown].mean()),
        "unknown refused": float(refused[unknown].mean()),
        "other sets refused": float((model.familiarity(others) <= 0.05).mean()),
    }


def mahalanobis(fitted: shipped.NoveltyMap, features: np.ndarray) -> np.ndarray:
    """Squared distance to the nearest label's mean, the scatter within labels taken out."""
    z = (shipped._unit_rows(features, fitted.mean, fitted.scale) - fitted.centre) @ fitted.axes
    first = z[:, : len(fitted.overall_mean)]
    return shipped._squares(first @ fitted.within, fitted.label_means @ fitted.within).min(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("pictures", type=Path, nargs="?", default=default)
    parser.add_argument("--sets", nargs="+", default=list(GOALS))
    parser.add_argument(
        "--others", nargs="*", default=["galaxies", "fish"], help="further sets, as strangers"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    rows, loaded = [], {}
    names = [*arguments.sets, *(name for name in arguments.others if name not in arguments.sets)]
    for name, seed in [(name, seed) for name in names for seed in arguments.seeds]:
        with tempfile.TemporaryDirectory() as folder:
            loaded[name, seed] = load(arguments.pictures / name, seed, Path(folder) / "dataset")
    for name in arguments.sets:
        far = [loaded[other, arguments.seeds[0]] for other in names if other != name]
        others = np.concatenate([shipped.flatten_features(d["grid"], d["pooled"]) for d in far])
        for seed in arguments.seeds:
            data = loaded[name, seed]
            for label in np.unique(data["label"]):
                rows.append({"set": name, "seed": seed, "held_out": str(label), **one(data, label, others)})
    columns = [key for key in rows[0] if key not in ("set", "seed", "held_out")]
    width = max(map(len, columns))
    print(" " * width, *(f"{name:>8}" for name in arguments.sets))
    for column in columns:
        means = [np.mean([r[column] for r in rows if r["set"] == name]) for name in arguments.sets]
        print(f"{column:{width}}", *(f"{mean:8.3f}" for mean in means))
    for name in arguments.sets:
        of_set = [r for r in rows if r["set"] == name]
        areas = [np.mean([r["shipped"] for r in of_set if r["seed"] == s]) for s in arguments.seeds]
        goal = f", goal {GOALS[name]}" if name in GOALS else ""
        print(f"{name}: by seed {', '.join(f'{area:.3f}' for area in areas)}{goal}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
