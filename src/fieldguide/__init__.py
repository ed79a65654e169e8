"""fieldguide: turn a folder of pictures, and what you know about them, into an AI field guide.

    from fieldguide import build, load_guide

    build("photos", "fish.guide")
    print(load_guide("fish.guide").ask("img.jpg").label)

Everything public is listed in `__all__` and is imported when it is first used, so `import fieldguide` is
quick and loads neither torch nor transformers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fieldguide.build import build as build
    from fieldguide.data.dataset import Dataset as Dataset
    from fieldguide.data.dataset import load_dataset as load_dataset
    from fieldguide.data.importer import import_pictures as import_pictures
    from fieldguide.errors import FieldguideError as FieldguideError
    from fieldguide.guide import Guide as Guide
    from fieldguide.guide import load_guide as load_guide
    from fieldguide.images import load_picture as load_picture
    from fieldguide.model.vision import load_encoder as load_encoder
    from fieldguide.records import Answer as Answer
    from fieldguide.records import Example as Example
    from fieldguide.records import LabelScore as LabelScore
    from fieldguide.records import Note as Note
    from fieldguide.settings import Recipe as Recipe
    from fieldguide.settings import load_recipe as load_recipe
    from fieldguide.train.features import embed_pictures as embed_pictures
    from fieldguide.training import train_guide as train_guide

__version__ = "0.1.0"

_HOME = {
    "Answer": "fieldguide.records",
    "Dataset": "fieldguide.data.dataset",
    "Example": "fieldguide.records",
    "FieldguideError": "fieldguide.errors",
    "Guide": "fieldguide.guide",
    "LabelScore": "fieldguide.records",
    "Note": "fieldguide.records",
    "Recipe": "fieldguide.settings",
    "build": "fieldguide.build",
    "embed_pictures": "fieldguide.train.features",
    "import_pictures": "fieldguide.data.importer",
    "load_dataset": "fieldguide.data.dataset",
    "load_encoder": "fieldguide.model.vision",
    "load_guide": "fieldguide.guide",
    "load_picture": "fieldguide.images",
    "load_recipe": "fieldguide.settings",
    "train_guide": "fieldguide.training",
}

__all__ = [
    "Answer",
    "Dataset",
    "Example",
    "FieldguideError",
    "Guide",
    "LabelScore",
    "Note",
    "Recipe",
    "build",
    "embed_pictures",
    "import_pictures",
    "load_dataset",
    "load_encoder",
    "load_guide",
    "load_picture",
    "load_recipe",
    "train_guide",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fieldguide' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """Keeps `fieldguide.build` the function also after the file `build.py` has been imported.

    Importing a submodule sets it as an attribute of its package, which would hide the function of that name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "build" and isinstance(value, ModuleType):
            value = value.build
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
