"""A GGUF file as a source: quantized tensors become float32, names and layouts become Hugging Face's.

Its tokenizer is metadata, from which an equal `tokenizer.json` is built.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, dequantize

from a3jax.checkpoint.provenance import Provenance
from a3jax.config import Experts, ModelConfig
from a3jax.data.tokenizer import with_start
from a3jax.errors import UserError, shown
from a3jax.weights.families import ROPE_BASE, family_of
from a3jax.weights.gguf.experts import unstacked
from a3jax.weights.gguf.layout import (
    ARCHITECTURES,
    EXPERT_WIDTH,
    EXPERTS,
    FIELDS,
    HEAD_WIDTHS,
    ROPE_DIVISORS,
    from_pairs,
    rope_scaling,
    to_hugging_face,
)
from a3jax.weights.gguf.metadata import Metadata, open_gguf
from a3jax.weights.gguf.tokenizer import to_files
from a3jax.weights.source import Source

PLAIN = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
"""Types that are kept as they are."""


class GgufFile(Source):
    """A GGUF file of one of the architectures in the table."""

    def __init__(self, path: Path):
        self.path = path
        reader = open_gguf(path)
        self._metadata = Metadata(path, reader)
        name = self._metadata.get("general.architecture")
        mixed = bool(self._metadata.get(f"{name}.{EXPERTS['count']}"))
        known = {(one.name, one.normalized is not None): one for one in ARCHITECTURES}
        if (name, mixed) not in known:
            what, names = " with experts" * mixed, dict.fromkeys(name for name, _ in known)
            raise UserError(
                f"{path}: GGUF architecture '{name}'{what} is not supported, only {', '.join(names)}; import its folder"
            )
        self._architecture = known[name, mixed]
        by_name = {to_hugging_face(tensor.name): tensor for tensor in reader.tensors}
        self._tensors = unstacked(by_name, self._architecture.families[0])
        if len(by_name) < len(reader.tensors):
            raise UserError(f"{path} holds a tensor twice, by llama.cpp's name and by that of a Hugging Face folder")
        divisors, _ = self._tensors.pop(ROPE_DIVISORS, (None, None))
        config = self._read_config(None if divisors is None else np.asarray(divisors.data, np.float32).ravel())
        self.tokenizer = to_files(self._metadata, config.context)
        self.config = with_start(config, self.tokenizer, f"{path}: tokenizer.json")
        quantized = any(tensor.tensor_type not in PLAIN for tensor, _ in self._tensors.values())
        embedding = self._tensors.get("model.embed_tokens.weight")
        dtype = "float32" if embedding is None else self.dtype("model.embed_tokens.weight").name
        self.record = Provenance(source=path.name, dtype=dtype, dequantized=quantized)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Source`."""
        found = {name: ([int(n) for n in tensor.shape[::-1]], x) for name, (tensor, x) in self._tensors.items()}
        return {name: tuple(shape if x is None else shape[1:]) for name, (shape, x) in found.items()}

    def dtype(self, name: str) -> np.dtype:
        """See `Source`."""
        return PLAIN.get(self._tensors[name][0].tensor_type, np.dtype(np.float32))

    def read(self, name: str) -> np.ndarray:
        """See `Source`."""
        tensor, x = self._tensors[name]
        shape = [int(n) for n in tensor.shape[::-1]]
        data, shape = (tensor.data, shape) if x is None else (tensor.data[x], shape[1:])
        try:
            plain = tensor.tensor_type in PLAIN
            array = data.view(self.dtype(name)) if plain else dequantize(data, tensor.tensor_type)
        except NotImplementedError:
            raise UserError(f"{self.where(name)} has type {tensor.tensor_type.name}, which gguf cannot read") from None
        array = np.asarray(array).reshape(shape)
        return from_pairs(name, array, self._architecture, self.config.head_width)

    def _read_config(self, divisors: np.ndarray | None) -> ModelConfig:
        """The configuration; `divisors` are those of RoPE frequencies, if the file has them."""
        metadata, prefix, family = self._metadata, self._architecture.name, family_of(self._architecture.families[0])
        self._check_computation(prefix)

        def number(field: str, kind: type = int, default: Any = None) -> Any:
            return metadata.need(f"{prefix}.{FIELDS[field]}", kind, default)

        heads, width = number("query_heads"), number("width")
        kv_heads, head_width = number("kv_heads", default=heads), number("head_width", default=width // heads)
        if heads % kv_heads:
            raise UserError(f"{self.path}: {heads} query heads cannot share {kv_heads} key-value heads")
        for name in HEAD_WIDTHS:
            if metadata.get(f"{prefix}.{name}", head_width) != head_width:
                raise UserError(f"{self.path}: metadata '{prefix}.{name}' is not the head width, which is not supported")
        ff_width = number("ff_width")
        if self._architecture.normalized is not None:
            ff_width = metadata.need(f"{prefix}.{EXPERT_WIDTH}", default=ff_width)
        ends = [token for role in ("eos", "eot", "eom") if (token := metadata.token(role)) is not None]
        config = ModelConfig(
            family=family.name,
            vocab=number("vocab", default=len(metadata.need("tokenizer.ggml.tokens", list))),
            width=width,
            ff_width=ff_width,
            layers=number("layers"),
            query_heads=heads,
            kv_heads=kv_heads,
            head_width=head_width,
            context=number("context"),
            norm_eps=_decimal(number("norm_eps", float)),
            rope_theta=_decimal(number("rope_theta", float, ROPE_BASE)),
            tied_head="lm_head.weight" not in self._tensors,
            **family.features,
            experts=self._read_experts(prefix),
            start_token=metadata.token("bos"),
            end_tokens=tuple(dict.fromkeys(ends)),
        )
        if divisors is None:
            return config
        if (scaling := rope_scaling(config, divisors)) is None:
            raise UserError(f"{self.path}: {ROPE_DIVISORS} is not the scaling of Llama 3; import the model's folder")
        return replace(config, rope_scaling=scaling)

    def _read_experts(self, prefix: str) -> Experts | None:
        if self._architecture.normalized is None:
            return None
        count, active = (self._metadata.need(f"{prefix}.{name}") for name in EXPERTS.values())
        return Experts(count, active, self._architecture.normalized)

    def _check_computation(self, prefix: str) -> None:
        """Raise `UserError` for metadata by which llama.cpp computes what we do not.

        As it reads them: RoPE without a type scales linearly, by `scale_linear` in older files; a factor of 0 is none.
        """
        scaling = f"{prefix}.rope.scaling"
        factor = self._metadata.get(f"{scaling}.factor", self._metadata.get(f"{prefix}.rope.scale_linear", 0))
        kind = self._metadata.get(f"{scaling}.type", "linear")
        if kind not in ("none", "linear") or (kind == "linear" and factor not in (0, 1)):
            what = f"RoPE scaling inside a GGUF file ({shown(kind)}, factor {shown(factor)})"
            raise UserError(f"{self.path}: {what} is not supported; import the model's folder")
        for name, usual in {f"{scaling}.attn_factor": 1, f"{prefix}.attention.causal": True}.items():
            if (value := self._metadata.get(name, usual)) != usual:
                raise UserError(f"{self.path}: metadata '{name}' is {shown(value)}, which is not supported")


def _decimal(value: float) -> float:
    """The decimal that was meant by a float32, not its neighbour."""
    return float(str(np.float32(value)))
