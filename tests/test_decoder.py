"""The decoder against transformers, and packed rows against separate ones."""

import copy
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CHECKPOINTS, torch_model
from dcore_jax import UserError, load_hf
from dcore_jax.models import Compute, model_config_from_hf, read_model_config
from dcore_jax.models.attention import choose_implementation
from dcore_jax.models.config import _NO_EFFECT, DEFINED_FIELDS, ignored_fields
from dcore_jax.models.decoder import REMAT_POLICIES
from dcore_jax.models.rope_scaling import Llama3Scaling, YarnScaling
from dcore_jax.weights import hf_config, hf_tensors, new_decoder

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 131, (2, 24)).astype(np.int32)


def torch_loss(model, tokens):
    logits = model(torch.tensor(tokens, dtype=torch.long)).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]),
        torch.tensor(tokens[:, 1:], dtype=torch.long).reshape(-1),
    )


def jax_loss(graph, params, tokens):
    logits = nnx.merge(graph, params)(tokens)
    logprobs = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1).mean()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_and_gradients_equal_transformers(name, checkpoints):
    reference, model = torch_model(name), load_hf(checkpoints[name])
    with torch.no_grad():
        expected = reference(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    assert model(TOKENS).dtype == jnp.float32
    np.testing.assert_allclose(model(TOKENS), expected, atol=1e-4)

    loss = torch_loss(reference, TOKENS)
    loss.backward()
    graph, params = nnx.split(model)
    value, gradient = jax.jit(jax.value_and_grad(jax_loss, argnums=1), static_argnums=0)(
        graph, params, TOKENS
    )
    assert abs(float(value) - loss.item()) < 1e-5
    ours = dict(hf_tensors(nnx.merge(graph, gradient)))
    theirs = {key: p.grad.numpy() for key, p in reference.named_parameters()}
    assert set(ours) == set(theirs)
    for key, expected in theirs.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours[key], expected, atol=1e-4 * scale, err_msg=key)


def test_depth_does_not_change_the_compiled_program():
    def program(layers):
        config = model_config_from_hf(torch_model("qwen3", num_hidden_layers=layers).config.to_dict())
        graph, params = nnx.split(new_decoder(config))
        return len(jax.jit(lambda p, t: nnx.merge(graph, p)(t)).lower(params, TOKENS).as_text().splitlines())

    assert program(2) == program(9)


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_remat_changes_nothing(remat, checkpoints):
    model = load_hf(checkpoints["qwen3"])
    expected = jax.grad(lambda p: jax_loss(nnx.split(model)[0], p, TOKENS))(nnx.state(model))
    other = model.with_compute(remat=remat)
    graph, params = nnx.split(other)
    actual = jax.jit(jax.grad(lambda p: jax_loss(graph, p, TOKENS)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), actual, expected)


def test_bf16_compute_keeps_float32_parameters_and_float32_logits(checkpoints):
    model = load_hf(checkpoints["qwen3_tied"], dtype="bfloat16", param_dtype="float32")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.float32)}
    logits = model(TOKENS)
    assert logits.dtype == jnp.float32
    expected = load_hf(checkpoints["qwen3_tied"])(TOKENS)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.03  # bf16 has 8 bits; exactly 0 would mean that nothing ran in bf16


def _packed(first, second, padding):
    tokens = np.concatenate([first, second, np.zeros(padding, np.int32)])[None]
    positions = np.concatenate([np.arange(len(first)), np.arange(len(second)), np.arange(padding)])[
        None
    ].astype(np.int32)
    ids = np.repeat([1, 2, 0], [len(first), len(second), padding])[None].astype(np.int32)
    return tokens, positions, ids


@pytest.mark.parametrize("attention", ["xla", "splash_interpret"])
def test_packed_rows_equal_separate_rows_and_no_gradient_crosses_a_border(attention, checkpoints):
    first, second = RNG.integers(0, 131, 50).astype(np.int32), RNG.integers(0, 131, 61).astype(np.int32)
    tokens, positions, ids = _packed(first, second, 128 - 111)
    model = load_hf(checkpoints["qwen3"], attention=attention)
    alone = load_hf(checkpoints["qwen3"])
    logits = model(tokens, positions, ids)[0]
    np.testing.assert_allclose(logits[:50], alone(first[None])[0], atol=1e-4)
    np.testing.assert_allclose(logits[50:111], alone(second[None])[0], atol=1e-4)

    def second_loss(embeddings):
        from dcore_jax.models.attention import attend

        def run(q, k, v, cache):
            return attend(q, k, v, jnp.asarray(ids), implementation=attention), cache

        hidden, _ = model.run_layers(embeddings, jnp.asarray(positions), run)
        return jnp.square(hidden[:, 50:111] @ model.unembed).mean()

    gradient = np.abs(jax.grad(second_loss)(model.embed(jnp.asarray(tokens))))[0].sum(-1)
    assert (gradient[50:111] > 0).all()
    assert (gradient[:50] == 0).all()
    assert (gradient[111:] == 0).all()


def test_long_rows_attend_in_blocks_with_the_same_result(checkpoints, monkeypatch):
    from dcore_jax.models import attention

    tokens = RNG.integers(0, 131, (1, 70)).astype(np.int32)
    ids = np.repeat([1, 2, 3], [30, 27, 13])[None].astype(np.int32)
    model = load_hf(checkpoints["qwen3"], attention="xla")

    def loss(params):
        return jnp.square(nnx.merge(nnx.split(model)[0], params)(tokens, None, ids)).mean()

    expected = jax.value_and_grad(loss)(nnx.state(model))
    monkeypatch.setitem(attention.XLA_BLOCK, "cpu", 16)
    actual = jax.value_and_grad(loss)(nnx.state(model))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected)


@pytest.mark.parametrize(
    ("wanted", "platform", "dtype", "head_dim", "length", "chosen"),
    [
        ("auto", "cpu", "float32", 128, 4096, "xla"),
        ("auto", "gpu", "bfloat16", 128, 4096, "cudnn"),
        ("auto", "gpu", "float32", 128, 4096, "xla"),
        ("auto", "gpu", "bfloat16", 256, 4096, "xla"),
        ("auto", "tpu", "bfloat16", 128, 4096, "splash"),
        ("auto", "tpu", "bfloat16", 64, 4096, "xla"),
        ("cudnn", "cpu", "bfloat16", 128, 4096, "needs an NVIDIA GPU"),
        ("cudnn", "gpu", "float32", 128, 4096, "needs bf16 or fp16"),
        ("splash", "gpu", "bfloat16", 128, 4096, "needs a TPU"),
        ("splash", "tpu", "bfloat16", 128, 100, "multiple of 128"),
        ("flash", "gpu", "bfloat16", 128, 4096, "is unknown; choose one of"),
        ("auto", "gpu", "bfloat16", 128, 127, "xla"),
        ("cudnn", "gpu", "bfloat16", 128, 127, "rows of an even number of tokens"),
    ],
)
def test_every_backend_honours_segments_or_is_refused(wanted, platform, dtype, head_dim, length, chosen):
    def choose():
        return choose_implementation(
            wanted, platform=platform, dtype=jnp.dtype(dtype), head_dim=head_dim, length=length
        )

    if " " in chosen:
        with pytest.raises(UserError, match=chosen):
            choose()
    else:
        assert choose() == chosen


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_config_survives_the_round_trip(name):
    fields = torch_model(name).config.to_dict()
    config = model_config_from_hf(fields)
    assert model_config_from_hf(hf_config(config)) == config
    assert config.num_parameters == sum(p.numel() for p in torch_model(name).parameters())


def test_old_and_new_spelling_of_rope_give_the_same_config():
    new = torch_model("llama").config.to_dict()
    rope = dict(new["rope_parameters"])
    old = {k: v for k, v in new.items() if k != "rope_parameters"} | {
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": rope,
    }
    assert model_config_from_hf(old) == model_config_from_hf(new)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama"])
def test_a_config_without_head_dim_has_the_one_transformers_gives_it(name):
    config = torch_model(name).config
    fields = {key: value for key, value in config.to_dict().items() if key != "head_dim"}
    theirs = type(config)(**fields)
    expected = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert model_config_from_hf(fields).head_dim == expected


def test_only_llama_has_biases_in_its_mlp():
    for name, biased in (("llama", True), ("qwen3", False), ("qwen2", False)):
        fields = {**torch_model(name).config.to_dict(), "mlp_bias": biased}
        assert model_config_from_hf(fields).mlp_bias is biased
        assert ignored_fields(fields) == ([] if name == "llama" else ["mlp_bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported; supported: qwen3, qwen2, llama"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "architectures 'Qwen3ForSequenceClassification'"),
        ({"hidden_act": "gelu"}, "field hidden_act='gelu' changes the result"),
        ({"use_sliding_window": True}, "field use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types holds 'sliding_attention'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 4.0}}, "rope type 'dynamic' changes"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "field quantization_config"),
        ({"attention_bias": 1}, "field attention_bias=1 is neither true nor false"),
        ({"attention_dropout": "0.0"}, "field attention_dropout='0.0' changes the result"),
        ({"per_layer_config": {"0": {"hidden_act": "gelu"}}}, "field per_layer_config="),
        ({"layer_types": "full_attention"}, "field layer_types='full_attention' is not a list"),
        ({"layer_types": ["full_attention"]}, "field layer_types has 1 entries, num_hidden_layers is 3"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "fields rope_scaling and rope_parameters differ"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "1e6"}}, "field rope_theta='1e6' is not a number"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "rope field factor=2.0 is not one of rope type 'default'"),
        ({"rope_parameters": [1]}, "field rope_parameters=[1] is not an object"),
        ({"architectures": "Qwen3ForCausalLM"}, "field architectures='Qwen3ForCausalLM' is not a list"),
        ({"model_type": ["qwen3"]}, "model_type ['qwen3'] is not supported"),
        ({"head_dim": 21}, "head_dim 21 is odd"),
        ({"num_key_value_heads": 3}, "not a multiple"),
    ],
)  # fmt: skip
def test_a_field_that_would_change_the_result_is_refused_by_name(change, message):
    fields = torch_model("qwen3").config.to_dict()
    with pytest.raises(UserError, match=re.escape(message)):
        model_config_from_hf({**fields, **change})


@pytest.mark.parametrize("bad", ["64", 64.0, True, None, [64], -64, 0, 2**40, float("nan")])
@pytest.mark.parametrize(
    "field",
    ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"],
)
def test_a_number_of_the_wrong_type_is_a_user_error_that_names_the_field(field, bad):
    fields = torch_model("qwen3").config.to_dict()
    with pytest.raises(UserError, match=f"^field {field}=.* is not a positive whole number$"):
        model_config_from_hf({**fields, field: bad})
    del fields["hidden_size"]
    with pytest.raises(UserError, match=r"^field 'hidden_size' is missing$"):
        model_config_from_hf(fields)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama"])
def test_the_table_of_fields_is_that_of_the_installed_transformers(name):
    theirs = {field.name for field in dataclasses.fields(type(torch_model(name).config))}
    assert DEFINED_FIELDS[name] == theirs


def test_a_field_that_the_architecture_does_not_define_is_said_once_and_ignored(tmp_path, capsys):
    extra = {
        "_model_name_or_path": "a/b",
        "_attn_implementation_autoset": True,
        "attn_logit_softcapping": 50.0,
    }
    fields = {**torch_model("qwen3").config.to_dict(), "_name_or_path": "a/b", "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps({**fields, **extra}))
    assert read_model_config(tmp_path) == read_model_config(tmp_path) == model_config_from_hf(fields)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(
        "define them: _attn_implementation_autoset, _model_name_or_path, attn_logit_softcapping"
    )


def test_a_config_that_is_no_object_is_refused(tmp_path):
    for text in ("[1]", '"qwen3"', "null", "{", "[" * 100_000, "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(
            UserError, match=r"config.json: (holds .*, not a JSON object|not readable as JSON)"
        ):
            read_model_config(tmp_path)


GOOD = {name: torch_model(name).config.to_dict() for name in CHECKPOINTS}
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 1.2,
    "beta_fast": 30.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False,
}  # fmt: skip
GOOD["qwen3_yarn"] = {**GOOD["qwen3"], "rope_parameters": YARN}
# Fields beside the classes' own that transformers reads into what is compared.
OURS = {"rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings", "head_dim"}
ROPE_FIELDS = sorted(
    {*GOOD["llama"]["rope_parameters"], *YARN, "type", "partial_rotary_factor", "mrope_section"}
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 6) | st.sampled_from([8, 48, 64, 131, 512, 10**400])
    | st.sampled_from([0.0, 1e-6, 0.5, 1.0, 4.0, 1e4, float("nan"), float("inf")])
    | st.sampled_from(["", "silu", "gelu", "default", "llama3", "yarn", "64", "full_attention", "qwen2"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ROPE_FIELDS), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
FIELD = st.sampled_from(
    sorted(
        {
            *GOOD["qwen3"],
            *GOOD["llama"],
            "rope_theta",
            "rope_scaling",
            "partial_rotary_factor",
            "quantization_config",
        }
    )
    + [
        "original_max_position_embeddings",
        "per_layer_config",
        "is_decoder",
        "logits_scaling",
        "attn_logit_softcapping",
    ]
)
MISSING = object()


def scaling_of(rope: dict, positions: int):
    """What transformers' `rope_parameters` say, in our classes: absent and null fields have its defaults."""
    kind = {"default": None, "llama3": Llama3Scaling, "yarn": YarnScaling}[rope["rope_type"]]
    if kind is None:
        return None
    defaults = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": positions / rope["original_max_position_embeddings"],
    }
    given = {field.name: rope.get(field.name) for field in dataclasses.fields(kind)}
    given = {name: defaults.get(name) if value is None else value for name, value in given.items()}
    given["truncate"] = rope.get("truncate", True)
    # A whole number, such as a factor of 8, is a float to us and stays an int in transformers.
    whole = ("original_max_position_embeddings", "truncate")
    values = {n: v if v is None or n in whole else float(v) for n, v in given.items()}
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(GOOD)),
    st.dictionaries(FIELD, VALUE | st.just(MISSING), min_size=1, max_size=2),
    st.none() | st.tuples(st.sampled_from(ROPE_FIELDS), VALUE | st.just(MISSING)),
)
def test_any_mutation_of_a_config_is_read_as_transformers_reads_it_or_refused(name, changes, rope_change):
    fields = copy.deepcopy(GOOD[name])
    if rope_change is not None:
        fields["rope_parameters"][rope_change[0]] = rope_change[1]
        fields["rope_parameters"] = {k: v for k, v in fields["rope_parameters"].items() if v is not MISSING}
    fields = {key: value for key, value in {**fields, **changes}.items() if value is not MISSING}
    try:
        config = model_config_from_hf(copy.deepcopy(fields))
    except UserError:
        return
    kind = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}[config.model_type]
    if fields.get("attention_dropout", 0) is None:  # only transformers' Llama takes it, as none
        del fields["attention_dropout"]
    try:
        theirs = getattr(transformers, f"{kind}Config")(**copy.deepcopy(fields))
    except Exception:
        # It refuses types of fields that change nothing as well.
        idle = {key for key in fields if key not in DEFINED_FIELDS[config.model_type]} | _NO_EFFECT
        theirs = getattr(transformers, f"{kind}Config")(
            **{key: copy.deepcopy(value) for key, value in fields.items() if key not in idle or key in OURS}
        )
    rope = theirs.rope_parameters
    expected = {
        "num_layers": theirs.num_hidden_layers,
        "num_heads": theirs.num_attention_heads,
        "num_kv_heads": theirs.num_key_value_heads,
        "head_dim": getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
        "rope_theta": rope["rope_theta"],
        "qkv_bias": theirs.attention_bias if kind != "Qwen2" else True,
        "output_bias": theirs.attention_bias if kind != "Qwen2" else False,
        "mlp_bias": theirs.mlp_bias if kind == "Llama" else False,
        "qk_norm": kind == "Qwen3",
        "rope_scaling": scaling_of(rope, theirs.max_position_embeddings),
    }  # fmt: skip
    for field in dataclasses.fields(config):
        wanted = expected.get(field.name, getattr(theirs, field.name, None))
        assert getattr(config, field.name) == wanted, field.name
    assert theirs.hidden_act == "silu" and theirs.attention_dropout in (0, None)
    assert (
        set(getattr(theirs, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        or kind == "Llama"
    )


def test_a_whole_rope_factor_is_read_as_a_float():
    fields = copy.deepcopy(GOOD["llama"])
    fields["rope_parameters"]["factor"] = 8
    assert model_config_from_hf(fields).rope_scaling.factor == 8.0


def test_an_unknown_remat_policy_is_refused():
    with pytest.raises(UserError, match="remat 'everything' is unknown"):
        Compute(remat="everything")
