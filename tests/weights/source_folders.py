"""Folders of pretrained models, copied and changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from small_models import query_logits, tokens, torch_logits

from a3jax.checkpoint.folder import Checkpoint, find
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "source"))


def with_config(**changes: Any) -> Callable[[Path], None]:
    """Fields of config.json set, or taken out where they are "absent"."""

    def damage(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))

    return damage


def with_generation(**content: Any) -> Callable[[Path], Any]:
    """Another generation_config.json."""
    return lambda folder: (folder / "generation_config.json").write_text(json.dumps(content))


def imported_into(folder: Path, out: Path) -> Checkpoint:
    import_model(open_source(folder), out)
    return find(out)


def assert_logits_as_in_transformers(folder: Path, out: Path) -> None:
    ids = tokens()
    ours = query_logits(imported_into(folder, out), ids, np.broadcast_to(np.arange(48), (2, 48)))
    np.testing.assert_allclose(ours[:, 1:], torch_logits(folder, ids)[:, :-1], atol=1e-4, rtol=0)
