"""What the authors' code for arXiv 2601.13228 does otherwise than a3jax, as it shows at step 0, in PyTorch.

a3jax export models/smollm2 smollm2-hf --as llama
python benchmarks/authors_code.py smollm2-hf

Two things of github.com/PKU-ML/Any-order-Any-subset-AR are measured. Its decoder layer adds the MLP's output to the
*normalized* residual, where Llama adds it to the residual. And its loss counts the padding of a device's sequences, which
stands behind the shorter ones and is the end token. Written from those two facts; none of its code is here.
"""

import ast
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from common import run, show
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Options:
    """Losses of a Llama at step 0 with the authors' layer and padding, and without.

    python benchmarks/authors_code.py smollm2-hf
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """A Hugging Face folder of a Llama with its tokenizer."""
    texts: int = 32
    """Functions and classes of Python's standard library."""
    together: int = 4
    """Sequences of a device, which are padded to the longest of them."""
    length: int = 1024
    """Tokens: longer texts are cut."""
    seed: int = 0
    json: bool = False


class Batch(NamedTuple):
    """Sequences padded to the longest, B x T, and which tokens are text."""

    ids: Tensor
    text: Tensor


def batches(options: Options) -> list[Batch]:
    """Texts in the order in which they were drawn, padded with the end token."""
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    drawn = random.Random(options.seed)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts: list[str] = []
    while len(texts) < options.texts:
        source = drawn.choice(files).read_text(encoding="utf-8", errors="ignore")
        nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        if nodes:
            texts.append(ast.get_source_segment(source, drawn.choice(nodes)) or "")
    ids = [torch.tensor(tokenizer(text)["input_ids"][: options.length]) for text in texts]
    found = []
    for begin in range(0, len(ids), options.together):
        some = ids[begin : begin + options.together]
        padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=tokenizer.eos_token_id)
        lengths = torch.tensor([len(one) for one in some])
        found.append(Batch(padded, torch.arange(padded.shape[1])[None] < lengths[:, None]))
    return found


def streams(model: Any, ids: Tensor, groups: Tensor, seed: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:
    """The last hidden states of content and query streams, B x T x D; `groups` is T, the same for all sequences."""
    body = model.model
    content = body.embed_tokens(ids)
    query = seed.expand_as(content)
    cos, sin = body.rotary_emb(content, torch.arange(ids.shape[1])[None])
    sees = groups[:, None] >= groups[None], groups[:, None] > groups[None]
    for layer in body.layers:
        content, query = _layer(layer, (content, query), sees, cos, sin, normalized)
    return body.norm(content), body.norm(query)


def _layer(
    layer: Any, both: tuple[Tensor, Tensor], sees: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, normalized: bool
) -> list[Tensor]:
    own = layer.self_attn

    def heads(projection: Any, x: Tensor) -> Tensor:
        return projection(x).unflatten(-1, (-1, own.head_dim)).transpose(1, 2)

    inputs = [layer.input_layernorm(x) for x in both]
    key, value = heads(own.k_proj, inputs[0]), heads(own.v_proj, inputs[0])
    result = []
    for x, before, mask in zip(inputs, both, sees, strict=True):
        asked, turned = apply_rotary_pos_emb(heads(own.q_proj, x), key, cos, sin)
        seen = F.scaled_dot_product_attention(asked, turned, value, mask, enable_gqa=True)
        seen = torch.where(mask.any(1)[None, None, :, None], seen, 0.0)
        x = before + own.o_proj(seen.transpose(1, 2).flatten(2))
        normal = layer.post_attention_layernorm(x)
        result.append((normal if normalized else x) + layer.mlp(normal))
    return result


class Losses(NamedTuple):
    """Nats, each a mean of another kind."""

    tokens: float
    """Over all tokens of texts."""
    with_padding: float
    """Over all places of a device's sequences, then over devices."""
    of_sequences: float
    """Over the tokens of a text, then over texts."""


def losses(nll: list[Tensor], counted: list[Tensor]) -> Losses:
    """Of the losses of every place of every batch, B x T each, and which places are text."""
    sums = [(x * m).sum(1) for x, m in zip(nll, counted, strict=True)]
    counts = [m.sum(1) for m in counted]
    total, number = torch.cat(sums), torch.cat(counts)
    padded = torch.stack([x.mean() for x in nll])
    return Losses(float(total.sum() / number.sum()), float(padded.mean()), float((total / number).mean()))


@torch.no_grad()
def main(options: Options) -> None:
    """One table: a row a stream, order and kind of layer."""
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32).eval()
    seed = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(options.seed))
    data = batches(options)
    kinds = ("source, from left to right", "two streams, from left to right", "two streams, random groups of 4")
    rows = []
    for normalized in (False, True):
        found: dict[str, tuple[list[Tensor], list[Tensor]]] = {kind: ([], []) for kind in kinds}

        def add(kind: str, hidden: Tensor, ids: Tensor, text: Tensor, found: Any = found) -> None:
            logits = model.lm_head(hidden)
            found[kind][0].append(F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids))
            found[kind][1].append(text)

        draw = torch.Generator().manual_seed(options.seed)
        for ids, text in data:
            place = torch.arange(ids.shape[1])
            content, query = streams(model, ids, place, seed, normalized)
            if not normalized and ids is data[0].ids:  # what is written here is the model that transformers has
                theirs = model.model(ids).last_hidden_state
                torch.testing.assert_close(content, theirs, atol=1e-3, rtol=1e-3)
            add(kinds[0], content[:, :-1], ids[:, 1:], text[:, 1:])
            add(kinds[1], query, ids, text)
            groups = (place // 4)[torch.randperm(len(place), generator=draw)]
            add(kinds[2], streams(model, ids, groups, seed, normalized)[1], ids, text)
        for kind in kinds:
            layer = "residual normalized" if normalized else "Llama's"
            rows.append({"stream and order": kind, "layer": layer, **losses(*found[kind])._asdict()})
    padding = 1 - sum(int(text.sum()) for _, text in data) / sum(text.numel() for _, text in data)
    what = f"{options.texts} texts of at most {options.length} tokens, {options.together} together: {padding:.0%} padding"
    show(f"Loss at step 0, nats, learned seed from N(0, 1); {what}", rows, options.json)


if __name__ == "__main__":
    run(main, Options)
