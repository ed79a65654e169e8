"""The Guide folder: what training leaves behind, and what answers questions.

    guide.json                 labels, template, weights and their hashes, calibration, settings; written last
    adapter/                   LoRA adapter in PEFT's own format
    projector.safetensors      picture features → visual tokens
    notes.csv                  what the owner knows about the labels
    training_pictures.parquet  what the guide has seen, so that evaluation can refuse it
    novelty.safetensors        what tells pictures of none of its labels; older guides have none
    report/  checkpoints/      evaluation; training state

Its parts are bound by their hashes: parts of different trainings are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldguide.errors import DataError, GuideError
from fieldguide.files import fingerprint, read_json, sha256_file
from fieldguide.records import Answer, LabelScore, Note
from fieldguide.settings import AnswerSettings, Recipe

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from fieldguide.answer.explain import Explanation
    from fieldguide.answer.judge import Judge
    from fieldguide.answer.trie import LabelTrie
    from fieldguide.model.local import LocalModel, Pictures
    from fieldguide.model.vision import VisionEncoder

SCHEMA_VERSION = 1
MANIFEST = "guide.json"
PICTURES_FILE = "training_pictures.parquet"
NOTES_FILE = "notes.csv"
_LOADED = ("model", "encoder", "trie")  # what a guide with other answer settings shares
# What every answer depends on: the guide's fingerprint is taken of these.
IDENTITY = (
    "labels", "template", "projector", "files", "encoder", "base_model", "calibration", "settings",
)  # fmt: skip


class Guide:
    """A trained guide. Models are loaded when they are first needed.

    Attributes:
        folder: where it lies.
        info: `guide.json`.
        notes: what the owner knows, by label.
    """

    def __init__(self, folder: Path, info: dict[str, Any], notes: dict[str, Note]) -> None:
        self.folder, self.info, self.notes = folder, info, notes

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels the guide can give, in natural order."""
        return tuple(self.info["labels"])

    @property
    def fingerprint(self) -> str:
        """Identity of everything an answer depends on."""
        return str(self.info["fingerprint"])

    @property
    def report(self) -> Path:
        """The report page; it exists once the guide has been evaluated."""
        return self.folder / "report" / "index.html"

    @cached_property
    def recipe(self) -> Recipe:
        """The settings it was made with."""
        return Recipe.of_guide(self.info["settings"])

    @property
    def answer_settings(self) -> AnswerSettings:
        return self.recipe.answer

    @cached_property
    def encoder(self) -> VisionEncoder:
        """The frozen vision encoder the guide was trained on.

        Raises:
            GuideError: when the weights or the preprocessing here are not those of the training.
        """
        if self.tuned:
            from fieldguide.answer.familiar import part_hashes
            from fieldguide.model.towers import TowerEncoder, tower_identity

            trained = part_hashes(self.info["files"])
            tower: Any = TowerEncoder(self.model, tower_identity(self.info["base_model"]["sha256"], trained))
            return tower
        from fieldguide.model.vision import load_encoder

        encoder = load_encoder(self.recipe.embed)
        if encoder.key != self.info["encoder"]["key"]:
            raise GuideError(
                f"{self.folder}: was trained on features {self.info['encoder']['key']}, "
                f"and this version computes {encoder.key}",
                "train again, or use the version that made the guide: "
                f"{self.info['versions'].get('fieldguide', 'unknown')}",
            )
        return encoder

    @cached_property
    def model(self) -> LocalModel:
        """Projector and language model with its adapter, ready to answer."""
        if self.tuned:
            from fieldguide.model.tuned import load_tuned

            return load_tuned(self.folder, self.info)
        from fieldguide.model.trained import load_assembled

        return load_assembled(self.folder, self.info)

    @property
    def tuned(self) -> bool:
        """Whether it was made from a model of transformers, not from the starter."""
        return bool(self.info["base_model"].get("kind") == "hub")

    @property
    def _reads_pictures(self) -> bool:
        model: Any = self.model
        return bool(model.family.vision)

    @cached_property
    def trie(self) -> LabelTrie:
        from fieldguide.answer.trie import LabelTrie

        return LabelTrie.of(self.model, self.labels)

    @cached_property
    def _prefix(self) -> Any:
        import torch

        with torch.no_grad():
            return self.model.read_prefix(self.answer_settings.question)

    @property
    def temperature(self) -> float:
        """What the logits are divided by where labels branch, fitted on the validation pictures."""
        return float(self.info["calibration"]["temperature"])

    def answering(self, **settings: Any) -> Guide:
        """The same guide with other answer settings, such as `abstain=False` or `coverage=0.9`.

        Raises:
            SettingsError: for settings that cannot be.
            GuideError: when it keeps nothing that a coverage could be promised by.
        """
        tables = {**self.info["settings"], "answer": {**self.info["settings"]["answer"], **settings}}
        Recipe.from_dict({"answer": settings}, "settings")
        if settings.get("coverage") and "conformal_scores" not in self.info["calibration"]:
            raise GuideError(
                f"{self.folder}: keeps no validation scores to tell a coverage by", "train it again"
            )
        identity = {name: self.info[name] for name in IDENTITY} | {"settings": tables}
        info = {**self.info, "settings": tables, "fingerprint": fingerprint(identity)}
        made = Guide(self.folder, info, self.notes)
        made.__dict__.update({name: self.__dict__[name] for name in _LOADED if name in self.__dict__})
        return made

    @property
    def question(self) -> str:
        """What is asked of every picture."""
        return self.answer_settings.question

    def asking(self, question: str) -> Guide:
        """The same guide with another question, which it was not trained on: to try what that changes."""
        return self.answering(question=question)

    @cached_property
    def _judge(self) -> Judge:
        from fieldguide.answer.judge import Judge

        return Judge.of(self.folder, self.info, self.answer_settings, len(self.labels))

    def training_pictures(self) -> list[dict[str, Any]]:
        """sha256, phash, image, label and split of every picture used in training or for choosing."""
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(self.folder / PICTURES_FILE).to_pylist()
        return rows

    def classify(self, pictures: Sequence[Path | str], top_k: int = 0) -> list[Answer]:
        """Name many pictures; one that cannot be read is an Answer with `error`.

        Args:
            pictures: files.
            top_k: labels listed in each answer; 0 for the guide's own setting.

        Raises:
            GuideError: when the guide has no labels.
        """
        if not self.labels:
            raise GuideError(
                f"{self.folder}: has no labels to choose among, it answers in words",
                f"fieldguide ask {self.folder} PICTURE",
            )
        paths = [Path(picture) for picture in pictures]
        answers: list[Answer | None] = [None] * len(paths)
        read, places, errors = self._pictures(paths)
        for i, reason in errors.items():
            answers[i] = Answer(str(paths[i]), error=reason)
        size, familiar = self.answer_settings.batch_size, self._familiarity(read, [paths[i] for i in places])
        for start in range(0, len(places), size):
            batch = self._scores(read, start, start + size, top_k)
            for row, scores in enumerate(batch, start):
                i = places[row]
                answers[i] = self._judge.answer(str(paths[i]), scores, familiar[row])
        return [answer for answer in answers if answer is not None]

    def ask(self, picture: Path | str, question: str = "", top_k: int = 0) -> Answer:
        """Name one picture and answer a question about it, by default how one can tell.

        The label comes from scoring all labels under the question the guide was trained with; the words come
        from the language model, which goes on from that label with its notes before it. Without notes on the
        label and without a question there are no words: the model would make them up.

        Of a guide that reads text only, the question alone is asked, or `picture` where there is none.

        Raises:
            PictureError: when the picture cannot be read.
            DataError: when the question is longer than the language model can read.
        """
        from dataclasses import replace

        from fieldguide.answer.choose import search
        from fieldguide.answer.generate import explain
        from fieldguide.errors import PictureError
        from fieldguide.model.followup import follow_up

        settings = self.answer_settings
        if self.tuned and not self._reads_pictures:
            from fieldguide.model.hub import HubPictures, Prepared

            said = question.strip() or str(picture)
            return Answer("", text=self._free(HubPictures((Prepared(),)), said))
        asked = question.strip() or settings.why
        pictures, places, errors = self._pictures([Path(picture)])
        if errors:
            raise PictureError(str(picture), errors[0])
        assert places == [0]
        if not self.labels:
            return Answer(str(picture), text=self._free(pictures, question.strip() or settings.question))
        started = self.model.start(settings.question, pictures, prefix=self._prefix)
        wanted = self._judge.labels_read(top_k or settings.top_k)
        scores = search(self.model, started, self.trie, top_k=wanted, temperature=self.temperature)[0]
        label, text = scores[0].label, ""
        if question.strip() or label in self.notes:
            turn = follow_up(self.notes.get(label), asked, settings)
            self._check_length(label, turn, self.model.visual_tokens(pictures)[0])
            text = explain(self.model, started, 0, label, turn, settings.max_new_tokens)
        [familiar] = self._familiarity(pictures, [Path(picture)])
        return replace(self._judge.answer(str(picture), scores, familiar), text=text)

    def explain(self, picture: Path | str, question: str = "", **options: Any) -> Explanation:
        """Name one picture, with what can be checked about the answer: see `answer.explain`."""
        from fieldguide.answer.explain import explain

        return explain(self, picture, question, **options)

    def _free(self, pictures: Pictures, question: str) -> str:
        """What a guide without labels says of one picture."""
        from fieldguide.answer.generate import say

        prompt, longest = self.model.prompt, self.answer_settings.max_new_tokens
        visual = self.model.visual_tokens(pictures)[0]
        used = len(prompt.before(question, visual > 0)) + visual + len(prompt.after(question, visual > 0))
        if used + longest > self.model.context:
            raise DataError(
                f"question and picture have {used} tokens, of which {self.model.context - longest} fit",
                "ask a shorter one",
            )
        return say(self.model, self.model.start(question, pictures), 0, self.answer_settings.max_new_tokens)

    def label_scores(self, images: Sequence[Image], labels: Sequence[str]) -> np.ndarray:
        """(B, len(labels)) log-probabilities of some labels among each other, for decoded pictures (RGB)."""
        from fieldguide.answer.choose import choose_all
        from fieldguide.answer.trie import LabelTrie

        trie, size = LabelTrie.of(self.model, labels), self.answer_settings.batch_size
        pictures, found = self._of_images(images), []
        for start in range(0, len(images), size):
            part = pictures.rows(slice(start, start + size))
            question, temperature = self.answer_settings.question, self.temperature
            found.append(choose_all(self.model, question, part, trie, temperature=temperature).numpy())
        import numpy as np

        return np.concatenate(found)

    def _of_images(self, images: Sequence[Image]) -> Pictures:
        """Decoded pictures in the model's form; nothing of them is kept."""
        if self.tuned:
            from fieldguide.model.hub import HubModel, HubPictures

            model: Any = self.model
            assert isinstance(model, HubModel)
            return HubPictures(tuple(model.prepare([image]) for image in images))
        import numpy as np
        import torch

        from fieldguide.model.projector import PictureFeatures

        grid, pooled = self.encoder.encode(np.stack([self.encoder.prepare(image) for image in images]))
        device = self.model.device
        return PictureFeatures(torch.from_numpy(grid).to(device), torch.from_numpy(pooled).to(device))

    def _check_length(self, label: str, turn: str, visual: int) -> None:
        prompt, settings = self.model.prompt, self.answer_settings
        fixed = len(prompt.before(settings.question)) + visual
        used = (
            fixed + len(prompt.after(settings.question)) + len(prompt.answer(label)) + settings.max_new_tokens
        )
        room = self.model.context - used
        if (length := len(prompt.follow_up(turn))) > room:
            whole = f"the question together with the notes on {label!r} has {length} tokens"
            raise DataError(f"{whole}, of which {room} fit", "ask a shorter one")

    def _pictures(self, paths: Sequence[Path]) -> tuple[Pictures, list[int], dict[int, str]]:
        """The readable pictures in the model's form, their places in `paths`, reasons for the others."""
        if self.tuned:
            from fieldguide.model.hub import HubModel, read_pictures

            assert isinstance(self.model, HubModel)
            return read_pictures(self.model, paths)
        return self._features(paths)

    def _features(self, paths: Sequence[Path]) -> tuple[Pictures, list[int], dict[int, str]]:
        import torch

        from fieldguide.model.projector import PictureFeatures
        from fieldguide.train.features import embed_pictures

        errors: dict[int, str] = {}
        keys: list[str] = []
        for i, path in enumerate(paths):
            try:
                if path.exists() and not path.is_file():  # to read a pipe is to wait for ever
                    raise OSError(0, "a folder, not a picture" if path.is_dir() else "not an ordinary file")
                keys.append(sha256_file(path))
            except OSError as error:
                keys.append("")
                errors[i] = error.strerror or str(error)
        readable = [i for i in range(len(paths)) if i not in errors]
        table = embed_pictures([(paths[i], keys[i]) for i in readable], self.encoder)
        present = set(table.keys)
        places = [i for i in readable if keys[i] in present]
        errors.update(
            {i: table.failed.get(keys[i], "cannot be read") for i in readable if keys[i] not in present}
        )
        device = self.model.device
        features = PictureFeatures(
            torch.from_numpy(table.grid).to(device), torch.from_numpy(table.pooled).to(device)
        )
        return features, places, errors

    def _familiarity(self, pictures: Any, paths: Sequence[Path]) -> list[float | None]:
        """How usual each of the readable pictures looks; None for all where the guide does not tell."""
        novelty = self._judge.novelty
        if novelty is None or not paths:
            return [None] * len(paths)
        from fieldguide.answer.novelty import flatten_features

        if self.tuned:  # its own pictures are tiles of any number: the tower sees a square beside them
            from fieldguide.train.features import embed_pictures

            keys = [sha256_file(path) for path in paths]
            table = embed_pictures(list(zip(paths, keys, strict=True)), self.encoder)
            found = novelty.familiarity(flatten_features(table.grid, table.pooled))
            known = dict(zip(table.keys, found.tolist(), strict=True))
            return [known.get(key) for key in keys]
        grid, pooled = pictures.grid.cpu().numpy(), pictures.pooled.cpu().numpy()
        return list(novelty.familiarity(flatten_features(grid, pooled)).tolist())

    def _scores(self, pictures: Pictures, start: int, stop: int, top_k: int) -> list[list[LabelScore]]:
        from fieldguide.answer.choose import choose

        return choose(
            self.model,
            self.answer_settings.question,
            pictures.rows(slice(start, stop)),
            self.trie,
            top_k=self._judge.labels_read(top_k or self.answer_settings.top_k),
            prefix=self._prefix,
            temperature=self.temperature,
        )


def check_free(folder: Path) -> None:
    """Refuse to make a guide where one lies, or where something else does, such as the pictures.

    What an unfinished build or training left there is no hindrance.

    Raises:
        GuideError: naming the folder.
    """
    if (folder / MANIFEST).exists():
        raise GuideError(f"{folder}: already holds a guide", "choose another --out, or delete this one")
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
        if names and not names & {"checkpoints", "dataset"}:
            raise GuideError(
                f"{folder}: holds other files, and is not a guide", "choose a new folder for --out"
            )
    elif folder.exists() or folder.is_symlink():
        raise GuideError(f"{folder}: is a file", "choose a new folder for --out")


def load_guide(folder: Path | str) -> Guide:
    """Open a guide folder.

    Raises:
        GuideError: when it is missing, half written, of a newer version, or its parts do not belong together.
    """
    from fieldguide.data.notes import read_notes

    folder = Path(folder)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if (folder / "checkpoints").is_dir():
            raise GuideError(
                f"{folder}: its training is not finished", "run the same build or train command again"
            )
        raise GuideError(f"{folder}: no guide there", "fieldguide build PHOTOS --out " + str(folder))
    info = read_json(manifest)
    if not isinstance(info, dict) or not isinstance(info.get("schema"), int):
        raise GuideError(f"{manifest}: not the description of a guide", "build it again")
    if info["schema"] > SCHEMA_VERSION:
        maker = info.get("versions", {}).get("fieldguide", "unknown")
        raise GuideError(f"{folder}: made by a newer version ({maker})", "update fieldguide")
    may_be_empty = ("labels",) if info.get("base_model", {}).get("kind") == "hub" else ()
    absent = [
        n for n in ("fingerprint", *IDENTITY) if not info.get(n) and not (n in may_be_empty and n in info)
    ]
    if absent:
        raise GuideError(f"{manifest}: says nothing of {', '.join(absent)}", "build it again")
    if fingerprint({name: info[name] for name in IDENTITY}) != info["fingerprint"]:
        raise GuideError(
            f"{manifest}: changed since the guide was written",
            "copy the whole guide folder, or build it again",
        )
    for name, digest in info["files"].items():
        if not (folder / name).is_file():
            raise GuideError(f"{folder}: {name} is missing", "copy the whole guide folder, or build it again")
        if sha256_file(folder / name) != digest:
            raise GuideError(f"{folder}: {name} is not the one this guide was written with", "build it again")
    notes = {note.label: note for note in read_notes(folder / NOTES_FILE)}
    return Guide(folder, info, notes)
