"""Accuracy of whole builds beside the baselines, over picture sets and seeds.

    python bench/accuracy.py [PICTURES] [--notes NOTES] [--sets digits animals …] [--seeds 0 1 2]

PICTURES holds one folder a set, NOTES one `SET.csv` each; without them scikit-learn's digits are taken. Every
build splits 70/10/20 by its seed, and the baselines are fitted and tested on the same split. Prints a row a
build and the means; writes bench/results/.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from fieldguide.build import build
from fieldguide.demo import write_digits
from fieldguide.settings import load_recipe

RESULTS = Path(__file__).parent / "results"


def one(
    pictures: Path, notes: Path | None, seed: int, folder: Path, settings: dict[str, object]
) -> dict[str, object]:
    """One build; its accuracy, that of each baseline, and seconds."""
    recipe = load_recipe(None, {"import": {"seed": seed}, "train": {"seed": seed, **settings}})
    began = time.perf_counter()
    guide = build(pictures, folder, notes=notes, recipe=recipe, announce=lambda line: None)
    seconds = time.perf_counter() - began
    metrics = json.loads((guide.folder / "report" / "metrics.json").read_text())
    baselines = {b["name"]: b["accuracy"] for b in metrics["baselines"]}
    training = guide.info["training"]
    return {
        "set": pictures.name,
        "seed": seed,
        "test_pictures": metrics["guide"]["count"],
        "guide": metrics["guide"]["accuracy"],
        **baselines,
        "left_out": training["warm_start"]["left_out_accuracy"],
        "epochs": training["epochs"],
        "best_epoch": training["best_epoch"],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, nargs="?")
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--sets", nargs="+", default=["digits", "animals", "chess", "galaxies", "fish"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="of the train stage")
    arguments = parser.parse_args()
    settings = {key: json.loads(value) for key, value in (item.split("=", 1) for item in arguments.set)}
    demo = tempfile.TemporaryDirectory()
    if arguments.pictures is None:
        write_digits(Path(demo.name))
        (Path(demo.name) / "notes.csv").rename(Path(demo.name) / "digits.csv")
        arguments.pictures, arguments.notes, arguments.sets = Path(demo.name), Path(demo.name), ["digits"]
    rows = []
    for name in arguments.sets:
        notes = arguments.notes / f"{name}.csv" if arguments.notes else None
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                row = one(arguments.pictures / name, notes, seed, Path(folder) / f"{name}.guide", settings)
            rows.append(row)
            print(json.dumps(row), flush=True)
    names = [key for key, value in rows[0].items() if isinstance(value, float) and key != "seconds"]
    for group in [*arguments.sets, None]:
        part = [row for row in rows if group in (row["set"], None)]
        means = {key: round(sum(row[key] for row in part) / len(part), 4) for key in names}
        print(f"mean of {group or 'all'}: {means}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "accuracy.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
