"""What config.json and generation_config.json say is what transformers reads in them, and odd values are one line."""

import dataclasses
import json
import math

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import CASES, LLAMA3
from source_folders import assert_logits_as_in_transformers, copied, with_config, with_generation

from a3jax.checkpoint.folder import find
from a3jax.config import Experts, Rope, YarnScaling
from a3jax.errors import UserError
from a3jax.weights import configuration, families
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source

LOCAL = dict.fromkeys(("mistral_local", "olmo3", "phi3", "mixtral"), (0, 1, 2)) | {"gemma3_text": (0, 1)}
LOCAL |= dict.fromkeys(("gemma2", "gpt_oss"), (0, 2))


@pytest.mark.parametrize("case", CASES)
def test_both_dialects_of_config_json_say_the_same(case, pretrained):
    new = json.loads((pretrained(case) / "config.json").read_text())
    ropes = new["rope_parameters"]
    rope, local = ropes.get("full_attention", ropes), ropes.get("sliding_attention", {})
    old = {name: value for name, value in new.items() if name != "rope_parameters"}
    old |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": rope.get("partial_rotary_factor")}
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    old |= {"rope_local_base_freq": local["rope_theta"]} if case == "gemma3_text" else {}
    old["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    config = configuration.from_hf(new, "config.json")
    assert config == configuration.from_hf(old, "config.json")
    assert config == configuration.from_hf(configuration.to_hf(config, "float32"), "config.json")
    assert config.local_layers == LOCAL.get(case, ())


NEW = {"rope_type": "default", "rope_theta": 500.0}
OLD = LLAMA3 | {"original_max_position_embeddings": 32}
ROPE_TWICE = {
    "scaling by hand in a new file": {"rope_parameters": NEW, "rope_scaling": OLD},
    "with a base beside both": {"rope_parameters": NEW, "rope_scaling": OLD, "rope_theta": 200.0},
    "with a base of its own": {"rope_parameters": NEW, "rope_scaling": OLD | {"rope_theta": 50.0}},
    "scaling in both": {"rope_parameters": OLD | {"factor": 2.0, "rope_theta": 500.0}, "rope_scaling": OLD},
    "no scaling in the old field": {"rope_parameters": OLD | {"rope_theta": 500.0}, "rope_scaling": NEW},
    "an empty old field": {"rope_parameters": OLD | {"rope_theta": 500.0}, "rope_scaling": {}},
    "two bases": {"rope_parameters": NEW, "rope_theta": 200.0},
    "no original length": {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}},
    "the original length outside": {"rope_parameters": None, "rope_scaling": LLAMA3, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("name", ROPE_TWICE)
def test_rope_said_twice_is_what_transformers_makes_of_it(name, pretrained, tmp_path, capsys):
    folder = copied(pretrained("llama"), tmp_path)
    with_config(**ROPE_TWICE[name])(folder)
    assert_logits_as_in_transformers(folder, tmp_path / "out")
    both = ROPE_TWICE[name].get("rope_parameters") and ROPE_TWICE[name].get("rope_scaling")
    assert ("rope_scaling stands in place of all of rope_parameters" in capsys.readouterr().err) == bool(both)


@pytest.mark.parametrize("family", [family.name for family in families.FAMILIES])
def test_where_config_json_is_silent_it_means_what_transformers_takes(family):
    sizes = {"vocab_size": 300000, "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 12}
    stated = {"model_type": family, "num_attention_heads": 32, "rms_norm_eps": 1e-5, "max_position_embeddings": 9000, **sizes}
    theirs = transformers.AutoConfig.for_model(**stated)
    ours = configuration.from_hf(stated, "config.json")
    kinds, window = getattr(theirs, "layer_types", None), getattr(theirs, "sliding_window", None)
    slides = [window is not None and (kinds is None or kinds[i] == "sliding_attention") for i in range(12)]
    ropes = theirs.rope_parameters
    ends = theirs.eos_token_id
    if ours.experts is not None:
        normalized = getattr(theirs, "norm_topk_prob", True)  # as Mixtral has it
        weight = theirs.router_aux_loss_coef
        active, biases = theirs.num_experts_per_tok, family == "gpt_oss"
        assert ours.experts == Experts(theirs.num_local_experts, active, normalized, weight, biases)
        assert ours.ff_width == getattr(theirs, "moe_intermediate_size", 64)
    assert ours == dataclasses.replace(
        ours,
        kv_heads=theirs.num_key_value_heads,
        head_width=getattr(theirs, "head_dim", None) or 512 // 32,
        context=9000,
        rope_theta=ropes.get("full_attention", ropes)["rope_theta"],
        local_rope=Rope(ropes["sliding_attention"]["rope_theta"]) if "sliding_attention" in ropes else None,
        local_layers=tuple(i for i in range(12) if slides[i]),
        local_window=window if any(slides) else None,
        unrotated_layers=tuple(i for i, turns in enumerate(getattr(theirs, "no_rope_layers", ())) if not turns),
        rope_scaling=yarn(ropes) if ropes.get("rope_type") == "yarn" else None,
        output_bias=getattr(theirs, "attention_bias", False),
        activation="gelu_sigmoid"
        if hasattr(theirs, "swiglu_alpha")
        else {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}[
            getattr(theirs, "hidden_activation", None) or theirs.hidden_act
        ],
        gate_limit=getattr(theirs, "swiglu_limit", None),
        qkv_limit=getattr(theirs, "clip_qkv", None),
        norm_eps=getattr(theirs, "rms_norm_eps", 1e-5),
        embedding_scale=getattr(theirs, "embedding_multiplier", 512**0.5 if "gemma" in family else 1.0),
        attention_scale=getattr(
            theirs,
            "attention_multiplier",
            theirs.query_pre_attn_scalar**-0.5 if hasattr(theirs, "query_pre_attn_scalar") else None,
        ),
        attention_cap=getattr(theirs, "attn_logit_softcapping", None),
        logit_cap=getattr(theirs, "final_logit_softcapping", None),
        logit_divisor=getattr(theirs, "logits_scaling", 1.0),
        tied_head=theirs.tie_word_embeddings,
        start_token=theirs.bos_token_id,
        end_tokens=() if ends is None else (ends,),
    )


def yarn(said):
    """YaRN as `rope_parameters` have it; the factor is the paper's (arXiv 2309.00071, equation 22)."""
    factor, betas = said["factor"], (said["beta_fast"], said["beta_slow"])
    return YarnScaling(factor, said["original_max_position_embeddings"], *betas, 0.1 * math.log(factor) + 1, said["truncate"])


def test_sliding_windows_are_those_that_transformers_uses():
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
    stated = sizes | {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 9000}

    def local(family, **fields):
        config = configuration.from_hf(stated | {"model_type": family} | fields, "config.json")
        assert config.context == 9000
        return config.local_window if config.local_layers == (0, 1) else config.local_layers

    assert local("mistral", sliding_window=None) == local("qwen2", sliding_window=64) == ()
    assert local("mistral", sliding_window=64, use_sliding_window=False) == 64
    assert local("qwen2", use_sliding_window=True) == ()
    assert local("qwen2", use_sliding_window=True, max_window_layers=1) == (1,)
    with pytest.raises(UserError, match="sliding_window is 0; it must be"):
        local("mistral", sliding_window=0)
    with pytest.raises(UserError, match=r"layer_types .* without use_sliding_window is not supported"):
        local("qwen3", layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(UserError, match=r"layer_types \['chunked_attention'\] is not supported"):
        local("gemma2", layer_types=["chunked_attention"])


ENDS = {
    "only in generation_config.json": ({"eos_token_id": "absent"}, {"eos_token_id": [5, 6]}, (5, 6)),
    "more of them there": ({}, {"eos_token_id": [5, 257]}, (257, 5)),
    "none there": ({}, {"temperature": 0.5}, (257,)),
    "in neither": ({"eos_token_id": "absent"}, {}, (2,)),
    "nowhere, and said so": ({"eos_token_id": None}, {"eos_token_id": None}, ()),
    "twice": ({"eos_token_id": [5, 5]}, {"eos_token_id": 5}, (5,)),
}


@pytest.mark.parametrize("name", ENDS)
def test_end_tokens_are_those_of_both_files(name, pretrained, tmp_path):
    model, generation, expected = ENDS[name]
    folder = copied(pretrained("llama"), tmp_path)
    raw = json.loads((folder / "config.json").read_text()) | model
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))
    with_generation(**generation)(folder)
    config = open_source(folder).config
    assert config.end_tokens == expected
    stops = transformers.GenerationConfig.from_pretrained(folder).eos_token_id or []
    assert set(stops if isinstance(stops, list) else [stops]) <= set(config.end_tokens)


def test_no_suggestion_takes_one_family_for_another():
    names = {family.name for family in families.FAMILIES}
    others = set(transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES) - names
    assert {"ministral3", "llama4", "gpt2"} <= others
    for name in [*others, "qwen", "olmo9", None, 7, [], "x" * 10**6]:
        with pytest.raises(UserError, match="is not supported") as caught:
            families.family_of(name)
        assert "did you mean" not in str(caught.value)
        assert len(str(caught.value)) < 300
    for name, meant in {
        "lama": "llama",
        "LLaMA": "llama",
        "qwen-2": "qwen2",
        "mitsral": "mistral",
        "olmmo2": "olmo2",
    }.items():
        with pytest.raises(UserError, match=f"; did you mean '{meant}'"):
            families.family_of(name)


def test_what_a_llama_writes_is_not_taken_for_what_is_missing():
    written = transformers.LlamaConfig(rope_scaling=LLAMA3).to_dict() | {"model_type": "other", "head_dim": 8}
    with pytest.raises(UserError, match="'other' is not supported; supported are"):
        configuration.from_hf(written, "config.json")


ODD = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 10**9, 10**30, -(10**30), 1e-320, 1e308, math.nan, math.inf, -math.inf, 0.5, -0.0]),
    st.sampled_from([None, True, False, "", "8", "NaN", [], [1], {}, {"rope_type": "llama3"}, [[[]]]]),
)


@pytest.mark.long
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_odd_values_are_refused_in_one_line_or_do_no_harm(data, pretrained, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("odd")
    folder = copied(pretrained("llama3"), tmp_path)
    for name in ("config.json", "generation_config.json"):
        raw = json.loads((folder / name).read_text())
        inner = raw.get("rope_parameters", {})
        for field in data.draw(st.lists(st.sampled_from([*raw, *inner, "rope_theta", "rope_scaling"]), max_size=2)):
            (inner if field in inner and data.draw(st.booleans()) else raw)[field] = data.draw(ODD)
        (folder / name).write_text(json.dumps(raw))
    try:
        source = open_source(folder)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500  # noqa: PT017, PT018, either outcome is right
    else:
        import_model(source, tmp_path / "out")
        assert find(tmp_path / "out").config == source.config
