"""End tokens: the union of what is trained, the tokenizer's and generation_config.json's list, the same everywhere."""

import json

import pytest

from dcore_jax import UserError
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.evaluation import toolworld
from dcore_jax.models import model_config_from_hf
from dcore_jax.weights import export_decoder, load_decoder, new_decoder, stop_token_ids
from qwen_tokenizer import byte_tokenizer

TEXT_END, TURN_END, MESSAGE_END = (
    256,
    258,
    257,
)  # <|endoftext|>, <|im_end|>, <|im_start|> of the byte tokenizer
FIELDS = {
    "model_type": "qwen3", "vocab_size": 288, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "max_position_embeddings": 512, "tie_word_embeddings": True, "hidden_act": "silu", "initializer_range": 0.02,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Makes a model folder whose tokenizer has this eos, with these files beside it."""

    def make(eos="<|im_end|>", generation=None, **config):
        out = tmp_path / "model"
        export_decoder(new_decoder(model_config_from_hf(FIELDS)), out)
        byte_tokenizer(eos=eos).save_pretrained(out)
        (out / "config.json").write_text(json.dumps({**FIELDS, **config}))
        if generation is not None:
            (out / "generation_config.json").write_text(json.dumps(generation))
        return out

    return make


def exported_stops(source, tmp_path):
    out = export_decoder(load_decoder(source), tmp_path / "hf", source=source)
    stops = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    return set(stops if isinstance(stops, list) else [stops])


@pytest.mark.parametrize(
    ("eos", "generation", "config", "stops"),
    [
        ("<|im_end|>", None, {}, {TURN_END}),
        ("<|endoftext|>", None, {}, {TEXT_END, TURN_END}),  # a base model
        ("<|endoftext|>", {"eos_token_id": TEXT_END}, {}, {TEXT_END, TURN_END}),
        ("<|im_end|>", {"eos_token_id": [MESSAGE_END, TURN_END]}, {}, {MESSAGE_END, TURN_END}),
        ("<|im_end|>", {"temperature": 0.6}, {"eos_token_id": TEXT_END}, {TEXT_END, TURN_END}),
        ("<|im_end|>", {"eos_token_id": TURN_END}, {"eos_token_id": TEXT_END}, {TURN_END}),
    ],
)
def test_generation_and_export_stop_at_the_union(folder, tmp_path, eos, generation, config, stops):
    source = folder(eos, generation, **config)
    assert stop_token_ids(source, load_tokenizer(source)) == stops
    assert exported_stops(source, tmp_path) == stops


def test_an_export_keeps_what_else_the_generation_config_says(folder, tmp_path, capsys):
    source = folder("<|endoftext|>", {"eos_token_id": TEXT_END, "temperature": 0.6})
    exported_stops(source, tmp_path)
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text()) == {
        "eos_token_id": [TEXT_END, TURN_END],
        "temperature": 0.6,
    }
    assert "the tokenizer's own eos is <|endoftext|> alone" in capsys.readouterr().out


def test_an_export_whose_ends_are_all_listed_says_nothing_and_copies_the_file(folder, tmp_path, capsys):
    source = folder(generation={"eos_token_id": [TURN_END]})
    text = (source / "generation_config.json").read_text()
    assert exported_stops(source, tmp_path) == {TURN_END}
    assert (tmp_path / "hf" / "generation_config.json").read_text() == text
    assert "end tokens" not in capsys.readouterr().out


def test_a_folder_without_a_tokenizer_keeps_what_it_lists(folder, tmp_path):
    source = folder(generation={"eos_token_id": TEXT_END})
    for path in source.glob("tokenizer*"):
        path.unlink()
    assert exported_stops(source, tmp_path) == {TEXT_END}


def test_the_held_out_evaluation_of_a_base_model_stops_at_the_end_of_a_turn(folder, monkeypatch):
    seen = {}

    class Reached(Exception):
        pass

    def engine(*_, eos_token_ids, **__):
        seen["ends"] = set(eos_token_ids)
        raise Reached

    monkeypatch.setattr(toolworld, "NativeEngine", engine)
    with pytest.raises(Reached):
        toolworld.attempt_held_out(folder("<|endoftext|>"), tasks=1)
    assert seen["ends"] == {TEXT_END, TURN_END}


def test_an_end_that_is_no_token_id_is_named(folder):
    source = folder(generation={"eos_token_id": "<|im_end|>"})
    with pytest.raises(
        UserError, match=r"generation_config.json: eos_token_id is '<\|im_end\|>'; write a token id"
    ):
        stop_token_ids(source, load_tokenizer(source))
