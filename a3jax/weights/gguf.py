"""A GGUF file as a source: quantized tensors become float32, names and layouts become Hugging Face's.

GGUF stores Llama query and key rows permuted for its own rotary embedding (pairs side by side instead of halves); they
are put back here. Its tokenizer is metadata, from which an equal `tokenizer.json` is built.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from a3jax.config import ModelConfig
from a3jax.errors import UserError
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
_SPLITS = {"smollm": None, "llama-bpe": _LLAMA3, "llama3": _LLAMA3}


class GgufFile(Source):
    """A GGUF file of the Llama architecture."""

    def __init__(self, path: Path):
        self.path = path
        try:
            reader = GGUFReader(path)
        except (ValueError, OSError, IndexError) as error:
            raise UserError(f"{path} is truncated or not a GGUF file ({error})") from None
        self._fields = reader.fields
        if (architecture := self._get("general.architecture")) != "llama":
            raise UserError(f"{path}: GGUF architecture '{architecture}' is not supported, only llama; import its folder")
        self._tensors = {_their_name(tensor.name): tensor for tensor in reader.tensors if tensor.name != "rope_freqs.weight"}
        self.config = self._read_config()
        self.tokenizer = self._build_tokenizer()
        self.record = Record(source=path.name, dequantized=True)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Source`."""
        return {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """See `Source`."""
        tensor = self._tensors[name]
        array = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        array = array.reshape([int(n) for n in tensor.shape[::-1]])
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            out, width = array.shape
            array = array.reshape(-1, self.config.head_width // 2, 2, width).swapaxes(1, 2).reshape(out, width)
        return array

    def _get(self, name: str, default: Any = None) -> Any:
        return self._fields[name].contents() if name in self._fields else default

    def _need(self, name: str) -> Any:
        if name not in self._fields:
            raise UserError(f"{self.path}: metadata '{name}' is missing")
        return self._fields[name].contents()

    def _read_config(self) -> ModelConfig:
        if "llama.rope.scaling.type" in self._fields:
            raise UserError(f"{self.path}: RoPE scaling inside a GGUF file is not supported; import the model's folder")
        heads, width = self._need("llama.attention.head_count"), self._need("llama.embedding_length")
        eps = np.float32(self._need("llama.attention.layer_norm_rms_epsilon"))
        end = self._get("tokenizer.ggml.eos_token_id")
        return ModelConfig(
            family="llama",
            vocab=len(self._need("tokenizer.ggml.tokens")),
            width=width,
            ff_width=self._need("llama.feed_forward_length"),
            layers=self._need("llama.block_count"),
            query_heads=heads,
            kv_heads=self._get("llama.attention.head_count_kv", heads),
            head_width=self._get("llama.attention.key_length", width // heads),
            context=self._need("llama.context_length"),
            norm_eps=float(str(eps)),  # the decimal that was meant, not its float32 neighbour
            rope_theta=float(self._get("llama.rope.freq_base", 10_000.0)),
            tied_head="lm_head.weight" not in self._tensors,
            start_token=self._get("tokenizer.ggml.bos_token_id"),
            end_tokens=() if end is None else (end,),
        )

    def _build_tokenizer(self) -> dict[str, bytes]:
        model, split = self._get("tokenizer.ggml.model"), self._get("tokenizer.ggml.pre")
        if model != "gpt2" or split not in _SPLITS:
            raise UserError(f"{self.path}: tokenizer '{model}/{split}' cannot be rebuilt; import the model's folder")
        tokens = self._need("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self._need("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        if _SPLITS[split] is None:
            first, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False, use_regex=True)
        else:
            first = pre_tokenizers.Split(Regex(_SPLITS[split]), "isolated")
            byte_level = pre_tokenizers.ByteLevel(False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        control = [t for t, kind in zip(tokens, self._get("tokenizer.ggml.token_type", []), strict=False) if kind == 3]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": self.config.context}
        for name, key in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]:
            if (token := self._get(f"tokenizer.ggml.{key}_token_id")) is not None:
                settings[f"{name}_token"] = tokens[token]
        if (template := self._get("tokenizer.chat_template")) is not None:
            settings["chat_template"] = template
        return {
            "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
            "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
        }


def _their_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; unknown ones keep theirs and are reported as unexpected."""
    if name.startswith("blk."):
        _, layer, rest = name.split(".", 2)
        return f"model.layers.{layer}.{_NAMES[rest]}" if rest in _NAMES else name
    return _NAMES.get(name, name)
