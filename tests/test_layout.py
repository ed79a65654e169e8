"""The architecture, held by reading the source: floors, heavy packages, the README's tree, file formats."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "fieldguide"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}
GROUND = ("errors", "records", "files", "progress", "settings", "pixels", "images")
# What the files of a place may import, besides siblings listed before them in the README's tree.
MAY_IMPORT = {
    "data": GROUND,
    "model": GROUND,
    "jobs": GROUND,
    "train": (*GROUND, "data", "model", "jobs"),
    "answer": (*GROUND, "data", "model", "jobs", "train"),
    "report": (*GROUND, "data", "jobs", "answer"),
    "remote": GROUND,
    "doctor": (*GROUND, "model"),
    "guide": (*GROUND, "data", "model", "jobs", "train", "answer", "report"),
    "zeroshot": (*GROUND, "data", "model", "train", "answer", "remote", "guide"),
    "writing": (*GROUND, "data", "guide"),
    "tune": (*GROUND, "data", "model", "jobs", "train", "answer", "guide", "writing"),
    "merging": (*GROUND, "data", "model", "train", "guide", "tune"),
    "rowtest": (*GROUND, "data", "model", "train", "answer", "report", "guide", "tune", "merging"),
    "training": (*GROUND, "data", "model", "jobs", "train", "answer", "guide", "writing", "tune"),
    "build": (*GROUND, "data", "model", "jobs", "train", "answer", "report", "guide", "training"),
    "cli": None,  # anything
    "demo": None,
    "testing": None,
}
HEAVY = ("torch", "torchvision", "transformers", "peft", "accelerate", "timm", "sklearn", "scipy", "cleanlab",
         "polars", "pyarrow", "PIL", "pillow_heif", "matplotlib", "onnxruntime", "numpy")  # fmt: skip
PICKLES = {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
TORCH_PLACES = ("model", "train", "answer", "zeroshot", "testing")
TORCH_IN_FUNCTIONS = ("guide", "tune", "merging", "training")  # they hand arrays to the model as tensors
TORCH = ("torch", "torchvision", "transformers", "peft", "accelerate", "timm")


def place(module: str) -> str:
    return module.split(".")[0]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST, *, file_level_only: bool = False) -> Iterator[str]:
    """Dotted names of what is imported; below functions and `if TYPE_CHECKING` only when asked for all."""
    if file_level_only and isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    if file_level_only and isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        return
    if isinstance(tree, ast.Import):
        yield from (name.name for name in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "imports are absolute"
        yield from (f"{tree.module}.{name.name}" for name in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from imports(child, file_level_only=file_level_only)


def own_module(name: str) -> str | None:
    """`fieldguide.data.split.folds` -> `data.split`; None for other packages and for the bare package."""
    parts = name.split(".")
    if parts[0] != "fieldguide":
        return None
    for length in (3, 2):
        if ".".join(parts[1:length]) in MODULES and len(parts) >= length:
            return ".".join(parts[1:length])
    return None


def readme_tree() -> list[str]:
    """The paths of the README's annotated tree below src/fieldguide/, in its order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```\nsrc/fieldguide/.*?\n(.*?)\n```", text, re.DOTALL)
    assert block, "README.md has an annotated tree that begins with src/fieldguide/"
    paths, folder = [], ""
    for line in block[1].splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()  # type: ignore[union-attr]
        if len(indent) > 4:
            continue  # the phrase goes on
        if len(indent) == 2:
            folder = ""
        paths.append(folder + name)
        if name.endswith("/"):
            folder = name
    return paths


def test_readme_tree_names_every_module_and_nothing_else() -> None:
    files = {str(path.relative_to(PACKAGE)) for path in MODULES.values()}
    listed = readme_tree()
    assert len(listed) == len(set(listed)), "a name stands twice in the README's tree"
    assert sorted(files - set(listed)) == [], "modules missing in the README's tree"
    gone = [name for name in listed if name not in files and not (PACKAGE / name).exists()]
    assert gone == [], "the README's tree names files that do not exist"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    order = [name.removesuffix(".py").replace("/", ".") for name in readme_tree()]
    wrong = []
    for name in imports(parse(MODULES[module])):
        target = own_module(name)
        if target is None or target == module:
            continue
        siblings = place(target) == place(module) or (target in GROUND and module in GROUND)
        if siblings:
            if order.index(target) > order.index(module):
                wrong.append(f"{target} stands below {module} in the README's tree")
        elif module in GROUND:
            wrong.append(f"the ground floor imports {target}")
        else:
            allowed = MAY_IMPORT[place(module)]
            if allowed is not None and place(target) not in allowed:
                wrong.append(f"{place(module)} may not import {target}")
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_torch_stays_in_its_places(module: str) -> None:
    tree = parse(MODULES[module])
    everywhere = place(module) in TORCH_PLACES
    roots = {name.split(".")[0] for name in imports(tree, file_level_only=everywhere)}
    if not everywhere:
        if place(module) not in TORCH_IN_FUNCTIONS:
            assert roots & {"torch", "torchvision"} == set()
        assert {n.split(".")[0] for n in imports(tree, file_level_only=True)} & set(TORCH) == set()


LIGHT = {*GROUND, "demo"} - {"pixels", "images"}  # those two decode: Pillow is their business


@pytest.mark.parametrize("module", [m for m in MODULES if m in LIGHT or place(m) == "cli"])
def test_light_modules_import_nothing_heavy_at_file_level(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(parse(MODULES[module]), file_level_only=True)}
    assert roots & set(HEAVY) == set()


def test_no_pickles() -> None:
    """Weights and arrays are safetensors; a pickle is read only as another project's weights, and safely."""
    found = []
    for module, path in MODULES.items():
        tree = parse(path)
        roots = {name.split(".")[0] for name in imports(tree)}
        found += [f"{module}: {name}" for name in roots & PICKLES]
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if name == "torch.save" or keywords.get("allow_pickle") == "True":
                found.append(f"{module}:{call.lineno}: {name}")
            if name == "torch.load" and keywords.get("weights_only") != "True":
                found.append(f"{module}:{call.lineno}: torch.load without weights_only=True")
    assert found == []


def test_names_say_what_files_are_for() -> None:
    bad = re.compile(r"^(utils?|helpers?|managers?|common|misc|process|handle)$|2$")
    assert [m for m in MODULES if any(bad.search(part) for part in m.split("."))] == []


def test_nothing_tells_of_one_machine() -> None:
    """No absolute paths, neither in the documents nor in the code."""
    machine = re.compile(r"(?<![\w.~}])/(home|root|Users|work|tmp|mnt|opt)/|(?<!\w)[A-Z]:\\\\?[A-Za-z]")
    files = [ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / "pyproject.toml", *ROOT.glob("*.md")]
    for folder in ("src", "docs", "bench", "tests"):
        for end in ("py", "md", "csv", "html", "toml"):
            files += (ROOT / folder).rglob(f"*.{end}")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in files
        if path != Path(__file__).resolve() and "results" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if machine.search(line)
    ]
    assert found == []


def test_links_of_the_documents_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").glob("*.md"))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"({page})" not in index} == set(), "pages missing in docs/index.md"


def test_readme_begins_with_what_a_reader_needs() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:30]
    text = "\n".join(first)
    assert "badge" not in text
    assert "pip install" in text
    assert len(re.findall(r"^ *(?:\$ )?fieldguide \w+", text, re.MULTILINE)) >= 3


def test_version_is_one() -> None:
    import tomllib

    import fieldguide

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest
    assert fieldguide.__version__ == project["version"] == newest[1]


def test_public_names_are_sorted_and_all_there() -> None:
    import fieldguide

    assert fieldguide.__all__ == sorted(fieldguide.__all__) == sorted(fieldguide._HOME)
    tree = parse(PACKAGE / "__init__.py")
    typed = [node for node in tree.body if isinstance(node, ast.If)]
    for_checkers = {name.rpartition(".")[2]: name.rpartition(".")[0] for name in imports(typed[0])}
    assert for_checkers == fieldguide._HOME, "type checkers and Python find the names in the same places"
    for name in fieldguide.__all__:
        assert getattr(fieldguide, name).__module__.startswith("fieldguide."), name


def test_build_stays_a_function_when_its_file_is_imported() -> None:
    import fieldguide.build as _  # noqa: F401

    assert "fieldguide.build" in sys.modules
    from fieldguide import build

    assert callable(build)
