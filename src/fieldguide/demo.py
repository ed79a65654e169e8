"""The demonstration: a guide to handwritten digits, from pictures to a printed answer.

    python -m fieldguide.demo [FOLDER]          (FOLDER is ./demo unless given; `make demo` calls this)

The pictures are the 1,797 digits that come with scikit-learn, so nothing is downloaded but the starter
weights. One of them is kept out of the build, to be asked about at the end.
"""

from __future__ import annotations

import shutil
import sys
from importlib.resources import as_file, files
from pathlib import Path

from fieldguide.files import atomic_path

HELD_OUT = 1796  # the last picture of the collection; it shows an 8
SIDE = 64  # pixels: the originals have 8, and an enlargement is easier on the eye in the report


def write_digits(folder: Path) -> Path:
    """Write `folder/digits/<label>/digit-0000.png` and so on, `folder/held-out.png`, and `folder/notes.csv`.

    The bytes of the pictures are the same on every call.

    Returns:
        The path of the picture that was held out.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    held_out = folder / "held-out.png"
    for number, (ink, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / "digits" / str(label) / f"digit-{number:04d}.png"
        if number == HELD_OUT:
            path = held_out
        path.parent.mkdir(parents=True, exist_ok=True)
        paper = np.round(255 - ink * (255 / 16)).astype(np.uint8)  # (8, 8): ink 0 to 16 becomes 255 to 0
        picture = Image.fromarray(paper).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(path, format="PNG")
    with as_file(files("fieldguide") / "demo_notes.csv") as notes, atomic_path(folder / "notes.csv") as copy:
        shutil.copyfile(notes, copy)
    return held_out


def main(folder: Path) -> None:
    """Write the pictures, build the guide unless it is there, and ask it about the held-out picture."""
    from fieldguide.build import build
    from fieldguide.guide import load_guide
    from fieldguide.settings import load_recipe

    held_out = write_digits(folder)
    out = folder / "digits.guide"
    if (out / "guide.json").exists():  # written last: the guide is whole
        print(f"{out} is already there; delete it to see it built again")
    else:
        # 1,250 training pictures make 80 steps an epoch, more than small sets get in two: one is enough.
        recipe = load_recipe(None, {"train": {"epochs": 1}})
        build(folder / "digits", out, notes=folder / "notes.csv", recipe=recipe)
    answer = load_guide(out).ask(held_out)
    print(f"\n{held_out}, which the guide has never seen (it shows an 8):")
    for score in answer.scores[:3]:
        print(f"  {score.label}  {score.probability or 0.0:6.1%}")
    print(f"  {answer.text}")
    print(f"\nThe report: {out / 'report' / 'index.html'}")


def run() -> None:
    """Entry point of `python -m fieldguide.demo`; an expected error is one line, as on the command line."""
    from fieldguide.errors import FieldguideError

    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo"))
    except FieldguideError as error:
        sys.exit(f"fieldguide: {error}")


if __name__ == "__main__":
    run()
