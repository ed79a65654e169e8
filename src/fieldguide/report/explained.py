"""One page of explained answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fieldguide.answer.heat import drawn
from fieldguide.files import write_text
from fieldguide.report.page import environment, thumbnail

if TYPE_CHECKING:
    from PIL.Image import Image

    from fieldguide.answer.explain import Explanation


def write_explanations(path: Path, explanations: Sequence[Explanation], title: str) -> None:
    """One HTML file with everything inside, whole or not at all."""
    write_text(path, render_explanations(explanations, title))


def render_explanations(explanations: Sequence[Explanation], title: str) -> str:
    """The page of `ask --explain` and `classify --explain`."""
    cards = [
        {
            "one": one,
            "picture": thumbnail(Path(one.answer.image), 320)[0],
            "heat": data_uri(drawn(one.where.image, one.where.heat)) if one.where is not None else "",
            "neighbours": [
                (near, thumbnail(near.path, 110)[0] if near.path is not None else "")
                for near in one.neighbours
            ],
        }
        for one in explanations
    ]
    return environment().get_template("explained.html").render(cards=cards, title=title)


def data_uri(image: Image, side: int = 320) -> str:
    """A picture as a small JPEG inside a page."""
    copy = image.copy()
    copy.thumbnail((side, side))
    buffer = io.BytesIO()
    copy.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
