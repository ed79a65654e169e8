"""Settings: one small frozen dataclass a stage, together a recipe that a TOML file can hold.

Unknown keys and impossible values are refused, all faults in one message. Nothing derived is stored:
a value that follows from another is a property.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fieldguide.errors import SettingsError


@dataclass(frozen=True)
class ImportSettings:
    """How pictures and text become a data set folder."""

    val: float = 0.1  # share of groups for validation
    test: float = 0.2  # share of groups for testing
    folds: int = 0  # K > 1 also numbers K cross-validation folds
    seed: int = 0  # another seed, another split
    image_column: str = ""  # "" = found by name and content
    label_column: str = ""
    group_by: str = ""  # column (or "parent": the picture's folder) whose values stay on one side
    label_pattern: str = ""  # regular expression with one group, for labels in file names
    near_duplicate_distance: int = 8  # bits of 64 in which perceptual hashes may differ (of 256: 34)
    burst_seconds: float = 3.0  # EXIF times closer than this, same camera: one group; 0 = off
    copy: bool = False  # copy the pictures into the data set folder
    max_pixels: int = 180_000_000  # of 4 bytes: pictures that need more memory to decode are refused

    def faults(self) -> list[str]:
        found = []
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            found.append(f"val={self.val} and test={self.test} must be shares that leave some for training")
        if self.folds < 0 or self.folds == 1:
            found.append(f"folds={self.folds} must be 0 (none) or at least 2")
        if not 0 <= self.near_duplicate_distance <= 16:
            found.append(f"near_duplicate_distance={self.near_duplicate_distance} must be 0 to 16 bits")
        if not 0 <= self.burst_seconds < math.inf:
            found.append(f"burst_seconds={self.burst_seconds} must not be negative")
        if self.max_pixels < 1:
            found.append(f"max_pixels={self.max_pixels} must be at least 1")
        found += _pattern_faults("label_pattern", self.label_pattern)
        return found


@dataclass(frozen=True)
class EmbedSettings:
    """How frozen-encoder features are computed."""

    encoder: str = "starter"
    grid: int = 4  # features are pooled to grid × grid patches
    batch_size: int = 16
    runtime: str = "auto"  # auto, torch, onnxruntime, openvino

    def faults(self) -> list[str]:
        found = []
        if not 1 <= self.grid <= 8:
            found.append(f"grid={self.grid} must be 1 to 8")
        if self.batch_size < 1:
            found.append(f"batch_size={self.batch_size} must be at least 1")
        if self.runtime not in ("auto", "torch", "onnxruntime", "openvino"):
            found.append(f"runtime={self.runtime!r} must be auto, torch, onnxruntime or openvino")
        return found


_PART = ("frozen", "lora", "full")
_CHOICES = {
    "projector": ("mlp", "linear", "pooled", "shuffled"),
    "language_part": _PART,
    "vision_part": _PART,
    "projector_part": _PART,
    "quantise": ("", "nf4"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "attention": ("auto", "sdpa", "flash", "eager"),
    "optimizer": ("adamw", "adamw8bit"),
    "learn": ("auto", "labels", "captions", "messages"),
    "log_to": ("", "tensorboard", "trackio", "wandb"),
}


@dataclass(frozen=True)
class TrainSettings:
    """How the projector and the LoRA adapter are trained."""

    model: str = "starter"  # or a model folder, or its name at the model hub
    vision: str = ""  # a vision encoder's folder or name: `model` is then a language model to put behind it
    projector: str = "mlp"  # between them: mlp, linear, pooled (one token) or shuffled (a token of four)
    language_part: str = "lora"  # frozen, lora or full
    vision_part: str = "frozen"
    projector_part: str = "full"
    quantise: str = ""  # nf4: the language part's frozen weights in 4 bits
    double_quant: bool = True  # their scales too
    precision: str = "auto"  # fp32, bf16, fp16; auto: what the device has, fp32 on a CPU
    attention: str = "auto"  # sdpa, flash, eager
    gradient_checkpointing: bool = False  # compute again instead of keeping: less memory, more time
    optimizer: str = "adamw"  # or adamw8bit
    shard: bool = False  # weights, gradients and optimizer over the processes (FSDP2), not a copy in each
    memory_limit_gb: float = 0.0  # of a device; 0 for what it has
    learn: str = (
        "auto"  # labels, captions or messages; auto: the first of labels, messages, captions there is
    )
    pretrain_epochs: int = 0  # a first stage in which the projector alone learns from captions
    pretrain_learning_rate: float = 1e-3
    start_from: str = ""  # a guide whose adapter and projector training begins with
    log_to: str = ""  # also log to tensorboard, trackio or wandb
    summary_tokens: int = 3  # visual tokens from the whole picture, solved by ridge regression; 0 = none
    patch_tokens: int = 0  # visual tokens from patches of the grid: 0 (none), 1, 4 or 16 for a 4 × 4 grid
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    epochs: int = 2
    batch_size: int = 16  # most rows a batch …
    batch_tokens: int = 512  # … and most tokens, padding included; bounds the memory of long rows
    accumulate: int = 1  # batches a step
    learning_rate: float = 2e-4  # of the adapter
    projector_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of the steps; from 1 on, steps
    clip: float = 1.0  # largest gradient norm
    explain_per_label: int = 6  # pictures a label and epoch that also train the reasons; 0 = labels only
    patience: int = 2  # epochs without a better validation loss before stopping; 0 = never stop early
    checkpoint_every: int = 50  # steps
    keep: int = 2  # checkpoints kept
    seed: int = 0

    def faults(self) -> list[str]:
        found = []
        for name in (
            "epochs",
            "batch_size",
            "batch_tokens",
            "accumulate",
            "lora_rank",
            "lora_alpha",
            "checkpoint_every",
            "keep",
        ):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "projector_learning_rate", "pretrain_learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                found.append(f"{name}={getattr(self, name)} must be above 0")
        for name in (
            "weight_decay",
            "explain_per_label",
            "patience",
            "seed",
            "pretrain_epochs",
            "memory_limit_gb",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                found.append(f"{name}={getattr(self, name)} must not be negative")
        if self.summary_tokens < 0 or self.patch_tokens < 0 or self.summary_tokens + self.patch_tokens == 0:
            found.append("summary_tokens and patch_tokens must not be negative, nor both 0 (a blind model)")
        if self.patch_tokens > 0 and math.isqrt(self.patch_tokens) ** 2 != self.patch_tokens:
            found.append(f"patch_tokens={self.patch_tokens} must be a square number")
        if not self.model.strip():
            found.append("model must not be empty")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                told = ", ".join(repr(choice) for choice in known)
                found.append(f"{name}={getattr(self, name)!r} must be one of {told}")
        if "frozen" == self.language_part == self.vision_part == self.projector_part:
            found.append(
                "language_part, vision_part and projector_part are all frozen: nothing would be learnt"
            )
        if not 0 <= self.warmup < math.inf or (self.warmup % 1 > 0 and self.warmup > 1):
            found.append(f"warmup={self.warmup} must be a share below 1, or a number of steps")
        if not 0 <= self.lora_dropout < 1:
            found.append(f"lora_dropout={self.lora_dropout} must be a share below 1")
        return found


@dataclass(frozen=True)
class AnswerSettings:
    """How questions are asked and answered."""

    question: str = "What is in this picture?"
    why: str = "How can you tell?"  # follow-up, answered from the field marks
    confused: str = "What could it be confused with?"  # follow-up, from the look-alikes
    more: str = "Tell me about it."  # follow-up, from the description
    top_k: int = 5  # labels listed in an answer
    batch_size: int = 16  # pictures at once
    max_new_tokens: int = 96  # of the sentence that says why
    abstain: bool = True  # say "not in this guide" of pictures unlike all that it knows
    keep: float = 0.95  # share of pictures of the guide's own labels that is not to be refused so
    coverage: float = 0.0  # list the labels that hold the right one so often; 0 = the `top_k` likeliest

    def faults(self) -> list[str]:
        found = []
        if not 0 < self.keep < 1:
            found.append(f"keep={self.keep} must be a share between 0 and 1")
        if not 0 <= self.coverage < 1:
            found.append(f"coverage={self.coverage} must be 0 (off) or a share below 1")
        for name in ("top_k", "batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        if not self.question.strip():
            found.append("question must not be empty")
        return found


@dataclass(frozen=True)
class ZeroShotSettings:
    """How a model that was never taught the labels is asked for them."""

    question: str = "What is in this picture? Answer with its name only."
    system: str = ""  # stands before every question
    templates: tuple[str, ...] = (  # of contrastive models; {} is a name
        "a photo of a {}.",
        "a picture of a {}.",
        "a close-up of a {}.",
        "a drawing of a {}.",
        "{}",
    )
    marks: bool = True  # contrastive models: also a prompt for each field mark of the notes
    prior: bool = True  # take off what each label gets for a blank picture
    batch_size: int = 8  # pictures at once
    max_new_tokens: int = 96  # of an answer in words

    def faults(self) -> list[str]:
        found = [f"template {t!r} has no {{}} for the name" for t in self.templates if t.count("{}") != 1]
        if not self.templates:
            found.append("templates must not be empty")
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        if not self.question.strip():
            found.append("question must not be empty")
        return found

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Recipe:
    """The settings of all stages. TOML tables of the same names override single values."""

    imports: ImportSettings = field(default_factory=ImportSettings)
    embed: EmbedSettings = field(default_factory=EmbedSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    answer: AnswerSettings = field(default_factory=AnswerSettings)

    def to_dict(self) -> dict[str, Any]:
        return {
            _TABLE.get(f.name, f.name): dataclasses.asdict(getattr(self, f.name))
            for f in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any], origin: str = "recipe") -> Recipe:
        """Build a recipe from nested tables.

        Raises:
            SettingsError: listing every unknown key, wrong type and impossible value.
        """
        faults: list[str] = []
        parts: dict[str, Any] = {}
        known = {_TABLE.get(f.name, f.name): f for f in dataclasses.fields(cls)}
        for table in tables:
            if table not in known:
                faults.append(f"unknown table [{table}] (known: {', '.join(known)})")
        for table, f in known.items():
            values = tables.get(table, {})
            if not isinstance(values, Mapping):
                faults.append(f"[{table}] must be a table")
                continue
            factory: Any = f.default_factory
            part, wrong = fill(factory(), values)
            faults += [f"[{table}] {fault}" for fault in wrong]
            parts[f.name] = part
        if faults:
            raise SettingsError(f"{origin}: " + "; ".join(faults), "see docs/recipes.md for every setting")
        return cls(**parts)

    @classmethod
    def of_guide(cls, tables: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """The recipe that a guide holds; of settings, what this version does not know is left out."""
        defaults = cls().to_dict()
        known = {
            table: {key: value for key, value in values.items() if key in defaults[table]}
            for table, values in tables.items()
            if table in defaults
        }
        return cls.from_dict(known, "guide.json")


# `import` is a word of the language, so the field is called `imports`; the TOML table is [import].
_TABLE = {"imports": "import"}


def _pattern_faults(name: str, pattern: str) -> list[str]:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return [f"{name}={pattern!r} is not a regular expression ({error})"]
    return [f"{name}={pattern!r} must have one group (…)"] if pattern and groups != 1 else []


def fill(default: Any, values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """A settings dataclass with single values laid over it, and every fault of names, types and values."""
    faults, accepted = [], {}
    types = {f.name: type(getattr(default, f.name)) for f in dataclasses.fields(default)}
    for key, value in values.items():
        if key not in types:
            faults.append(f"unknown setting {key!r} (known: {', '.join(types)})")
        elif types[key] is float and type(value) is int:
            accepted[key] = float(value)
        elif type(value) is not types[key]:
            faults.append(f"{key}={value!r} must be {types[key].__name__}")
        else:
            accepted[key] = value
    part = dataclasses.replace(default, **accepted)
    return part, faults + part.faults()


def load_recipe(
    path: Path | str | None = None, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> Recipe:
    """Read a TOML recipe, if given, and lay single values over it.

    Args:
        path: the recipe file; None for the defaults.
        overrides: {table: {setting: value}}; a value of None is "not given".

    Raises:
        SettingsError: when the file is missing, is not TOML, or holds wrong settings.
    """
    tables = read_toml(path, "recipe", "leave --recipe out") if path is not None else {}
    for table, values in (overrides or {}).items():
        given = {key: value for key, value in values.items() if value is not None}
        in_file = tables.get(table, {})
        if given and isinstance(in_file, Mapping):  # else left as it is, for from_dict to name the fault
            tables[table] = {**in_file, **given}
    return Recipe.from_dict(tables, str(path) if path is not None else "settings")


def read_toml(path: Path | str, what: str, otherwise: str) -> dict[str, Any]:
    """Read a TOML file of settings: `what` it is, and what `otherwise` to do without it, go into errors.

    Raises:
        SettingsError: when the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such {what} file", f"check its spelling, or {otherwise}") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML ({error})", "repair it at that place") from error


def parse_overrides(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read `table.setting=value` texts, as the command line gives them, for `load_recipe`.

    A value is read as TOML where it can be (`5`, `0.1`, `true`), else it is the text itself.

    Raises:
        SettingsError: when a text has another form.
    """
    overrides: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        table, dot, setting = name.strip().partition(".")
        if not (equals and dot and table and setting):
            raise SettingsError(f"--set {text}: must be table.setting=value", "for example train.epochs=5")
        overrides.setdefault(table, {})[setting] = _toml_value(value.strip())
    return overrides


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text
