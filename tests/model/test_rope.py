"""Frequencies of stretched rotary embeddings against those of transformers, from the same `config.json`."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from a3jax.config import Rope
from a3jax.model.rope import angles, attention_factor, frequencies, rotate
from a3jax.weights import configuration

LONG = {"short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5, 3.0, 4.0], "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0]}
KINDS = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn, not truncated": {"rope_type": "yarn", "factor": 8.0, "truncate": False, "beta_fast": 16, "beta_slow": 2},
    "yarn of DeepSeek": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8},
    "yarn with its own factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5},
    "longrope": {"rope_type": "longrope", **LONG},
    "longrope with its own factor": {"rope_type": "longrope", "factor": 16.0, **LONG},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("stretched", [False, True])
def test_frequencies_are_those_of_transformers(name, stretched):
    """Where they go by length, in a text within the original context, and in one beyond it."""
    rope = KINDS[name] | {"rope_theta": 500.0}
    lengths = {} if rope["rope_type"] in ("linear", "dynamic") else {"original_max_position_embeddings": 64}
    theirs = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=256, rope_parameters=rope | lengths
    )
    config = configuration.from_hf(json.loads(theirs.to_json_string()), "config.json")
    length = 300 if stretched else 60
    if rope["rope_type"] in ("longrope", "dynamic") and stretched:
        config = dataclasses.replace(config, context=length)
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, "cpu", seq_len=length)
    own = Rope(config.rope_theta, config.rope_scaling)
    np.testing.assert_allclose(frequencies(config, own), expected.numpy(), rtol=1e-5)
    assert attention_factor(own) == pytest.approx(factor, rel=1e-6)
    again = configuration.from_hf(configuration.to_hf(config, "float32"), "config.json")
    assert (again.rope_theta, again.rope_scaling) == (config.rope_theta, config.rope_scaling)


def test_what_does_not_turn_stays(tiny):
    config, rope = tiny(rotary_width=4), Rope()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 2, 8)), jnp.float32)
    cos, sin = angles(config, (rope, None), jnp.arange(5)[None] + 3)
    assert cos.shape == (1, 5, 2, 2)
    turned, still = (rotate(x, cos[:, :, i, None], sin[:, :, i, None]) for i in range(2))
    np.testing.assert_array_equal(still, x)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    assert (np.asarray(turned)[..., :4] != np.asarray(x)[..., :4]).all()
