"""Does an exported folder, run in PyTorch, compute what the checkpoint computes in JAX?"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from a3jax.checkpoint import Checkpoint, load_arrays
from a3jax.errors import UserError
from a3jax.model.parameters import shapes
from a3jax.model.two_stream import Compute, TwoStream, sort
from a3jax.ordering import arrange
from a3jax.weights.a3_folder import MODEL_TYPE
from a3jax.weights.huggingface import read_json

BATCH, LENGTH, GIVEN = 2, 96, 8
GROUP_SIZES = (1, 3, 8)
TOLERANCE = 1e-2
"""Rounding of a deep model in float32 stays well below; a tensor in the wrong place or layout is far above."""


def require_torch() -> None:
    """Raise `UserError` if PyTorch or transformers is not installed."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        raise UserError("verification runs the exported model in PyTorch; pip install 'a3jax[torch]'") from None


def verify(checkpoint: Checkpoint, folder: Path) -> float:
    """The largest absolute logit difference over random tokens, both computed in float32 from the exported dtype.

    Compares the left-to-right view of the content stream and, for a two-stream folder, the query stream left to right
    and in random groups of several sizes behind a given prefix. The first token is never predicted, and its query, which
    sees nothing, is not compared. Raises `UserError` if PyTorch is not installed.
    """
    require_torch()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    settings = read_json(folder / "config.json")
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, checkpoint.config.vocab, (BATCH, min(LENGTH, checkpoint.config.context)))
    if checkpoint.config.start_token is not None:
        tokens[:, 0] = checkpoint.config.start_token
    orders = _orders(draw, tokens.shape) if settings["model_type"] == MODEL_TYPE else []
    ours = _jax_logits(checkpoint, tokens, orders, settings.get("torch_dtype") or settings.get("dtype", "float32"))
    trust = bool(orders)  # the code in the folder is our own
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust).eval()
    ids, largest = torch.from_numpy(tokens), 0.0
    with torch.no_grad():
        for expected, groups in zip(ours, [None, *orders]):
            how, first = ({}, 0) if groups is None else ({"groups": torch.from_numpy(groups)}, 1)
            difference = np.abs(model(ids, **how).logits.numpy() - expected)[:, first:].max()
            largest = float(np.maximum(largest, difference))  # unlike max(), keeps a NaN
    return largest


def _orders(draw: np.random.Generator, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Groups B x T: left to right, and random ones of each size after a few given tokens."""
    index = np.broadcast_to(np.arange(shape[1]), shape)
    given = min(GIVEN, shape[1] - 1)
    orders = [index.copy()]
    for size in GROUP_SIZES:
        later = given + draw.permuted(index[:, given:] - given, axis=1) // size
        orders.append(np.concatenate([index[:, :given], later], axis=1))
    return orders


def _jax_logits(checkpoint: Checkpoint, tokens: np.ndarray, orders: list[np.ndarray], dtype: str) -> list[np.ndarray]:
    """Logits B x T x V in token order: of the content stream left to right, then of the query stream in each order."""
    config = checkpoint.config
    arrays, params = load_arrays(checkpoint), shapes(config)
    if arrays["embedding"].dtype.name != dtype:  # the export was converted: compare with what was written
        arrays = jax.tree.map(lambda array: array.astype(dtype), arrays)
    nnx.replace_by_pure_dict(params, jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), arrays))
    graph = nnx.graphdef(nnx.eval_shape(lambda: TwoStream(config, nnx.Rngs(0))))
    how, token_BxL = Compute(), jnp.asarray(tokens)

    def logits(params: nnx.State, group_BxL: jax.Array, query: bool) -> jax.Array:
        network = nnx.merge(graph, params)
        nothing_BxL, document_BxL = jnp.zeros_like(group_BxL, bool), jnp.ones_like(group_BxL)
        order = jax.vmap(lambda g, given, s: arrange(g, given, s, config.seeding))(group_BxL, nothing_BxL, document_BxL)
        stream = network.query_hidden if query else network.content_hidden
        hidden = sort(stream(token_BxL, order, how), jnp.argsort(order.token_index, axis=1)[..., None])
        return hidden @ network.output_matrix[...].T

    logits = jax.jit(logits, static_argnames="query")
    left_to_right = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    with jax.default_matmul_precision("highest"):
        results = [logits(params, left_to_right, query=False)]
        results += [logits(params, jnp.asarray(groups, jnp.int32), query=True) for groups in orders]
    return [np.asarray(result) for result in results]
