"""What the tests of weights compare: families, random inputs, and logits of our model and of a folder in PyTorch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from a3jax.checkpoint.folder import Checkpoint, load_params
from a3jax.model.two_stream import Compute, TwoStream, sort
from a3jax.ordering import Order, arrange

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES = {
    "llama": ("Llama", {"head_dim": 12}),
    "llama3": ("Llama", {"rope_theta": 1e4, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}}),
    "mistral": ("Mistral", {"head_dim": 12, "sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2", {}),
    "mixtral": ("Mixtral", {"head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "norm_topk_prob": True},
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
}


def tokens(length: int = 48) -> np.ndarray:
    """Two rows of random ids."""
    return np.random.default_rng(1).integers(0, 300, (2, length))


def random_groups(given: int, size: int, length: int = 48) -> np.ndarray:
    """Groups of `size` in random order behind `given` tokens, B x T."""
    rng = np.random.default_rng(size)
    return np.stack([np.concatenate([np.arange(given), given + rng.permutation(length - given) // size]) for _ in range(2)])


def query_logits(checkpoint: Checkpoint, tokens: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """What our model's query stream says, in token order."""
    config = checkpoint.config
    graph, params = nnx.graphdef(nnx.eval_shape(lambda: TwoStream(config, nnx.Rngs(0)))), load_params(checkpoint)
    group_BxL = jnp.asarray(groups, jnp.int32)
    given_BxL, segment_BxL = jnp.zeros_like(group_BxL, bool), jnp.ones_like(group_BxL)
    order = jax.vmap(lambda *row: arrange(*row, config.seeding))(group_BxL, given_BxL, segment_BxL)

    @jax.jit
    def logits(params: nnx.State, order: Order) -> jax.Array:
        network = nnx.merge(graph, params)
        hidden = network.query_hidden(jnp.asarray(tokens), order, Compute())
        return sort(hidden, jnp.argsort(order.token_index, 1)[..., None]) @ network.output_matrix[...].T

    return np.asarray(logits(params, order))


def torch_logits(folder: Path, tokens: np.ndarray, **how) -> np.ndarray:
    """What transformers says of a folder."""
    model = load(folder)
    with torch.no_grad():
        return model(torch.from_numpy(tokens), **{k: torch.from_numpy(v) for k, v in how.items()}).logits.numpy()


def load(folder: Path):
    """A folder's model in float32, with all tensors found and none left over."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()
