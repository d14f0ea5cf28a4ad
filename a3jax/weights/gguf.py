"""A GGUF file as a source: quantized tensors become float32, names and layouts become Hugging Face's.

GGUF stores Llama query and key rows permuted for its own rotary embedding (pairs side by side instead of halves); they
are put back here. Its tokenizer is metadata, from which an equal `tokenizer.json` is built.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from a3jax.config import ModelConfig, RopeScaling
from a3jax.errors import UserError
from a3jax.model.rope import frequencies
from a3jax.record import Record
from a3jax.weights.source import Source

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}

# How a byte-level BPE splits text before merging, by the name that GGUF gives it.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False, use_regex=True)],
    "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
}
_WHOLE_WORDS = ("llama-bpe",)
"""Tokenizers where a word that is a token is taken as it is, whether or not merges lead to it."""
_CONTROL, _USER_DEFINED = 3, 4  # token types


class GgufFile(Source):
    """A GGUF file of the Llama architecture."""

    def __init__(self, path: Path):
        self.path = path
        reader = open_gguf(path)
        self._metadata = {name: field.contents() for name, field in reader.fields.items()}
        if (architecture := self._get("general.architecture")) != "llama":
            raise UserError(f"{path}: GGUF architecture '{architecture}' is not supported, only llama; import its folder")
        self._tensors = {_their_name(tensor.name): tensor for tensor in reader.tensors}
        self._rope_freqs = self._tensors.pop("rope_freqs.weight", None)
        self.config = self._read_config()
        self.tokenizer = self._build_tokenizer()
        self.record = Record(source=path.name, dequantized=True)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Source`."""
        return {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """See `Source`."""
        tensor = self._tensors[name]
        try:
            array = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError:
            raise UserError(
                f"{self.path}: tensor {name} has type {tensor.tensor_type.name}, which gguf cannot read"
            ) from None
        array = array.reshape([int(n) for n in tensor.shape[::-1]])
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            out, width = array.shape
            array = array.reshape(-1, self.config.head_width // 2, 2, width).swapaxes(1, 2).reshape(out, width)
        return array

    def _get(self, name: str, default: Any = None) -> Any:
        return self._metadata.get(name, default)

    def _need(self, name: str, kind: type = int) -> Any:
        if name not in self._metadata:
            raise UserError(f"{self.path}: metadata '{name}' is missing")
        value = self._metadata[name]
        if not isinstance(value, kind) or not value:
            raise UserError(f"{self.path}: metadata '{name}' is {str(value)[:40]}; expected one {kind.__name__}")
        return value

    def _token(self, name: str) -> int | None:
        """The id of the token that plays a role such as "bos"."""
        token = self._get(f"tokenizer.ggml.{name}_token_id")
        if token is not None and token >= len(self._need("tokenizer.ggml.tokens", list)):
            raise UserError(f"{self.path}: metadata 'tokenizer.ggml.{name}_token_id' is {token}, beyond the last token")
        return token

    def _read_config(self) -> ModelConfig:
        if self._get("llama.rope.scaling.type", "none") != "none":
            raise UserError(f"{self.path}: RoPE scaling inside a GGUF file is not supported; import the model's folder")
        heads, width = self._need("llama.attention.head_count"), self._need("llama.embedding_length")
        head_width = self._get("llama.attention.key_length", width // heads)
        if self._get("llama.rope.dimension_count", head_width) != head_width:
            raise UserError(f"{self.path}: partial rotary embedding is not supported")
        eps = np.float32(self._need("llama.attention.layer_norm_rms_epsilon", float))
        end = self._token("eos")
        config = ModelConfig(
            family="llama",
            vocab=self._get("llama.vocab_size") or len(self._need("tokenizer.ggml.tokens", list)),
            width=width,
            ff_width=self._need("llama.feed_forward_length"),
            layers=self._need("llama.block_count"),
            query_heads=heads,
            kv_heads=self._get("llama.attention.head_count_kv", heads),
            head_width=head_width,
            context=self._need("llama.context_length"),
            norm_eps=float(str(eps)),  # the decimal that was meant, not its float32 neighbour
            rope_theta=float(self._get("llama.rope.freq_base", 10_000.0)),
            tied_head="lm_head.weight" not in self._tensors,
            start_token=self._token("bos"),
            end_tokens=() if end is None else (end,),
        )
        if self._rope_freqs is None:
            return config
        # Llama 3's frequency scaling is stored as a divisor of every frequency; the longest wave has the whole factor.
        divisor = np.asarray(self._rope_freqs.data, np.float32).ravel()
        scaled = replace(config, rope_scaling=RopeScaling(float(divisor.max()), 1.0, 4.0, 8192))
        expected = frequencies(config) / frequencies(scaled)
        if divisor.shape != expected.shape or not np.allclose(divisor, expected, rtol=1e-3):
            raise UserError(f"{self.path}: rope_freqs.weight is not the scaling of Llama 3; import the model's folder")
        return scaled

    def _build_tokenizer(self) -> dict[str, bytes]:
        model, split = self._get("tokenizer.ggml.model"), self._get("tokenizer.ggml.pre")
        if model != "gpt2" or split not in _SPLITS:
            raise UserError(f"{self.path}: tokenizer '{model}/{split}' cannot be rebuilt; import the model's folder")
        tokens = self._need("tokenizer.ggml.tokens", list)
        merges = [tuple(merge.split(" ")) for merge in self._need("tokenizer.ggml.merges", list)]
        ids = {token: i for i, token in enumerate(tokens)}
        try:
            tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=split in _WHOLE_WORDS))
        except Exception as error:  # tokenizers raises plain Exception
            raise UserError(f"{self.path}: the tokenizer's merges do not fit its tokens ({error})") from None
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[split])
        tokenizer.decoder = decoders.ByteLevel()
        kinds = list(zip(tokens, self._get("tokenizer.ggml.token_type", [])))
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == _CONTROL])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == _USER_DEFINED])
        if self._get("tokenizer.ggml.add_bos_token") and (start := self._token("bos")) is not None:
            bos = tokens[start]
            tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, start)])
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": self.config.context}
        for name, key in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]:
            if (token := self._token(key)) is not None:
                settings[f"{name}_token"] = tokens[token]
        if (template := self._get("tokenizer.chat_template")) is not None:
            settings["chat_template"] = template
        return {
            "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
            "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
        }


def open_gguf(path: Path) -> GGUFReader:
    """The file's metadata and tensors, mapped into memory. Raises `UserError` if it is truncated or no GGUF file."""
    try:
        reader = GGUFReader(path)
        for field in reader.fields.values():
            field.contents()
    except Exception as error:  # the reader trusts the file, and fails in many ways where it must not
        raise UserError(f"{path} is truncated or not a GGUF file ({type(error).__name__}: {error})") from None
    return reader


def _their_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; unknown ones keep theirs and are reported as unexpected."""
    if name.startswith("blk."):
        _, layer, rest = name.split(".", 2)
        return f"model.layers.{layer}.{_NAMES[rest]}" if rest in _NAMES else name
    return _NAMES.get(name, name)
