"""a3jax export: a checkpoint -> Hugging Face, PyTorch and GGUF."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from a3jax.commands.commandline import Json, OnDevices
from a3jax.devices.joined import ALONE, joined
from a3jax.devices.processes import several
from a3jax.errors import UserError


@dataclass(frozen=True)
class Export:
    """Write a checkpoint for PyTorch: the two-stream model, or its autoregressive view as the family's own class or GGUF.

    a3jax export demo/run exported --verify

    a3jax export demo/run exported-llama --as llama

    a3jax export demo/run exported.gguf --as gguf --dtype bfloat16

    a3jax export demo/run adapters/mine --as adapters --dtype bfloat16
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder or a run folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The Hugging Face folder, or the .gguf file, to write."""
    as_: Annotated[str, arg(name="as")] = "a3"
    """a3 for both streams (trust_remote_code), the model's family, such as llama, gguf, or adapters, without their source;
    peft for adapters of both streams in PEFT's layout."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; as saved if not given."""
    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    verify: bool = False
    """Run both sides, and compare their logits and the tokens they choose greedily. Ours runs on the devices of the mesh."""
    devices: OnDevices = ALONE
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.checkpoint.folder import find
        from a3jax.devices.writing import by_first
        from a3jax.export.exporter import ADAPTERS, GGUF, PEFT, export_model
        from a3jax.export.verify import require_torch, verify
        from a3jax.files.places import local_folder

        if self.verify and self.as_ in (GGUF, ADAPTERS, PEFT):
            raise UserError("--verify needs a folder that PyTorch loads; export it --as a3, or as the model's family, too")
        checkpoint = find(self.checkpoint, self.step)
        computes = self.verify or several(self.devices)  # devices may be another's, who trains
        with joined(self.devices) if computes else contextlib.nullcontext() as mesh:
            if self.verify:
                by_first(require_torch)
            by_first(lambda: export_model(checkpoint, self.out, self.as_, self.dtype))
            result: dict[str, Any] = {"out": str(self.out)}
            if self.verify:
                found = verify(checkpoint, local_folder(self.out), mesh)
                if found.problem:
                    raise UserError(f"{self.out}: {found.problem}; do not use this folder")
                result |= dataclasses.asdict(found)
            return result
