"""a3jax import, inspect, export: weights in and out."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from a3jax.commands.commandline import Json
from a3jax.errors import UserError


@dataclass(frozen=True)
class Import:
    """Import pretrained autoregressive weights as a model folder. The same command goes on with an import that was stopped.

    a3jax import ~/models/SmolLM2-135M models/smollm2

    a3jax import HuggingFaceTB/SmolLM2-135M models/smollm2
    """

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A Hugging Face folder (config.json, *.safetensors, tokenizer.json), a .gguf file, or the hub's OWNER/MODEL[@REV]."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The model folder to write."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights on disk; the source's own if not given."""
    start: str = "auto"
    """Token that documents and prompts of the model begin with, none, or auto: what its tokenizer puts there by itself."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102, the class says it
        from a3jax.model.parameters import count
        from a3jax.weights.importer import import_model
        from a3jax.weights.source import open_source

        model = import_model(open_source(self.source), self.out, self.dtype, self.start)
        return {"out": str(self.out), "family": model.family, "parameters": count(model), "context": model.context}


@dataclass(frozen=True)
class Inspect:
    """Say what a model, run, export, corpus or GGUF file is, without loading it.

    a3jax inspect runs/demo
    """

    path: Annotated[Positional[Path], arg(metavar="PATH")]
    """A model folder, a run folder, a Hugging Face folder, a corpus folder or a .gguf file."""
    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.show.describe import describe

        return describe(self.path, self.step)


@dataclass(frozen=True)
class Export:
    """Write a checkpoint for PyTorch: the two-stream model, or its autoregressive view as the family's own class or GGUF.

    a3jax export runs/demo exported --verify

    a3jax export runs/demo exported-llama --as llama

    a3jax export runs/demo exported.gguf --as gguf --dtype bfloat16
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder or a run folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The Hugging Face folder, or the .gguf file, to write."""
    as_: Annotated[str, arg(name="as")] = "a3"
    """a3 for both streams (trust_remote_code), or the model's family, such as llama, or gguf."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; as saved if not given."""
    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    verify: bool = False
    """Run both sides, and compare their logits and the tokens they choose greedily."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.checkpoint.folder import find
        from a3jax.export.exporter import GGUF, export_model
        from a3jax.export.verify import require_torch, verify

        if self.verify:
            if self.as_ == GGUF:
                raise UserError("--verify needs a folder that PyTorch loads; export it --as the model's family too")
            require_torch()
        checkpoint = find(self.checkpoint, self.step)
        export_model(checkpoint, self.out, self.as_, self.dtype)
        result: dict[str, Any] = {"out": str(self.out)}
        if self.verify:
            found = verify(checkpoint, self.out)
            if found.problem:
                raise UserError(f"{self.out}: {found.problem}; do not use this folder")
            result |= dataclasses.asdict(found)
        return result
