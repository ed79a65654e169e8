"""Classifying by scoring labels, against generating and parsing; and what a thousand labels cost.

    python bench/classify.py [--model FOLDER] [--rounds 5]

The features are there already (random ones), so this is the language model's part alone. The model is not
trained, which is the hard case for the search: it spreads its probability over many labels, and more of the
trie has to be read than for a guide that knows its subject. All is measured in one run, turn and turn about.

* choose: batches of 16 pictures, shared prefix, the best 5 of all labels, exact. A thousand labels are the
  class names of ImageNet (4 tokens on average), or made-up names of species with shared genera (8 tokens);
  ten labels are ten of them.
* generate and parse: a picture at a time, the whole prompt each time, greedily for as many tokens as the ten
  labels have on average, then looked up in the list.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torchvision.models import ResNet18_Weights

from fieldguide.answer.choose import choose
from fieldguide.answer.trie import LabelTrie
from fieldguide.model.assemble import Assembled
from fieldguide.model.language import load_language_model
from fieldguide.model.projector import PictureFeatures, Projector, ProjectorConfig
from fieldguide.model.prompt import Prompt
from fieldguide.model.starter import starter_folder

QUESTION = "What is in this picture?"
BATCH, FEW, MANY = 16, 10, 1000
ONSETS = ("", *"bcdfghklmnprstvx", "ch", "ph", "th", "br", "cr", "gl", "pl", "st", "tr", "sc", "pt", "rh")
CORES = ("a", "e", "i", "o", "u", "ae", "an", "er", "or", "en", "il", "yl")
ENDS = ("us", "is", "a", "ensis", "oides", "um", "ata", "ella", "ops", "i")


def main() -> None:
    """Measure, print one table, and write bench/results/classify.json."""
    parser = argparse.ArgumentParser(description="Cost of choosing among labels.")
    parser.add_argument("--model", type=Path, help="folder of a language model; the starter's if not given")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = assemble(*load_language_model(options.model or starter_folder("language")))
    features = PictureFeatures(torch.randn(BATCH, 16, 520), torch.randn(BATCH, 1280))
    times: dict[str, list[float]] = {}
    work: dict[str, Callable[[], object]] = {}
    lists = {"ImageNet": list(ResNet18_Weights.DEFAULT.meta["categories"]), "species": species()}
    for name, labels in lists.items():
        ten = random.Random(0).sample(labels, FEW)
        work |= choices(model, features, name, ten, labels)
        work[f"generate and parse, 10 {name}"] = lambda ten=ten: generate(model, features, ten)
    for name, one in work.items():
        one()  # not measured: the first call of each is slower
        times[name] = []
    for _ in range(options.rounds):
        for name, one in work.items():
            times[name].append(seconds(one))
    report(times, list(lists))


def assemble(tokenizer: object, language_model: torch.nn.Module) -> Assembled:
    """The language model with an untrained projector, so that answers do differ between pictures."""
    torch.manual_seed(0)
    projector = Projector(ProjectorConfig(16, 520, 1280, language_model.config.hidden_size, FEW, 1, 0))
    torch.nn.init.normal_(projector.evidence_map, std=0.01)
    torch.nn.init.normal_(projector.table, std=0.1)
    return Assembled(tokenizer, language_model, projector, Prompt(tokenizer)).eval()


def species() -> list[str]:
    """A thousand names as those of species: a quarter as many genera, two or three syllables a word."""
    draw = random.Random(0)

    def word() -> str:
        syllables = (draw.choice(ONSETS) + draw.choice(CORES) for _ in range(draw.choice((2, 3))))
        return "".join(syllables) + draw.choice("lnrtdsm") + draw.choice(ENDS)

    genera = [word().capitalize() for _ in range(MANY // 4)]
    names: dict[str, None] = {}
    while len(names) < MANY:
        names[f"{draw.choice(genera)} {word()}"] = None
    return list(names)


def choices(
    model: Assembled, features: PictureFeatures, name: str, ten: Sequence[str], labels: Sequence[str]
) -> dict[str, Callable[[], object]]:
    """The product's way, a batch at once."""
    few, many = (LabelTrie({label: model.label_tokens(label) for label in some}) for some in (ten, labels))
    return {
        f"choose 5 of {FEW} {name}": lambda: choose(model, QUESTION, features, few, top_k=5),
        f"choose 5 of {MANY} {name}": lambda: choose(model, QUESTION, features, many, top_k=5),
        f"choose 1 of {MANY} {name}": lambda: choose(model, QUESTION, features, many, top_k=1),
    }


def generate(model: Assembled, features: PictureFeatures, labels: Sequence[str]) -> list[str]:
    """The usual way: a picture at a time, write words, look them up."""
    length = round(statistics.mean(len(model.label_tokens(label)) for label in labels))
    named = {label.casefold(): label for label in labels}
    answers = []
    for row in range(len(features.grid)):
        picture = PictureFeatures(features.grid[row : row + 1], features.pooled[row : row + 1])
        started = model.start(QUESTION, picture)
        first = int(started.logits[0].argmax())
        rest = model.generate(started, 0, [first], length - 1)
        answers.append(named.get(model.tokenizer.decode([first, *rest]).strip().casefold(), ""))
    return answers


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(times: dict[str, list[float]], lists: Sequence[str]) -> None:
    """Print pictures a second and the ratios: medians of the rounds."""
    print(f"{torch.get_num_threads()} threads, batch {BATCH}")
    print(f"{'':34}pictures/s   seconds a batch, median (least to most)")
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:34}{BATCH / middle:8.1f}     {middle:.3f} ({min(values):.3f} to {max(values):.3f})")

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))

    ratios = {}
    for name in lists:
        faster = ratio(f"generate and parse, {FEW} {name}", f"choose 5 of {FEW} {name}")
        dearer, first = (ratio(f"choose {k} of {MANY} {name}", f"choose 5 of {FEW} {name}") for k in (5, 1))
        ratios[name] = {"faster than generating": faster, "1000 labels": dearer, "1000 labels, best 1": first}
        print(
            f"{name}: {faster:.1f} × as fast as generating and parsing (at least 4 wanted); "
            f"{MANY} labels cost {dearer:.2f} × {FEW} (at most 3 wanted), the best one alone {first:.2f} ×"
        )
    results = Path(__file__).parent / "results" / "classify.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({"seconds": times, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
