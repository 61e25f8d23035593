"""Against released artefacts: Qwen3's own tokenizer and template, the package `renderers`, and SmolLM2's weights."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dcore_jax.data import parse_record, render
from dcore_jax.data.rendering import end_of_turn_ids
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.models import model_config_from_hf
from dcore_jax.player import Turn, new_bridge
from dcore_jax.rl.prompts import read_questions, render_prompts
from dcore_jax.weights import export_decoder, new_decoder
from generated_conversations import conversations
from oracles import bridged_by_renderers, qwen3_folder, rendered_by_renderers
from qwen_tokenizer import qwen_tokenizer

pytestmark = pytest.mark.network

COUNT = 500


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(qwen3_folder())


@pytest.fixture(scope="module")
def drawn():
    return conversations(COUNT)


def template_ids(tokenizer, messages, tools, prompt):
    """What transformers makes of the released template."""
    found = tokenizer.apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=prompt, tokenize=True, return_dict=False
    )
    return list(found)


def test_the_generated_conversations_have_every_shape(drawn):
    messages = [message for c in drawn for message in c["messages"]]
    assistant = [m for m in messages if m["role"] == "assistant"]
    assert (
        sum(bool(c["tools"]) for c in drawn)
        > COUNT / 2
        < sum(c["messages"][-1]["content"] != "" for c in drawn)
    )
    for kind in (
        [m for m in assistant if len(m.get("tool_calls", ())) > 1],
        [m for m in assistant if m.get("tool_calls") and m["content"]],
        [m for m in assistant if "reasoning_content" not in m],
        [c for c in drawn if c["messages"][-1].get("tool_calls")],
        [c for c in drawn if c["messages"][0]["role"] == "system"],
        [c for c in drawn if sum(m["role"] == "user" for m in c["messages"]) > 1],
    ):
        assert len(kind) > COUNT / 20


def test_the_end_tokens_of_the_released_tokenizer(tokenizer):
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in end_of_turn_ids(tokenizer)
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<tool_call>", "<tool_response>", "<think>")] == [
        151657,
        151665,
        151667,
    ]


def test_our_ids_are_the_released_templates_and_those_of_renderers(tokenizer, drawn):
    """Of the whole conversation, as SFT learns it, and of the prompt alone, as RL and a server see it."""
    asked = [
        {**c, "messages": c["messages"][: len(c["messages"]) - p], "prompt": bool(p)}
        for c in drawn
        for p in (0, 1)
    ]
    theirs = rendered_by_renderers(asked, qwen3_folder())
    for c, rendered, prompt in zip(drawn, theirs[::2], theirs[1::2], strict=True):
        (record,) = parse_record(c, origin="drawn")
        samples, rejected = render(record, tokenizer, max_length=32768)
        assert not rejected
        whole = samples[-1].tokens.tolist()  # of the last turn
        assert whole == template_ids(tokenizer, c["messages"], c["tools"], False) == rendered
        assert whole[: len(prompt)] == template_ids(tokenizer, c["messages"][:-1], c["tools"], True) == prompt


def test_what_is_learned_is_the_last_turn_with_its_thought_and_calls(tokenizer, drawn):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for c in drawn[:100]:
        (record,) = parse_record(c, origin="drawn")
        sample = render(record, tokenizer, max_length=32768).samples[-1]
        prompt = template_ids(tokenizer, c["messages"][:-1], c["tools"], True)
        learned = sample.tokens[len(prompt) :][np.asarray(sample.loss_mask)[len(prompt) :]].tolist()
        assert learned[-1] == end and end not in learned[:-1]
        text, last = tokenizer.decode(learned), c["messages"][-1]
        for call in last.get("tool_calls", ()):
            written = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            assert nfc(tokenizer, written) in text
        for part in (last["content"], last.get("reasoning_content", "")):
            assert nfc(tokenizer, part).strip("\n") in text


def nfc(tokenizer, text):
    return tokenizer.backend_tokenizer.normalizer.normalize_str(text)


def test_prompts_of_reinforcement_learning_are_what_a_server_would_be_sent(tokenizer, drawn, tmp_path):
    rows = [
        {"messages": c["messages"][:-1], "tools": c["tools"], "reference": [], "expects_reply": True}
        for c in drawn[:100]
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions, rejections = read_questions([path], "qwen")
    prompts = render_prompts(questions, tokenizer, max_length=32768, rejections=rejections)
    assert not rejections.counts
    for row, prompt in zip(rows, prompts, strict=True):
        assert list(prompt.ids) == template_ids(tokenizer, row["messages"], row["tools"], True)


def test_the_bridge_to_the_next_turn_is_that_of_renderers(tokenizer, drawn):
    """After turns that ended, that ended with the other end token, and that were cut, in a thought and behind it."""
    bridge, cases, ours = new_bridge(tokenizer), [], []
    for number, c in enumerate(drawn[:300]):
        roles = [message["role"] for message in c["messages"]]
        for at, role in enumerate(roles):
            end = next((i for i in range(at + 1, len(roles)) if roles[i] == "assistant"), len(roles))
            if role != "assistant" or end == at + 1:
                continue
            before, new = c["messages"][:at], c["messages"][at + 1 : end]
            prompt = template_ids(tokenizer, before, c["tools"], True)
            whole = template_ids(tokenizer, c["messages"][: at + 1], c["tools"], False)
            ids = whole[len(prompt) : -1]  # without the line break behind the end of the turn
            how = (number + at) % 3
            reason = "stop" if how < 2 else "length"
            if how == 1:
                ids = [*ids[:-1], tokenizer.convert_tokens_to_ids("<|endoftext|>")]
            if how == 2:
                ids = ids[: 1 + number % (len(ids) - 1)]
            text = tokenizer.decode(ids[:-1] if reason == "stop" else ids)
            turn = Turn(0, text, bridge.read(text, c["tools"]), tuple(ids), (), len(prompt), reason)
            cases.append({"prompt": prompt, "sample": ids, "messages": new, "tools": c["tools"]})
            ours.append([*prompt, *ids, *bridge.between(before, turn, new, c["tools"] or None)])
    theirs = bridged_by_renderers(cases, qwen3_folder())
    assert len(cases) > 300
    assert ours == theirs


def test_the_tokenizer_that_the_other_tests_rebuild_is_the_released_one(tokenizer, drawn):
    ours = qwen_tokenizer()
    assert ours.get_vocab() == tokenizer.get_vocab()
    texts = [
        tokenizer.apply_chat_template(c["messages"], tools=c["tools"] or None, tokenize=False) for c in drawn
    ]
    assert ours(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_where_renderers_differs_from_the_released_template(tokenizer):
    """Kept so that a change of theirs is noticed: ours is always the template's."""
    asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}
    differ = {
        "a history turn that begins with a line break": "\n\nLate.",
        "two closing tags in one content": "<think>\na</think>b</think>c",
    }
    conversations = [
        {
            "messages": [asked, {"role": "assistant", "content": content}, asked, answered],
            "tools": [],
            "prompt": False,
        }
        for content in differ.values()
    ]
    theirs = rendered_by_renderers(conversations, qwen3_folder())
    for name, given, rendered in zip(differ, conversations, theirs, strict=True):
        assert rendered != template_ids(tokenizer, given["messages"], [], False), name


@pytest.mark.slow
def test_readme_stage_2_on_real_prompts_runs_two_steps_whose_header_says_how(real_data, tmp_path):
    """A random Qwen3 of the real vocabulary, ToolRL's real prompts, no flag about notation, reward or end tokens."""
    fields = dict(
        model_type="qwen3", architectures=["Qwen3ForCausalLM"], vocab_size=151_936, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-6, rope_theta=1e6,
        max_position_embeddings=40_960, tie_word_embeddings=True, hidden_act="silu", initializer_range=0.3,
    )  # fmt: skip
    folder = export_decoder(new_decoder(model_config_from_hf(fields)), tmp_path / "model")
    for path in qwen3_folder().iterdir():
        if path.name != "config.json":
            shutil.copyfile(path, folder / path.name)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [151_645, 151_643]}))
    words = [
        *(
            "rl",
            "--model",
            folder,
            "--data",
            real_data / "toolrl" / "rlla_test.parquet",
            "--output",
            tmp_path / "run",
        ),
        *("--steps", 2, "--prompts", 2, "--updates", 1, "--rollout.group", 2, "--mesh", 1),
        *("--rollout.max-prompt", 2048, "--rollout.max-response", 16, "--algorithm.alpha", 0.4),
    ]
    done = subprocess.run(
        [sys.executable, "-c", "from dcore_jax.cli import main; main()", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stderr + done.stdout
    assert "prompts         79   70 expect a call" in said or "prompts         79   71 expect a call" in said
    assert "algorithm da_grpo, preset paper, with alpha: 0.1 -> 0.4" in said
    assert "reward    dcore_paper, calls in tags" in said
    assert "responses end at <|endoftext|>, <|im_end|>" in said
    assert "step 2/2" in said and "Warning" not in said
