"""Models with adapters in PyTorch: with both streams, from left to right as plain weights, and back again."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from model_folders import load_arrays, save_model
from safetensors.numpy import load_file
from small_models import load, query_logits, random_groups, tokens, torch_logits

from a3jax.checkpoint.folder import Checkpoint, Frozen, find
from a3jax.checkpoint.provenance import Provenance
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.export.exporter import export_model
from a3jax.export.verify import verify
from a3jax.model.parameters import declarations
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source


@pytest.fixture(scope="module", params=[("query", "two_sided"), ("both", "successor")], ids="".join)
def adapted(request, tiny, network, tmp_path_factory) -> Checkpoint:
    stream, seeding = request.param
    changes = {"adapter_rank": 3, "adapter_stream": stream, "seeding": seeding}
    config = tiny(layers=2, vocab=300, start_token=256, end_tokens=(257,), **changes)
    params = nnx.to_pure_dict(nnx.state(network(config), nnx.Param))
    out = tmp_path_factory.mktemp("adapted") / "model"
    save_model(out, config, params, Provenance("random"), byte_codec().files)
    return find(out)


@pytest.mark.long
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


def test_adapters_of_both_streams_in_pefts_layout(adapted, tmp_path):
    """Added to the source's weights by hand they are what the plain export holds, and so they are in PEFT."""
    arrays, config = load_arrays(adapted), dataclasses.replace(adapted.config, adapter_rank=0)
    base = {name: array for name, array in arrays["blocks"].items() if not name.endswith(("_in", "_out"))}
    save_model(tmp_path / "base", config, arrays | {"blocks": base}, Provenance("random"), byte_codec().files)
    export_model(find(tmp_path / "base"), tmp_path / "source", style="llama")
    frozen = [name for name in declarations(config) if name != "query_seed"]
    record = Provenance(str(tmp_path / "source"), steps=5)
    trained = dataclasses.replace(adapted, record=record, frozen=Frozen("base", "", tuple(frozen)))
    if adapted.config.adapter_stream == "query":
        with pytest.raises(UserError, match="no adapters of both streams"):
            export_model(trained, tmp_path / "out", style="peft")
        return
    for known in (None, Frozen("base", "", ("head",))):
        less = dataclasses.replace(trained, frozen=known)
        with pytest.raises(UserError, match="trained more than adapters; export it as 'llama'"):
            export_model(less, tmp_path / "out", style="peft")
    export_model(trained, tmp_path / "out", style="peft")
    export_model(trained, tmp_path / "merged", style="llama")
    files = [file for folder in ("source", "out", "merged") for file in (tmp_path / folder).glob("*.safetensors")]
    source, own, merged = map(load_file, files)
    for name, weight in merged.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        change = own[f"{module}.lora_B.weight"] @ own[f"{module}.lora_A.weight"] if f"{module}.lora_A.weight" in own else 0
        np.testing.assert_allclose(source[name] + change, weight, atol=1e-6)
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.PeftModel.from_pretrained(load(tmp_path / "source"), tmp_path / "out")
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens())).logits.numpy()
    np.testing.assert_allclose(theirs, torch_logits(tmp_path / "merged", tokens()), atol=1e-4)
