"""Quantized folders: dequantized they are what each format's own reference makes of the same parts, or refused in one line.

GPTQ and AWQ are packed here number by number, as their definitions say; FP8 and MXFP4 are held against transformers.
"""

import json
import math
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from a3jax.checkpoint.folder import find, load_params
from a3jax.errors import UserError
from a3jax.weights.importer import import_model
from a3jax.weights.pretrained import pretrained as pretrained_as_it_is
from a3jax.weights.source import open_source

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight numbers stands in each place of a word, from AutoAWQ's packing."""


def packed(numbers, bits, order=None):
    """Words of int32 of numbers, 32 / bits of them along the last axis, one at a time in Python's integers."""
    count = 32 // bits
    result = np.zeros((*numbers.shape[:-1], math.ceil(numbers.shape[-1] / count)), np.uint32)
    for place in np.ndindex(numbers.shape):
        word, within = divmod(place[-1], count)
        bit = bits * (within if order is None else order.index(within))
        result[(*place[:-1], word)] |= np.uint32(int(numbers[place]) << bit)
    return torch.from_numpy(result.view(np.int32))


def gptq(weight, draw, bits=4, groups=4, shuffled=True, less=1):
    """The parts of a weight of O x I, and the weight that they are."""
    outputs, inputs = weight.shape
    group_I = np.arange(inputs) // (inputs // groups)
    group_I = draw.permutation(group_I) if shuffled else group_I
    zero_GxO, number_IxO = (draw.integers(0, 2**bits, shape) for shape in ((groups, outputs), (inputs, outputs)))
    scale_GxO = draw.uniform(0.01, 0.1, (groups, outputs)).astype(np.float16)
    expected = [
        [float(scale_GxO[group_I[i], o]) * (number_IxO[i, o] - zero_GxO[group_I[i], o]) for i in range(inputs)]
        for o in range(outputs)
    ]
    parts = {"qweight": packed(number_IxO.T, bits).T.contiguous(), "scales": torch.from_numpy(scale_GxO)}
    parts["qzeros"] = packed((zero_GxO - less) % 2**bits, bits)
    if shuffled:
        parts["g_idx"] = torch.from_numpy(group_I.astype(np.int32))
    return parts, np.array(expected, np.float32)


def awq(weight, draw, groups=4):
    outputs, inputs = weight.shape
    number_IxO, zero_GxO = draw.integers(0, 16, (inputs, outputs)), draw.integers(0, 16, (groups, outputs))
    scale_GxO = draw.uniform(0.01, 0.1, (groups, outputs)).astype(np.float16)
    parts = {"qweight": packed(number_IxO, 4, AWQ_ORDER), "qzeros": packed(zero_GxO, 4, AWQ_ORDER)}
    size = inputs // groups
    expected = [
        [float(scale_GxO[i // size, o]) * (number_IxO[i, o] - zero_GxO[i // size, o]) for i in range(inputs)]
        for o in range(outputs)
    ]
    return parts | {"scales": torch.from_numpy(scale_GxO)}, np.array(expected, np.float32)


def fp8(weight, draw, block=(4, 16), scale="weight_scale_inv"):
    values = torch.from_numpy(draw.normal(size=weight.shape).astype(np.float32) * 50).to(torch.float8_e4m3fn)
    blocks = [n // size for n, size in zip(weight.shape, block)]
    factors = torch.from_numpy(draw.uniform(0.001, 0.01, blocks).astype(np.float32))
    expected = Fp8Dequantize(None)._dequantize_one(values, factors, torch.float32)
    if block[1] == weight.shape[1]:
        factors = factors.reshape(-1) if len(factors) == 1 else factors
    return {"weight": values, scale: factors}, expected.numpy()


def four_bits(weight, draw):
    outputs, inputs = weight.shape
    bytes_ = torch.from_numpy(draw.integers(0, 256, (outputs, inputs // 2), np.uint8))
    powers = torch.from_numpy(draw.integers(110, 130, (outputs, inputs // 32), np.uint8))
    expected = convert_moe_packed_tensors(bytes_.reshape(1, outputs, -1, 16), powers[None], dtype=torch.float32)[0].T
    return {"weight_packed": bytes_, "weight_scale": powers}, expected.numpy()


COMPRESSED = {"quant_method": "compressed-tensors"}
FORMATS = {
    "GPTQ, groups shuffled": ({"quant_method": "gptq", "bits": 4}, gptq),
    "GPTQ, 8 bits, in order": ({"quant_method": "gptq", "bits": 8}, lambda *a: gptq(*a, bits=8, shuffled=False)),
    "GPTQ, version 2, 2 bits": (
        {"quant_method": "gptq", "bits": 2, "checkpoint_format": "gptq_v2"},
        lambda *a: gptq(*a, bits=2, groups=1, less=0),
    ),
    "AWQ": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, awq),
    "FP8 in blocks": ({"quant_method": "fp8", "weight_block_size": [4, 16]}, fp8),
    "FP8 per tensor": ({"quant_method": "fp8"}, lambda w, draw: fp8(w, draw, w.shape)),
    "FP8 by rows": ({"quant_method": "fbgemm_fp8"}, lambda w, draw: fp8(w, draw, (1, w.shape[1]), "weight_scale")),
    "FP8 of llm-compressor": (
        COMPRESSED | {"format": "float-quantized"},
        lambda w, draw: fp8(w, draw, (1, w.shape[1]), "weight_scale"),
    ),
    "MXFP4": (COMPRESSED | {"format": "mxfp4-pack-quantized"}, four_bits),
}


def quantized(folder, out, settings, pack):
    """A copy of a folder with its projections quantized, and the same folder with what they are, plain."""
    tensors, draw = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    plain = dict(tensors)
    for name, tensor in list(plain.items()):
        if "layers.1" not in name or not name.endswith(("_proj.weight", ".w1.weight")) or tensor.shape[1] % 32:
            continue
        parts, expected = pack(tensor.numpy(), draw)
        del tensors[name]
        tensors |= {name.removesuffix("weight") + part: value.clone() for part, value in parts.items()}
        tensors |= {name.removesuffix("weight") + "input_scale": torch.ones(1)} if "weight" in parts else {}
        plain[name] = torch.from_numpy(expected.copy())
    for kind, content in (("quantized", tensors), ("plain", plain)):
        shutil.copytree(folder, out / kind)
        save_file(content, out / kind / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (out / "quantized" / "config.json").write_text(json.dumps(config))
    return out / "quantized", out / "plain"


def as_rounded(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=0)


def few(names, kept):
    """Parameters of a test; all but those kept are left to the long tests."""
    return [pytest.param(name, marks=[] if name in kept else [pytest.mark.long]) for name in names]


@pytest.mark.parametrize("name", few(FORMATS, ("GPTQ, groups shuffled", "AWQ", "FP8 in blocks", "MXFP4")))
def test_a_quantized_folder_is_what_its_format_means(name, pretrained, tmp_path):
    folder, plain = quantized(pretrained("qwen2"), tmp_path, *FORMATS[name])
    source, expected = open_source(folder), open_source(plain)
    assert source.shapes() == expected.shapes()
    assert source.record.dequantized
    assert source.record.origin.startswith(f"dequantized from {name.split()[0].strip(',')}")
    for tensor in expected.shapes():
        as_rounded(source.read(tensor), expected.read(tensor))
    part = (slice(3, 7), slice(8, 20))
    projection = "model.layers.1.self_attn.q_proj.weight"
    as_rounded(source.read_part(projection, part), expected.read(projection)[part])


@pytest.mark.parametrize("case", ["mixtral", pytest.param("qwen3_moe", marks=pytest.mark.long)])
def test_experts_are_dequantized_one_by_one(case, pretrained, tmp_path):
    """An import, and a load straight from the folder."""
    folder, plain = quantized(pretrained(case), tmp_path, *FORMATS["FP8 in blocks"])
    import_model(open_source(folder), tmp_path / "model")
    import_model(open_source(plain), tmp_path / "expected")
    expected = load_params(find(tmp_path / "expected"))
    jax.tree.map(as_rounded, load_params(find(tmp_path / "model")), expected)
    jax.tree.map(as_rounded, pretrained_as_it_is(folder).load(), expected)


@pytest.mark.parametrize("damage", [None, pytest.param("scales", marks=pytest.mark.long)])
def test_experts_of_openai_s_layout(damage, pretrained, tmp_path):
    """A gpt-oss whose gates are in four bits, read expert by expert, against transformers' own dequantization."""
    draw, gates = np.random.default_rng(0), "mlp.experts.gate_up_proj"
    tensors = load_file(pretrained("gpt_oss") / "model.safetensors")
    plain = dict(tensors)
    for name in [name for name in tensors if name.endswith(gates)]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = torch.from_numpy(draw.integers(0, 256, (experts, outputs, inputs // 32, 16), np.uint8))
        scales = torch.from_numpy(draw.integers(115, 125, (experts, outputs, inputs // 32), np.uint8))
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales[1:] if damage else scales}
        plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    for kind, content in (("quantized", tensors), ("plain", plain)):
        shutil.copytree(pretrained("gpt_oss"), tmp_path / kind)
        save_file({name: one.contiguous() for name, one in content.items()}, tmp_path / kind / "model.safetensors")
    config = json.loads((tmp_path / "plain" / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(config))
    if damage:
        with pytest.raises(UserError, match=r"gate_up_proj_scales is uint8 of shape .* its quantization asks for"):
            open_source(tmp_path / "quantized")
        return
    source, expected = (open_source(tmp_path / kind) for kind in ("quantized", "plain"))
    assert source.record.origin.startswith("dequantized from MXFP4")
    assert source.shapes() == expected.shapes()
    for name in source.shapes():
        np.testing.assert_array_equal(source.read(name), expected.read(name), err_msg=name)
    np.testing.assert_array_equal(
        source.read("model.layers.0.mlp.experts.2.up_proj.weight"),
        plain[f"model.layers.0.{gates}"][2, :, 1::2].T.numpy(),
    )
    part = (slice(3, 7), slice(8, 20))
    one = "model.layers.1.mlp.experts.3.gate_proj.weight"
    np.testing.assert_array_equal(source.read_part(one, part), expected.read(one)[part])


def without(part):
    def change(tensors):
        return {name: tensor for name, tensor in tensors.items() if name != f"model.layers.1.self_attn.q_proj.{part}"}

    return change


def cut(part):
    def change(tensors):
        name = f"model.layers.1.self_attn.q_proj.{part}"
        return tensors | {name: tensors[name][1:].clone()}

    return change


WRONG = {
    "another method": (
        "AWQ",
        {"quant_method": "bitsandbytes"},
        None,
        "quant_method 'bitsandbytes' is not supported; known are",
    ),
    "no method": ("AWQ", {"quant_method": []}, None, "quant_method .* is not supported"),
    "another version": ("AWQ", {"version": "gemv"}, None, "version 'gemv' is not supported; only gemm"),
    "three bits": ("GPTQ, groups shuffled", {"bits": 3}, None, "bits 3 is not supported; only 4, 2, 8"),
    "another layout": ("GPTQ, groups shuffled", {"checkpoint_format": "marlin"}, None, "checkpoint_format 'marlin' is not"),
    "whole numbers": ("MXFP4", {"format": "pack-quantized"}, None, "quant_method 'compressed-tensors pack-quantized'"),
    "no zero points": ("GPTQ, groups shuffled", {}, without("qzeros"), "q_proj.qzeros is missing from the weights"),
    "scales that do not fit": ("AWQ", {}, cut("scales"), r"qzeros is int32 of shape \(4, 6\); its quantization asks for"),
    "no scale": ("FP8 in blocks", {}, without("weight_scale_inv"), "is float8_e4m3fn, and has no"),
    "blocks that do not fit": ("FP8 in blocks", {"weight_block_size": [7, 16]}, None, "which does not fit"),
    "no blocks at all": ("FP8 in blocks", {"weight_block_size": [0]}, None, "weight_block_size must be two numbers"),
    "nothing said": ("MXFP4", None, None, "is uint8, and nothing says how it is quantized"),
    "nothing there": ("MXFP4", {"format": "float-quantized"}, None, "eight-bit floats, and there are none"),
}


@pytest.mark.parametrize("name", few(WRONG, ("another method", "scales that do not fit", "no scale", "nothing said")))
def test_what_is_not_known_is_refused_in_one_line(name, pretrained, tmp_path):
    which, changes, damage, message = WRONG[name]
    settings, pack = FORMATS[which]
    folder, _ = quantized(pretrained("llama"), tmp_path, settings, pack)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = None if changes is None else settings | changes
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    if damage:
        save_file(damage(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message) as caught:
        open_source(folder)
    assert "\n" not in str(caught.value)
