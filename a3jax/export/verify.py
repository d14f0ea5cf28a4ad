"""Does an exported folder, run in PyTorch, compute what the checkpoint computes in JAX?"""

import contextlib
import dataclasses
import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from a3jax.checkpoint.folder import Checkpoint
from a3jax.data.tokenizer import load_codec
from a3jax.devices.writing import by_first
from a3jax.errors import UserError
from a3jax.export.probe import INFILL_SIZE, Greedy, Probes, probe
from a3jax.weights import a3_folder
from a3jax.weights.tensor_files import read_json

TOLERANCE = 1e-2
"""Rounding of a deep model in float32 stays well below; a tensor in the wrong place or layout is far above."""


@dataclass(frozen=True)
class Verification:
    """What was compared, and how it came out."""

    max_logit_difference: float
    greedy_tokens: int
    """Greedily chosen tokens that were compared: first those generated, then those filled in."""
    first_difference: int | None
    """Which of them is another in PyTorch, counted from 0; None if none is."""
    margin: float | None
    """By how much our logit of our choice exceeds our logit of PyTorch's, there."""

    @property
    def problem(self) -> str | None:
        """What is wrong with the folder, in a few words; None if nothing is.

        Another token is no error where the two are equally likely but for the rounding of logits: such a tie may break
        either way. From there on the texts differ, so nothing after it is compared.
        """
        if not self.max_logit_difference < TOLERANCE:  # NaN is a problem too
            return f"logits in PyTorch differ by {self.max_logit_difference:.2g}"
        if self.margin is not None and not self.margin < TOLERANCE:
            return f"greedy token {self.first_difference} is another in PyTorch, by {self.margin:.2g} in its logit"
        return None


def require_torch() -> None:
    """Raise `UserError` if PyTorch or transformers is not installed."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        raise UserError("verification runs the exported model in PyTorch; pip install 'a3jax[torch]'") from None


def verify(checkpoint: Checkpoint, folder: Path, mesh: Mesh | None = None) -> Verification:
    """Compare logits and greedy tokens, both sides in float32 from the exported dtype.

    Logits are those of random tokens, of the content stream left to right unless a learned vector seeds all queries, and,
    for a two-stream folder, of the query stream left to right and in random groups of several sizes behind a given
    prefix. The first token is never predicted, and its query, which sees nothing, is not compared. Greedy tokens continue
    a text, ours by the cached decoder, and for a two-stream folder also fill blanks of a text in random groups.

    Holds the model once, first in JAX, laid over the `mesh` in use if one is given, then in PyTorch, of several processes in
    the first alone; each reads both folders. Raises `UserError` if PyTorch is not installed.
    """
    by_first(require_torch)
    settings = read_json(folder / "config.json")
    fillable_V = a3_folder.fillable(settings) if settings["model_type"] == a3_folder.MODEL_TYPE else None
    dtype = settings.get("torch_dtype") or settings.get("dtype", "float32")
    probes = probe(checkpoint, dtype, load_codec(folder), fillable_V, mesh)
    return Verification(**by_first(lambda: dataclasses.asdict(_compared(probes, folder, settings))))


def _compared(probes: Probes, folder: Path, settings: dict[str, Any]) -> Verification:
    """What the folder computes in PyTorch, held against ours."""
    import torch

    forwards, generated, infilled = probes
    largest, compared, differences = 0.0, 0, []
    with _in_torch(folder, settings) as model, torch.no_grad():
        for tokens, groups, expected in forwards:
            how, first = ({}, 0) if groups is None else ({"groups": torch.from_numpy(groups)}, 1)
            difference = np.abs(model(torch.from_numpy(tokens), **how).logits.numpy() - expected)[:, first:].max()
            largest = float(np.maximum(largest, difference))  # unlike max(), keeps a NaN
        for ours, run in [(generated, _generate), (infilled, _infill)]:
            if ours is None:
                continue
            theirs_N = run(model, ours)[ours.index_N]
            differing = np.flatnonzero(theirs_N != ours.chosen_N)[:1]
            for n in differing:
                margin = ours.logits_NxV[n, ours.chosen_N[n]] - ours.logits_NxV[n, theirs_N[n]]
                differences.append((float(margin), compared + int(n)))
            compared += int(differing[0]) + 1 if len(differing) else len(theirs_N)
    margin, which = max(differences, default=(None, None))
    return Verification(largest, compared, which, margin)


def _generate(model: Any, ours: Greedy) -> np.ndarray:
    """The text as the model continues it, one token at a time, T."""
    import torch

    prompt = torch.from_numpy(ours.tokens_T[~ours.blank_T])[None]
    real = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=real, max_new_tokens=len(ours.chosen_N))[0].numpy()


def _infill(model: Any, ours: Greedy) -> np.ndarray:
    """The text as the model fills it, T."""
    import torch

    tokens, blank, rank = (torch.from_numpy(x)[None] for x in (ours.tokens_T, ours.blank_T, ours.rank_T))
    return model.infill(tokens, blank, INFILL_SIZE, rank)[0].numpy()


@contextlib.contextmanager
def _in_torch(folder: Path, settings: dict[str, Any]) -> Iterator[Any]:
    """A folder's model in float32, which goes on after an end token."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with _own_code(folder, settings) as own:
        kind = transformers.AutoModelForCausalLM if own is None else own
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        model.generation_config = transformers.GenerationConfig()  # greedy, whatever the folder's sampling defaults
        yield model


@contextlib.contextmanager
def _own_code(folder: Path, settings: dict[str, Any]) -> Iterator[Any]:
    """The class that the folder's own code defines; None if it has no code.

    It is imported from where it is: transformers would leave a copy of it in the user's cache.
    """
    if "auto_map" not in settings:
        yield None
        return
    package, wrote = types.ModuleType("exported_folder"), sys.dont_write_bytecode
    package.__path__ = [str(folder)]
    module, _, name = settings["auto_map"]["AutoModelForCausalLM"].partition(".")
    sys.modules[package.__name__], sys.dont_write_bytecode = package, True
    try:
        yield getattr(importlib.import_module(f"{package.__name__}.{module}"), name)
    finally:
        sys.dont_write_bytecode = wrote
        for imported in [name for name in sys.modules if name.split(".")[0] == package.__name__]:
            del sys.modules[imported]
