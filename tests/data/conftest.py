"""Text to prepare."""

import numpy as np
import pytest


@pytest.fixture
def source(tmp_path):
    """A folder with 30 text files, and some that are not."""
    folder = tmp_path / "source"
    (folder / "deep" / "er").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(30):
        text = "".join(rng.choice(list("abc é∀\n"), rng.integers(1, 200))) + f"{i}"
        (folder / ("deep/er" if i % 3 else "") / f"{i:02}.txt").write_text(text, encoding="utf-8")
    (folder / "blank.txt").write_text(" \n ")
    (folder / ".hidden.txt").write_text("hidden")
    return folder
