"""The examples of one split as a model of transformers learns them: pictures that can be read, and rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fieldguide.data.dataset import Dataset
from fieldguide.data.examples import sha256s_of
from fieldguide.errors import DataError
from fieldguide.model.hub import HubModel
from fieldguide.model.prompt import Prompt
from fieldguide.records import Example, Note, Turn
from fieldguide.settings import Recipe
from fieldguide.train.pictures import LazyPictures, TowerStore
from fieldguide.train.rows import Row, conversation_row, epoch_rows, label_row

DESCRIBE = "Describe this picture."
REASONS = 3  # kinds of reasons that take turns, see `rows.replies`
# Pictures, tokens before them, tokens behind them, which of those are learnt.
Probe = tuple[tuple[Path, ...], list[int], tuple[int, ...], tuple[bool, ...]]


@dataclass(frozen=True)
class Part:
    """The examples of one split that can be read, in step with their pictures."""

    examples: tuple[Example, ...]
    pictures: LazyPictures
    visual: tuple[int, ...]  # prompt positions of each example's pictures

    def only(self, numbers: Sequence[int]) -> Part:
        """Some of the examples."""
        return Part(
            tuple(self.examples[i] for i in numbers),
            self.pictures.only(numbers),
            tuple(self.visual[i] for i in numbers),
        )


def what_to_learn(dataset: Dataset, wanted: str) -> str:
    """`labels`, `messages` or `captions`: what the recipe asks for, or the first that there is.

    Raises:
        DataError: when the training examples have nothing of it.
    """
    examples = dataset.of("train")
    has = {
        "labels": any(e.label for e in examples),
        "messages": any(e.messages for e in examples),
        "captions": any(e.captions for e in examples),
    }
    found = next((kind for kind, there in has.items() if there), "") if wanted == "auto" else wanted
    if not found or not has[found]:
        raise DataError(
            f"{dataset.folder}: no training example has {found or 'a label, a conversation or a caption'}",
            "import data that has, or set train.learn",
        )
    return found


def teaches(example: Example, learn: str, labels: Sequence[str]) -> bool:
    """Whether an example has something of what is learnt."""
    if learn == "labels":
        return example.label in labels
    return bool(example.messages if learn == "messages" else example.captions)


def see(
    model: HubModel,
    dataset: Dataset,
    examples: Sequence[Example],
    store: TowerStore | None,
    announce: Callable[[str], None],
    description: str,
    together: bool = False,
) -> Part:
    """The examples whose pictures can be read.

    Args:
        store: of the tower's output; None where the tower runs each time.
        description: of the progress bar.
        together: whether several processes share the work.

    Raises:
        DataError: when there are pictures and the model reads none.
    """
    if not model.family.vision and (shown := [e for e in examples if e.image]):
        raise DataError(
            f"{dataset.folder}: {shown[0].image} is a picture, and this model reads text only",
            "choose a vision-language model, or import the texts alone",
        )
    paths = tuple(tuple(dataset.paths(e)) for e in examples)
    pictures = LazyPictures(model, paths, tuple(sha256s_of(e) for e in examples), store)
    visual, failed = pictures.look_through(announce, description, together)
    kept = [i for i in range(len(examples)) if i not in failed]
    return Part(tuple(examples[i] for i in kept), pictures.only(kept), tuple(visual[i] for i in kept))


def turns_of(example: Example, learn: str, epoch: int) -> Sequence[Turn]:
    """What is said about an example: its conversation, or the caption whose turn it is in this epoch."""
    if learn == "messages":
        return example.messages
    caption = example.captions[epoch % len(example.captions)]
    return (Turn("user", DESCRIBE), Turn("assistant", caption))


def different_epochs(examples: Sequence[Example], learn: str, epochs: int) -> int:
    """How many epochs there are before rows come again: reasons and captions take turns."""
    turns = max((len(e.captions) for e in examples), default=1) if learn == "captions" else REASONS
    return min(epochs, max(1, turns))


def told_rows(prompt: Prompt, part: Part, learn: str, epoch: int = 0) -> list[Row]:
    """A row for each example of a part that is learnt from conversations or captions."""
    rows = [
        conversation_row(prompt, i, turns_of(e, learn, epoch), e.image or e.id, bool(e.image))
        for i, e in enumerate(part.examples)
    ]
    return _placed(rows, part)


def rows_maker(
    prompt: Prompt, part: Part, learn: str, notes: Mapping[str, Note], recipe: Recipe
) -> Callable[[int], list[Row]]:
    """The rows of each epoch, with the positions that their pictures take."""

    def rows_of(epoch: int) -> list[Row]:
        if learn != "labels":
            return told_rows(prompt, part, learn, epoch)
        return _placed(epoch_rows(prompt, part.examples, notes, recipe.train, recipe.answer, epoch), part)

    return rows_of


def _placed(rows: Sequence[Row], part: Part) -> list[Row]:
    return [replace(row, visual=part.visual[row.picture]) for row in rows]


def probe_rows(
    prompt: Prompt, dataset: Dataset, learn: str, labels: Sequence[str], question: str, count: int
) -> list[Probe]:
    """At most `count` rows like those that were learnt, validation examples first."""
    probes: list[Probe] = []
    for example in (*dataset.of("val"), *dataset.of("train")):
        if len(probes) == count:
            break
        if not teaches(example, learn, labels):
            continue
        name, shown = example.image or example.id, bool(example.image)
        row = (
            label_row(prompt, 0, example.label, name, question)
            if learn == "labels"
            else conversation_row(prompt, 0, turns_of(example, learn, 0), name, shown)
        )
        before = prompt.before(question, shown)
        probes.append((tuple(dataset.paths(example)), before, row.ids, row.supervised))
    return probes
