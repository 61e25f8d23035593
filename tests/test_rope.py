"""YaRN: logits at and beyond the original length, refusals, and the way out again, against transformers."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from dcore_jax import UserError, export_hf, load_hf
from dcore_jax.engines import NativeEngine, Request, SamplingParams
from dcore_jax.models import model_config_from_hf
from dcore_jax.models.rope import inverse_frequencies, rotation
from dcore_jax.weights import hf_config

ORIGINAL = 64
RELEASED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
SCALINGS = {
    "released": RELEASED,
    "old spelling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "attention_factor": RELEASED | {"attention_factor": 0.7},
    "mscale": RELEASED | {"mscale": 1.3, "mscale_all_dim": 0.6},
    "betas": RELEASED | {"beta_fast": 4, "beta_slow": 0.5, "truncate": False},
}


def yarn_model(kind: str = "Qwen3", scaling: dict = RELEASED, theta: float = 1e4, **changes):
    fields = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": ORIGINAL * 4, "initializer_range": 0.2,
        "rope_parameters": {"rope_theta": theta, **scaling},
    }  # fmt: skip
    if kind != "Qwen2":
        fields["head_dim"] = 16
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**fields, **changes})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def saved(model, folder, **fields):
    """The folder of a model, its config.json with other fields (None: without)."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in {**config, **fields}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("kind", "name"), [*(("Qwen3", name) for name in SCALINGS), ("Llama", "released")])
def test_logits_equal_transformers_within_at_and_beyond_the_original_length(kind, name, tmp_path):
    reference = yarn_model(kind, SCALINGS[name])
    folder = saved(reference, tmp_path / "model")
    if name == "old spelling":  # as transformers 4 wrote it
        saved(reference, folder, rope_parameters=None, rope_theta=1e4, rope_scaling=SCALINGS[name])
    ours = load_hf(folder)
    tokens = np.random.default_rng(0).integers(0, 97, (1, 4 * ORIGINAL)).astype(np.int32)
    with torch.no_grad():
        expected = reference(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    found = np.asarray(ours(tokens))
    for length in (ORIGINAL // 2, ORIGINAL, 4 * ORIGINAL):
        np.testing.assert_allclose(found[:, :length], expected[:, :length], atol=1e-4)


def test_logits_at_the_released_length_equal_transformers(tmp_path):
    """Positions of Qwen3's own long context, 131,072: a row of a few tokens that begins there."""
    scaling = RELEASED | {"original_max_position_embeddings": 32768}
    reference = yarn_model(scaling=scaling, theta=1e6, head_dim=64, max_position_embeddings=40960)
    ours = load_hf(saved(reference, tmp_path / "model"))
    assert ours.config.context_length == 131072
    tokens = np.random.default_rng(0).integers(0, 97, (1, 24)).astype(np.int32)
    for start in (16384, 32768, 131072):
        # The first 12 tokens stand at the beginning, the others far away from them.
        positions = np.concatenate([np.arange(12), np.arange(start - 12, start)])[None].astype(np.int32)
        with torch.no_grad():
            given = (torch.tensor(x, dtype=torch.long) for x in (tokens, positions))
            expected = reference(input_ids=next(given), position_ids=next(given)).logits.numpy()
        np.testing.assert_allclose(ours(tokens, positions), expected, atol=1e-4)


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_and_factor_equal_transformers_own(name):
    for fields in ({}, {"head_dim": 128}, {"theta": 1e6}):
        theirs = yarn_model(scaling=SCALINGS[name], **fields).config
        config = model_config_from_hf(theirs.to_dict())
        frequencies, factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
        np.testing.assert_allclose(inverse_frequencies(config), frequencies.numpy(), rtol=1e-6)
        cos, _ = rotation(jax.numpy.zeros((1, 1), jax.numpy.int32), config)
        np.testing.assert_allclose(cos, factor, rtol=1e-6)


def test_the_engine_samples_what_transformers_says_beyond_the_original_length(tmp_path):
    reference = yarn_model(max_position_embeddings=ORIGINAL)  # as configs do that were only given the scaling
    model = load_hf(saved(reference, tmp_path / "model"))
    prompt = np.random.default_rng(2).integers(0, 97, 3 * ORIGINAL).tolist()
    engine = NativeEngine(model, slots=1)
    (sample,) = engine.generate([Request(tuple(prompt), SamplingParams(max_tokens=8, temperature=0))])
    with torch.no_grad():
        expected = reference(torch.tensor([prompt + list(sample.ids)])).logits[0, len(prompt) - 1 : -1]
    assert list(sample.ids) == expected.argmax(-1).tolist()
    logprobs = expected.log_softmax(-1).max(-1).values.numpy()
    np.testing.assert_allclose(sample.logprobs, logprobs, atol=1e-4)


@pytest.mark.parametrize("name", SCALINGS)
def test_export_writes_the_scaling_back_as_transformers_reads_it(name, tmp_path):
    reference = yarn_model(scaling=SCALINGS[name])
    model = load_hf(saved(reference, tmp_path / "model"))
    assert model_config_from_hf(hf_config(model.config)) == model.config
    export_hf(model, tmp_path / "export")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    tokens = torch.arange(4 * ORIGINAL)[None] % 97
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, reference(tokens).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": 0.5}, "rope field factor=0.5 is below 1"),
        ({"factor": "4"}, "field factor='4' is not a number"),
        ({"beta_fast": 1, "beta_slow": 2}, "rope field beta_fast=1.0 must be at least beta_slow=2.0"),
        ({"truncate": "no"}, "field truncate='no' is neither true nor false"),
        ({"original_max_position_embeddings": 0}, "not a positive whole number"),
        ({"finetuned": True}, "rope field finetuned=True is not one of rope type 'yarn'"),
        ({"rope_theta": 1.0}, "field rope_theta=1.0 must be above 1"),
        ({"rope_type": "longrope"}, "rope type 'longrope' changes the result and is not supported"),
    ],
)  # fmt: skip
def test_a_scaling_that_is_none_is_refused_in_one_line(change, message):
    fields = yarn_model().config.to_dict()
    rope = fields["rope_parameters"] | change
    with pytest.raises(UserError, match=message):
        model_config_from_hf({**fields, "rope_parameters": rope})


def test_a_scaling_without_its_factor_is_refused():
    fields = yarn_model().config.to_dict()
    del fields["rope_parameters"]["factor"]
    with pytest.raises(UserError, match="rope type 'yarn' needs the field 'factor'"):
        model_config_from_hf(fields)


def test_a_length_outside_the_rope_fields_is_the_originals_where_they_name_none():
    fields = yarn_model().config.to_dict()
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": None}
    fields |= {"rope_parameters": rope, "original_max_position_embeddings": 32}
    scaling = model_config_from_hf(fields).rope_scaling
    assert (scaling.factor, scaling.original_max_position_embeddings) == (8.0, 32)
    changed = {"rope_parameters": {**rope, "original_max_position_embeddings": 64}}
    with pytest.raises(UserError, match="embeddings=32 differs from that of the rope fields, 64"):
        model_config_from_hf({**fields, **changed})
    assert dataclasses.replace(scaling, factor=1.0).cosine_factor == 1.0
