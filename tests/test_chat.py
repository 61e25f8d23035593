"""`dcore chat`: a scripted conversation with a random checkpoint, and with a stub whose calls reach the tools."""

import io
import json

import pytest

from dcore_jax import UserError
from dcore_jax.chat import ChatConfig, HandTools, Session, WorldTools, open_tools, talk
from dcore_jax.cli import main
from dcore_jax.cli.options import option_fields
from dcore_jax.data.chat_template import chat_template
from dcore_jax.engines.engine import Sample
from dcore_jax.nano import NanoConfig, build_tokenizer, embedded_model
from dcore_jax.toolworld import generate_tasks

TOOL = {
    "name": "tide",
    "description": "High tide.",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class StubEngine:
    """Says the given turns, in two pieces each; stands in for a model, and says so."""

    def __init__(self, tokenizer, turns, reason="stop"):
        self.tokenizer, self.turns, self.reason = tokenizer, list(turns), reason
        self.prompts, self.pending, self.looks = [], None, 0

    def submit(self, requests):
        (request,) = requests
        ids = tuple(self.tokenizer(self.turns.pop(0), add_special_tokens=False)["input_ids"])
        self.prompts.append(self.tokenizer.decode(request.prompt_ids))
        self.pending, self.looks = (request, (*ids, self.tokenizer.eos_token_id)), 0

    def poll(self):
        request, ids = self.pending
        self.looks += 1
        return (
            [Sample(request.id, request.prompt_ids, ids, (0.0,) * len(ids), self.reason, 0)]
            if self.looks > 1
            else []
        )

    def sampled_so_far(self):
        request, ids = self.pending
        return {request.id: ids[: len(ids) // 2]} if self.looks == 1 else {}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def converse(tokenizer, tools, lines, turns, out=None, reason="stop", **options):
    engine = StubEngine(tokenizer, turns, reason)
    session = Session(ChatConfig(model="stub", **options), engine, chat_template(tokenizer), "python")
    session.reset()
    out = out or io.StringIO()
    talk(session, tools, inputs=io.StringIO("".join(f"{line}\n" for line in lines)), out=out)
    return out.getvalue(), engine, session


def test_a_random_checkpoint_answers_a_pipe_as_generate_does(tmp_path, monkeypatch, capsys):
    from transformers import AutoTokenizer

    from dcore_jax import load_hf
    from dcore_jax.data.chat_template import render_chat
    from dcore_jax.engines.engine import Request, SamplingParams
    from dcore_jax.engines.native import NativeEngine

    folder = embedded_model(tmp_path, NanoConfig(hidden=64, layers=1), seed=3)
    monkeypatch.setattr("sys.stdin", io.StringIO("find file\n\n/reset\nread file\n/quit\nnever read\n"))
    main(["chat", "--model", str(folder), "--max-tokens", "6", "--max-length", "64"])
    said = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = NativeEngine(load_hf(folder), slots=1, max_length=64, steps_per_dispatch=4)
    for query in ("find file", "read file"):  # the second is the first of a conversation too
        text = render_chat(tokenizer, [{"role": "user", "content": query}], add_generation_prompt=True)
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        (sample,) = engine.generate([Request(ids, SamplingParams(max_tokens=6, temperature=0.0))])
        assert f"you> {query}\n{tokenizer.decode(sample.content_ids)}\n" in said
    assert "never read" not in said and said.count("no tools") == 2 and "\033" not in said


def test_calls_run_in_the_world_on_a_fresh_state_and_the_model_goes_on(tokenizer):
    (task,) = generate_tasks(
        1, seed=0, split="test", kinds=("single", "sequential", "parallel"), families=["files"]
    )
    folder, files = next(iter(task.initial_state["folders"].items()))
    turns = [
        f"<think>\nfind it.\n</think>\n\n[find_file(folder='{folder}')]",
        f"the newest file is {files[-1]}.",
    ]
    said, engine, session = converse(tokenizer, open_tools("files"), ["which file is newest?"], turns)
    assert json.dumps(task.initial_state) in said and "find_file" in said.splitlines()[0]
    assert f'call 1: find_file {{"folder": "{folder}"}}' in said
    assert f'response of find_file: {{"file": "{files[-1]}"}}' in said
    assert [message["role"] for message in session.messages] == ["user", "assistant", "tool", "assistant"]
    assert files[-1] in engine.prompts[1] and "find_file(folder)" in engine.prompts[0]


def test_a_reset_draws_the_next_state_and_forgets_the_conversation(tokenizer):
    said, engine, session = converse(
        tokenizer, WorldTools("orders"), ["a", "/reset", "b", "/tools"], ["no.", "no."]
    )
    states = [line for line in said.splitlines() if line.startswith("state: ")]
    assert len(set(states)) == 2 and len(session.messages) == 2
    assert "user\nb" in engine.prompts[1] and "user\na" not in engine.prompts[1]
    assert '"type": "function"' in said


def test_schemas_of_a_file_are_answered_by_hand_line_by_line(tokenizer, tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([TOOL]))
    turns = ["[tide(at='b3'), tide(at='c4')]", "at noon."]
    said, engine, session = converse(tokenizer, open_tools(str(path)), ["tide?", "12:00", "13:00"], turns)
    assert "tools: tide; you type what they answer" in said and "tide answers> 12:00" in said
    answers = [(m["content"], m["name"]) for m in session.messages if m["role"] == "tool"]
    assert answers == [("12:00", "tide"), ("13:00", "tide")] and len(engine.prompts) == 2


def test_on_a_terminal_the_thought_is_dim_and_the_rest_is_not(tokenizer):
    text = "<think>\nno tool serves this.\n</think>\n\nno."
    said, _, _ = converse(tokenizer, HandTools(), ["x"], [text], out=Terminal())
    turn = said[said.index("<think>") - 4 :]
    dim = "".join(piece.partition("\033[0m")[0] for piece in turn.split("\033[2m")[1:])
    assert dim.startswith("<think>") and dim.endswith("</think>") and "no tool serves" in dim
    assert turn.rpartition("\033[0m")[2].strip() == "no."


def test_what_goes_wrong_is_said_and_the_conversation_goes_on(tokenizer):
    said, _, _ = converse(tokenizer, HandTools(), ["x", "/what", "y"], ["[tide(at=]", "no."])
    assert (
        "calls that cannot be read: " in said
        and "/reset: begin again" in said
        and said.rstrip().endswith("no.")
    )
    tagged = '<tool_call>\n{"name": "find_file", "arguments": {"folder": "zz"}}\n</tool_call>'
    said, _, _ = converse(tokenizer, WorldTools("files"), ["x"], [tagged, "no."])
    assert "calls in qwen; the chat template asks for python" in said and "call 1: find_file" in said
    said, _, _ = converse(tokenizer, HandTools(), ["x"], ["no."], reason="overlong")
    assert "error: the conversation is longer than" in said
    said, _, _ = converse(
        tokenizer, WorldTools("files"), ["x"], ["[find_file(folder='zz')]"] * 3, max_turns=3
    )
    assert said.count('{"error"') == 3 and "3 turns in a row (--max-turns)" in said


def test_a_mistake_is_one_line(tmp_path, capsys):
    (tmp_path / "broken.json").write_text("[{]")
    (tmp_path / "other.json").write_text('[{"x": 1}]')
    for name, said in (
        ("gone.json", "no such file"),
        ("broken.json", "JSON list"),
        ("other.json", "a tool without a name"),
    ):
        with pytest.raises(UserError, match=said):
            open_tools(str(tmp_path / name))
    for words in (
        ["chat"],
        ["chat", "--model", str(tmp_path / "none")],
        ["chat", "--model", "x", "--max-turns", "0"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        error = capsys.readouterr().err
        assert stopped.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1


def test_every_option_has_a_text():
    assert all(len(text) > 8 for _, _, text in option_fields(ChatConfig))
