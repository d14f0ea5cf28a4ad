"""A page as a headless Chromium lays it out; tests that need one are passed over where there is none."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def viewed(test: Callable) -> Callable:
    """A test of a page, on a phone and a wide screen, by day and by night; long, and passed over without a browser."""
    test = pytest.mark.parametrize("width", [400, 1200])(pytest.mark.parametrize("dark", [False, True])(test))
    return pytest.mark.long(pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")(test))


_MEASURE = """<script>
const seen = {width: innerWidth, page: document.documentElement.scrollWidth};
const colors = getComputedStyle(document.body);
seen.text = colors.color;
seen.dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.querySelectorAll("details").forEach(each => { each.open = true; });
seen.opened = document.documentElement.scrollWidth;
const letters = [...document.querySelectorAll("svg text")].map(each => each.getBoundingClientRect().height);
seen.letters = Math.min(...letters);
seen.labels = [...new Set([...document.querySelectorAll("svg text")].map(each => getComputedStyle(each).fill))];
const point = document.querySelector(".point");
point?.dispatchEvent(new Event("pointerover", {bubbles: true}));
seen.said = document.getElementById("said")?.textContent;
seen.marks = document.querySelectorAll(".point").length;
const told = parent.document.createElement("pre");
told.id = "seen";
told.textContent = JSON.stringify(seen);
parent.document.body.append(told);
</script>"""
_FRAME = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>"""


def laid_out(page: Path, width: int, dark: bool, folder: Path) -> dict[str, Any]:
    """What a browser measures of a page that is so many pixels wide, by a reader's liking dark or light.

    The page stands in a frame, for a window has a least width of its own. Checked here: it is of the scheme asked for, and
    nothing in it, unfolded or not, makes it wider than it should be.
    """
    measured = folder / "measured.html"
    whole = page.read_text(encoding="utf-8") + _MEASURE
    measured.write_text(_FRAME.format(width=width, page=html.escape(whole)), encoding="utf-8")
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
    ]
    options = [f"--user-data-dir={folder / 'profile'}", f"--window-size={width + 100},1000", *["--force-dark-mode"] * dark]
    command = [str(CHROMIUM), "--headless", *quiet, *options, "--virtual-time-budget=10000", "--dump-dom", measured.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-500:]
    seen = json.loads(html.unescape(found[1]))
    assert (seen["width"], seen["dark"]) == (width, dark)
    assert max(seen["page"], seen["opened"]) <= width
    assert (seen["text"] == "rgb(255, 255, 255)") == dark
    return seen
