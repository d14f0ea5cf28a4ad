"""A page of results that needs nothing but itself: light or dark as its reader has it, and legible on a phone."""

import importlib.resources
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from string import Template
from typing import Any, NamedTuple

from a3jax.outside_text import printable
from a3jax.show.pyplot import pyplot

TELLING = """\
<output id="said"></output>
<script>
"use strict";
for (const event of ["pointerover", "click"])
  document.addEventListener(event, ({target}) => {
    document.getElementById("said").textContent = target.closest(".point")?.firstChild.textContent ?? "";
  });
</script>"""
"""The part of a page with charts that tells what their points say. Pages that show others' texts have no script at all."""


def page(title: str, content: Sequence[str]) -> str:
    """The page as HTML, of a title and parts that are HTML already."""
    frame = (importlib.resources.files(__package__) / "page.html").read_text(encoding="utf-8")
    return Template(frame).substitute(title=title, content="\n".join(content))


class Said(NamedTuple):
    """A point of a chart, and what it says when it is pointed at or touched."""

    x: float
    y: float
    text: str


def chart(figure: Any, panel: Any, points: Iterable[Said]) -> str:
    """A figure of matplotlib as part of a page, in the page's colours; the same every time. The figure is closed.

    `points` are in the coordinates of `panel`.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing, transparent=True)  # it is laid out by then
    pixels, height = 72 / figure.dpi, 72 * figure.get_figheight()

    def circle(one: Said) -> str:
        x, y = panel.transData.transform((one.x, one.y)) * pixels
        said = f"<title>{escape(printable(one.text))}</title>"
        return f'<circle class="point" cx="{x:.1f}" cy="{height - y:.1f}" r="6">{said}</circle>'

    circles = "".join(map(circle, points))
    pyplot().close(figure)
    return inline(file.getvalue()).replace("</svg>", f"{circles}</svg>")


def inline(svg: str) -> str:
    """A drawing without what only a file needs, or may be there once in a page, in the colours of the page."""
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
    return svg.replace("#000000", "currentColor").replace("#ffffff", "none")
