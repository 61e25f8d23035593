"""The player: ids that are appended and never rendered again, sessions that cannot hurt one another, slots that stay busy."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax import UserError
from dcore_jax.data.chat_template import ChatTemplate, render_chat
from dcore_jax.engines import NativeEngine, Sample, SamplingParams
from dcore_jax.models import model_config_from_hf
from dcore_jax.nano.config import nano_fields
from dcore_jax.nano.tokenizer import _TEMPLATE
from dcore_jax.player import (
    BatchEngine,
    Limits,
    Opening,
    Session,
    new_bridge,
    new_rerender,
    play,
    scripted_engine,
)
from dcore_jax.weights import new_decoder
from qwen_tokenizer import TEMPLATE, byte_tokenizer

END = "<|im_end|>"
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As SmolLM2's: a system turn of its own, no tools.
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 3's: no separator after a turn, contents trimmed, one call a turn.
LLAMA = (
    "{{ '<|begin|>' }}{% for m in messages %}[{{ 'ipython' if m.role == 'tool' else m.role }}]\n\n"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}{% endif %}"
    "{{ {'name': m.tool_calls[0].function.name, 'parameters': m.tool_calls[0].function.arguments} | tojson }}"
    "{% else %}{{ m.content | trim }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
# As Mistral's: strict about roles, a tool's answer only after its call, the turn begins without a word.
STRICT = (
    "{% set n = namespace(last='') %}{% for m in messages %}"
    "{% if m.role == 'tool' and n.last not in ('called', 'tool') %}{{ raise_exception('a result without a call') }}{% endif %}"
    "{% if m.role == n.last and m.role != 'tool' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}[RESULT]{{ m.content }}[/RESULT]"
    "{% elif m.tool_calls %}[CALL]{{ m.tool_calls | length }}{{ m.tool_calls[-1].function.arguments | tojson }}<|im_end|>"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}"
    "{% set n.last = 'called' if m.tool_calls else m.role %}{% endfor %}"
)
THINKING = TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif -%}", "<|im_start|>assistant\n<think>\n{% endif -%}"
)
TEMPLATES = {
    "chatml": CHATML, "default system": DEFAULT_SYSTEM, "llama": LLAMA, "strict": STRICT, "qwen3": TEMPLATE,
    "opens thoughts": THINKING, "nano": _TEMPLATE.read_text(),
}  # fmt: skip


class Counting(Session):
    """Adds what it is told; says `texts` after turns that make no call, one after the other."""

    def __init__(self, name="s", texts=(), calls=2, start=0):
        self.id, self.texts, self.total, self.left = name, list(texts), start, calls

    def open(self):
        return Opening([{"role": "user", "content": f"begin {self.id}"}], [TOOL])

    def call(self, call):
        if call.name == "hang":
            time.sleep(60)
        if call.name == "raise":
            raise {"exit": SystemExit, "value": ValueError, "timeout": TimeoutError}[call.arguments["how"]](
                "no"
            )
        if call.name == "number":
            return 5
        self.total += call.arguments["x"]
        return json.dumps({"total": self.total})

    def reply(self, turn):
        return [{"role": "user", "content": self.texts.pop(0)}] if self.texts else None

    def reward(self):
        return float(self.total)


def call_text(*calls):
    return "".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in calls
    )


def add(x):
    return ("add", {"x": x})


class Recorder(BatchEngine):
    """Says scripted turns and keeps the prompts; a turn is (text, how it ends): stop, length, or stop without its token."""

    def __init__(self, tokenizer, script):
        self.prompts = {}

        def generate(requests):
            samples = []
            for request in requests:
                number, _, turn = request.id.partition("/")
                self.prompts.setdefault(int(number), []).append(request.prompt_ids)
                text, how = script(int(number), int(turn))
                ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
                ids += (tokenizer.eos_token_id,) if how == "stop" else ()
                reason = "length" if how == "length" else "stop"
                logprobs = tuple(-0.001 * (i + 1) for i in range(len(ids)))
                samples.append(Sample(request.id, request.prompt_ids, ids, logprobs, reason, 3))
            return samples

        super().__init__(generate)


TURNS = st.tuples(
    st.sampled_from(["ok", "", "a\n", "<think>\nhm", "<think>\nhm\n</think>\n\nok", "é<", call_text(add(2)),
                     "ok" + call_text(add(1), add(3))]),
    st.sampled_from(["stop", "stop", "stop", "length"]),
)  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@given(
    script=st.lists(TURNS, min_size=1, max_size=5),
    texts=st.lists(st.sampled_from(["go on", "\nyes ", "placeholder"]), max_size=4),
)
@settings(max_examples=12, deadline=None)
def test_every_prompt_begins_with_the_very_ids_of_the_turn_before(name, script, texts):
    tokenizer = byte_tokenizer(TEMPLATES[name])
    engine = Recorder(tokenizer, lambda number, turn: script[min(turn, len(script) - 1)])
    session = Counting(texts=texts)
    session.instant = True
    (played,) = play(
        [session], engine, new_bridge(tokenizer, call_format="qwen"), Limits(max_turns=6, max_length=9000)
    )
    prompts, expected, sampled = engine.prompts[0], [], []
    for turn, prompt in zip(played.turns, prompts, strict=True):
        assert list(prompt[: len(expected)]) == expected
        between = len(prompt) - len(expected)
        expected = [*prompt, *turn.ids]
        sampled += [False] * between + [True] * len(turn.ids)
    assert played.ids.tolist() == expected
    assert played.sampled.tolist() == sampled
    assert len(played.sequences) == 1
    logprobs = [value for turn in played.turns for value in turn.logprobs]
    np.testing.assert_array_equal(played.logprobs[played.sampled], np.float32(logprobs))
    assert not played.logprobs[~played.sampled].any()


@pytest.mark.parametrize("name", ["chatml", "default system", "llama"])
def test_what_is_appended_is_what_the_template_writes_of_the_whole(name):
    """Where a template writes turns as they are, the text of all ids is the text of the whole conversation."""
    tokenizer = byte_tokenizer(TEMPLATES[name])
    script = [call_text(add(2)), "two", call_text(add(1), add(1)), "four"]
    for how in ("stop", "stopped before"):
        engine = Recorder(tokenizer, lambda number, turn, how=how: (script[turn], how))
        (played,) = play([Counting(texts=["more"])], engine, new_bridge(tokenizer, call_format="qwen"))
        last = "" if how == "stop" else END
        whole = render_chat(ChatTemplate(tokenizer), played.messages, [TOOL])
        assert tokenizer.decode(played.ids) + last == whole.removesuffix("\n")
        assert [m["role"] for m in played.messages] == [
            "user", "assistant", "tool", "assistant", "user", "assistant", "tool", "tool", "assistant",
        ]  # fmt: skip


def test_masks_token_by_token():
    tokenizer = byte_tokenizer(CHATML)
    script = [
        (call_text(add(2)), "stop"),
        ("tw", "length"),
        ("<think>\nhm", "length"),
        ("x", "cut before its end"),
        ("bye", "stop"),
    ]
    engine = Recorder(tokenizer, lambda number, turn: script[turn])
    (played,) = play([Counting(texts=["a", "b", "c"])], engine, new_bridge(tokenizer))
    pieces = [
        (f"<|im_start|>system\n{json.dumps([TOOL])}{END}\n<|im_start|>user\nbegin s{END}\n<|im_start|>assistant\n", False),
        (call_text(add(2)) + END, True),
        (f'\n<|im_start|>tool\n{{"total": 2}}{END}\n<|im_start|>assistant\n', False),
        ("tw", True),
        (f"{END}\n<|im_start|>user\na{END}\n<|im_start|>assistant\n", False),
        ("<think>\nhm", True),
        (f"</think>{END}\n<|im_start|>user\nb{END}\n<|im_start|>assistant\n", False),
        ("x", True),
        (f"{END}\n<|im_start|>user\nc{END}\n<|im_start|>assistant\n", False),
        ("bye" + END, True),
    ]  # fmt: skip
    encoded = [(tokenizer(text, add_special_tokens=False)["input_ids"], kind) for text, kind in pieces]
    assert played.ids.tolist() == [i for ids, _ in encoded for i in ids]
    assert played.sampled.tolist() == [kind for ids, kind in encoded for _ in ids]
    assert (played.ended, played.cut.turns, played.reward, played.weight_version) == ("done", 2, 2.0, 3)
    assert [turn.error for turn in played.turns] == [
        None,
        "the turn did not end",
        "a thought that is not closed",
        None,
        None,
    ]


def test_a_rendered_history_starts_a_sequence_where_the_template_drops_a_thought():
    tokenizer = byte_tokenizer(TEMPLATE)
    script = ["<think>\nfirst\n</think>\n\n" + call_text(add(1)), "one", "<think>\nlast\n</think>\n\nbye"]
    engine = Recorder(tokenizer, lambda number, turn: (script[turn], "stop"))
    (played,) = play([Counting(texts=["go"])], engine, new_rerender(tokenizer))
    assert [p for p, _, _ in played.sequences][-1].tolist() == [*engine.prompts[0][-1], *played.turns[-1].ids]
    for prompt in engine.prompts[0][1:]:
        text = tokenizer.decode(prompt)
        assert ("first" in text) == (
            prompt == engine.prompts[0][1]
        )  # kept up to the next question, as Qwen3's template has it
    assert sum(int(s.sampled.sum()) for s in played.sequences) == sum(len(t.ids) for t in played.turns)


def test_what_tools_and_sessions_do_wrong_stays_in_their_conversation():
    tokenizer = byte_tokenizer(CHATML)
    wrong = [
        ("raise", {"how": "exit"}), ("raise", {"how": "value"}), ("raise", {"how": "timeout"}), ("hang", {}), ("number", {}),
        ("add", {"y": 1}),
    ]  # fmt: skip

    def script(number, turn):
        return (
            [call_text(wrong[number], add(1)) if number < 6 else call_text(add(0), add(1)), "so"][turn],
            "stop",
        )

    class Deaf(Counting):
        def reply(self, turn):
            raise RuntimeError("out of words")

    class Closed(Counting):
        def open(self):
            raise OSError("no file")

    sessions = [*(Counting(str(i)) for i in range(7)), Deaf("deaf"), Closed("closed")]
    began = time.monotonic()
    played = play(sessions, Recorder(tokenizer, script), new_bridge(tokenizer), Limits(call_seconds=0.4))
    assert time.monotonic() - began < 5
    first = [json.loads(p.turns[0].observations[0]).get("error") for p in played[:7]]
    assert first == [
        "raise failed: SystemExit: no", "raise failed: ValueError: no", "raise failed: TimeoutError: no",
        "hang took longer than 0.4 s", "number failed: it returned int, not text", "add failed: KeyError: 'x'", None,
    ]  # fmt: skip
    assert [p.turns[0].observations[1] for i, p in enumerate(played[:7]) if i != 3] == ['{"total": 1}'] * 6
    assert "has not come back" in played[3].turns[0].observations[1]
    assert [p.ended for p in played] == ["done"] * 3 + ["failed"] + ["done"] * 3 + ["failed"] * 2
    assert "OSError: no file" in played[8].error and "RuntimeError: out of words" in played[7].error
    assert [p.cut.failures for p in played] == [1, 1, 1, 0, 1, 1, 0, 0, 0] and played[3].cut.timeouts == 1
    assert not played[8].turns and played[8].ids.size == 0


def test_a_mistake_of_the_users_is_raised():
    class Wrong(Counting):
        def open(self):
            raise UserError("no such data")

    tokenizer = byte_tokenizer(CHATML)
    with pytest.raises(UserError, match="no such data"):
        play([Wrong()], scripted_engine(tokenizer, lambda number, turn: ""), new_bridge(tokenizer))
    with pytest.raises(UserError, match="max_turns=0 must be at least 1"):
        Limits(max_turns=0)


def test_limits_end_a_conversation_and_count_what_they_took():
    tokenizer = byte_tokenizer(CHATML)

    def ended(limits, script, **options):
        engine = Recorder(tokenizer, script)
        (played,) = play([Counting(**options)], engine, new_bridge(tokenizer), limits)
        return played

    always = lambda number, turn: (call_text(add(1)), "stop")  # noqa: E731
    opening = len(ended(Limits(), lambda *_: ("bye", "stop")).ids) - 4
    played = ended(Limits(max_turns=3), always)
    assert (played.ended, len(played.turns), len(played.calls), played.reward) == ("turns", 3, 3, 3.0)
    assert played.messages[-1]["role"] == "tool" and played.ids[-1] == tokenizer.eos_token_id
    played = ended(Limits(max_calls=2, max_turns=4), always)
    assert (played.reward, played.cut.calls) == (2.0, 2)
    assert "no calls left after 2" in played.turns[2].observations[0]
    played = ended(Limits(max_length=opening + 1), lambda *_: ("b", "length"))
    assert (played.ended, played.cut.turns, len(played.ids)) == ("truncated", 1, opening + 1)
    played = ended(Limits(max_length=opening), always)
    assert (played.ended, len(played.turns), len(played.ids)) == ("length", 0, opening)
    played = ended(Limits(max_length=opening + 200), always)
    assert played.ended == "length" and played.cut.messages == 1 and len(played.ids) <= opening + 200
    assert played.sampled[-1] and played.messages[-1]["role"] == "assistant"

    class Long(Counting):
        def call(self, call):
            return "y" * 1000

    (played,) = play([Long()], Recorder(tokenizer, lambda n, t: ([call_text(add(1)), "so"][t], "stop")), new_bridge(tokenizer),
                     Limits(max_observation=10))  # fmt: skip
    assert played.turns[0].observations == ("y" * 10 + " ... (cut)",) and played.cut.observations == 1


def test_a_session_may_read_calls_in_its_own_way_and_say_when_it_is_done():
    class Own(Counting):
        def parse(self, text):
            if text == "broken":
                raise KeyError("reader")
            name, _, value = text.partition(" ")
            from dcore_jax.calls import Call, ParsedResponse

            return ParsedResponse(None, (Call(name, {"x": int(value)}),), "")

        @property
        def done(self):
            return self.total > 3

    tokenizer = byte_tokenizer(CHATML)
    engine = scripted_engine(tokenizer, lambda number, turn: ["broken", "add 2"][min(turn, 1)])
    (played,) = play([Own(texts=["again"])], engine, new_bridge(tokenizer))
    assert (played.ended, played.reward, len(played.turns)) == ("done", 4.0, 3)
    assert played.turns[0].error == "KeyError: 'reader'"
    assert played.messages[-1]["content"] == '{"total": 4}'


@pytest.fixture(scope="module")
def model():
    """A random Qwen3 with room for the byte tokenizer's ids."""
    return new_decoder(model_config_from_hf(nano_fields(320, hidden=64, layers=2)), seed=1)


class Talker(Counting):
    """Answers each of the first turns of a random model, whatever it says."""

    instant = True

    def open(self):
        return Opening([{"role": "user", "content": f"{self.id}?"}])


def sampled_play(model, count, *, slots, at_once=64, turns=2, stops=8, max_tokens=24, seed=0, on_played=None):
    tokenizer = byte_tokenizer(CHATML)
    engine = NativeEngine(model, slots=slots, eos_token_ids=[tokenizer.eos_token_id], first_length=256)
    sessions = [Talker(str(i), ["a", "bc"] * turns) for i in range(count)]
    sampling = SamplingParams(temperature=1.0, seed=seed, stop_token_ids=tuple(range(65, 65 + stops)))
    limits = Limits(max_length=256, max_tokens=max_tokens, max_turns=turns, at_once=at_once)
    watch = (lambda played: on_played(engine)) if on_played else None
    return play(sessions, engine, new_bridge(tokenizer), limits, sampling=sampling, on_played=watch), engine


def test_logprobs_are_the_trainers_on_the_same_ids(model):
    played, _ = sampled_play(model, 6, slots=4)
    forward = nnx.jit(lambda decoder, tokens: decoder(tokens))
    for one in played:
        tokens = np.pad(one.ids, (0, 256 - len(one.ids)))[None]  # causal: what is behind does not matter
        logits = np.asarray(forward(model, tokens), np.float64)[0]
        logits -= logits.max(-1, keepdims=True)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        at = np.flatnonzero(one.sampled)
        np.testing.assert_allclose(one.logprobs[at], logprobs[at - 1, one.ids[at]], atol=1e-4)
        assert len(one.turns) == 2 and len(at) >= 2


def test_a_conversation_is_the_same_alone_and_among_others(model):
    together, _ = sampled_play(model, 9, slots=4)
    fewer, _ = sampled_play(model, 9, slots=4, at_once=2)
    for one, other in zip(together, fewer, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
    assert len({one.ids.tobytes() for one in together}) == 9


def test_64_conversations_at_once_keep_nine_tenths_of_the_slots_busy(model):
    """Turns of random length, mean about 14 tokens; counted as long as there are 64 conversations to play."""
    seen = []
    played, engine = sampled_play(
        model, 160, slots=64, stops=16, on_played=lambda engine: seen.append(engine.occupancy)
    )
    full = seen[160 - 64]  # when the last of the others had begun
    assert full.total > 20 * 64
    assert full.share >= 0.9
    lengths = [len(turn.ids) for one in played for turn in one.turns]
    assert np.std(lengths) > 5 and engine.in_flight == 0


def test_a_busy_engine_is_not_taken(model):
    from dcore_jax.engines import Request

    tokenizer = byte_tokenizer(CHATML)
    engine = BatchEngine(lambda requests: [])
    engine.submit([Request((1,))])
    with pytest.raises(RuntimeError, match="1 requests are in flight"):
        play([Counting()], engine, new_bridge(tokenizer))


def test_a_template_without_an_end_of_turn_is_refused_in_a_line():
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    engine = scripted_engine(tokenizer, lambda number, turn: "x")
    (played,) = play([Counting(texts=["more"])], engine, new_bridge(tokenizer))
    assert played.ended == "failed" and "no end of a turn" in played.error


def test_seeds_differ_by_conversation_and_turn():
    from dcore_jax.player import turn_seed

    seeds = {turn_seed(seed, number, turn) for seed in range(5) for number in range(40) for turn in range(10)}
    assert len(seeds) == 2000 and replace(SamplingParams(), seed=max(seeds))
