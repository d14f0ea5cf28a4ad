"""a3jax import: pretrained weights -> a model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from a3jax.commands.commandline import Json


@dataclass(frozen=True)
class Import:
    """Import pretrained autoregressive weights as a model folder. The same command goes on with an import that was stopped.

    a3jax import ~/models/SmolLM2-135M models/smollm2

    a3jax import HuggingFaceTB/SmolLM2-135M models/smollm2

    a3jax import .cache/SmolLM2-135M-Instruct.Q4_1.gguf models/infilling --adapters adapters/smollm2-135m-code
    """

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A Hugging Face folder (config.json, *.safetensors, tokenizer.json), a .gguf file, or the hub's OWNER/MODEL[@REV]."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The model folder to write."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights on disk; the source's own if not given."""
    start: str = "auto"
    """Token that documents and prompts of the model begin with, none, or auto: what its tokenizer puts there by itself."""
    adapters: Path | None = None
    """A folder written by `a3jax export --as adapters`, to be put on the weights that it was trained on."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102, the class says it
        from a3jax.model.parameters import count
        from a3jax.weights.importer import import_model
        from a3jax.weights.source import open_source

        source = open_source(self.source)
        if self.adapters is not None:
            from a3jax.weights.adapter_files import AdaptedSource

            source = AdaptedSource(source, self.adapters)
        model = import_model(source, self.out, self.dtype, self.start)
        return {"out": str(self.out), "family": model.family, "parameters": count(model), "context": model.context}
