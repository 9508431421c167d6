"""PNG: the picture of a report, painted with Pillow, which the extra ``plots`` brings."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from memback.errors import UsageError
from memback.extras import how_to_install
from memback.profiling.report import Report
from memback.reports.picture import PAPER, Area, Rectangle, Text, draw

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

__all__ = ["render", "require"]

_SCALE = 2
_ANCHORS = {"start": "ls", "end": "rs", "middle": "ms"}


def require() -> None:
    """Refuse before the work begins what could not be written.

    Raises:
        UsageError: Pillow is not installed.
    """
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UsageError(
            f"PNG pictures need Pillow: {how_to_install('pillow')}, or write .svg, which needs nothing"
        ) from None


def render(report: Report) -> bytes:
    """The report's picture, two pixels for each of the SVG's.

    Raises:
        UsageError: Pillow is not installed.
    """
    require()
    from PIL import Image, ImageDraw

    picture = draw(report)
    image = Image.new("RGB", (picture.width * _SCALE, picture.height * _SCALE), PAPER)
    brush = ImageDraw.Draw(image)
    for shape in picture.shapes:
        _paint(brush, shape)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _paint(brush: ImageDraw, shape: Rectangle | Area | Text) -> None:
    if isinstance(shape, Text):
        from PIL import ImageFont

        font = ImageFont.load_default(shape.size * _SCALE)
        place = (shape.x * _SCALE, shape.y * _SCALE)
        brush.text(place, shape.text, shape.colour, font, anchor=_ANCHORS[shape.anchor])
    elif isinstance(shape, Area):
        brush.polygon([(x * _SCALE, y * _SCALE) for x, y in shape.points], shape.colour)
    elif shape.width > 0 and shape.height > 0:
        corner = (shape.x + shape.width, shape.y + shape.height)
        left, top, right, bottom = (round(_SCALE * n) for n in (shape.x, shape.y, *corner))
        brush.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), shape.colour)
