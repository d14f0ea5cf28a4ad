"""Models with adapters in PyTorch: with both streams, from left to right as plain weights, and back again."""

import jax
import numpy as np
import pytest
from flax import nnx
from small_models import query_logits, random_groups, tokens, torch_logits

from a3jax.checkpoint.folder import Checkpoint, find, load_arrays, save_model
from a3jax.checkpoint.provenance import Provenance
from a3jax.data.tokenizer import byte_codec
from a3jax.export.exporter import export_model
from a3jax.export.verify import verify
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source


@pytest.fixture(scope="module", params=["query", "both"])
def adapted(request, tiny, network, tmp_path_factory) -> Checkpoint:
    config = tiny(layers=2, vocab=300, adapter_rank=3, adapter_stream=request.param, start_token=256, end_tokens=(257,))
    params = nnx.to_pure_dict(nnx.state(network(config), nnx.Param))
    out = tmp_path_factory.mktemp("adapted") / "model"
    save_model(out, config, params, Provenance("random"), byte_codec().files)
    return find(out)


def test_both_streams_in_pytorch_and_back(adapted, tmp_path):
    export_model(adapted, tmp_path / "out")
    for groups in (random_groups(6, 4), np.stack([np.arange(48) // 3] * 2)):
        ours = query_logits(adapted, tokens(), groups)
        theirs = torch_logits(tmp_path / "out", tokens(), groups=groups)
        np.testing.assert_allclose(theirs[:, 6:], ours[:, 6:], atol=1e-4)
    found = verify(adapted, tmp_path / "out")
    assert found.problem is None, found
    import_model(open_source(tmp_path / "out"), tmp_path / "again")
    again = find(tmp_path / "again")
    if adapted.config.adapter_stream == "query":
        assert again.config == adapted.config
        jax.tree.map(np.testing.assert_array_equal, load_arrays(again), load_arrays(adapted))
    else:  # added into the weights
        assert again.config.adapter_rank == 0
        groups = random_groups(6, 4)
        np.testing.assert_allclose(
            query_logits(again, tokens(), groups)[:, 6:], query_logits(adapted, tokens(), groups)[:, 6:], atol=1e-4
        )


def test_plain_weights_are_the_content_stream(adapted, tmp_path):
    export_model(adapted, tmp_path / "out", style="llama")
    in_order = np.stack([np.arange(48)] * 2)
    ours = query_logits(adapted, tokens(), in_order)
    np.testing.assert_allclose(torch_logits(tmp_path / "out", tokens())[:, :-1], ours[:, 1:], atol=1e-4)
    assert verify(adapted, tmp_path / "out").problem is None
    if adapted.config.adapter_stream == "query":
        arrays = load_arrays(adapted)
        import_model(open_source(tmp_path / "out"), tmp_path / "again")
        for name, array in load_arrays(find(tmp_path / "again"))["blocks"].items():
            np.testing.assert_array_equal(array, arrays["blocks"][name])
