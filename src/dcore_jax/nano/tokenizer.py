"""The tokenizer of the nano model: a byte-level BPE trained on the spot on the tool world's own text.

The world's wording costs few tokens, and each of its values (a letter and a digit) is one token wherever it stands, so that
copying a value is copying a token: what a model of two or three layers learns in minutes.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dcore_jax.data.chat_template import render_chat
from dcore_jax.errors import UserError
from dcore_jax.nano.copying import copying_records
from dcore_jax.toolworld import family_names, generate_tasks, get_family, to_record
from dcore_jax.toolworld.family import VALUE_LETTERS, ToolFamily
from dcore_jax.toolworld.requests import slot_type
from dcore_jax.toolworld.task import KINDS

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Part of the text a model writes, so decoding keeps them; as one token each they cannot be half-written.
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_ADDED = [*(AddedToken(token, special=True, normalized=False) for token in (PAD, START, END))]
_ADDED += [AddedToken(token, special=False, normalized=False) for token in TAGS]
_BYTES = 256

# Merges happen within a piece only. A word is two or more letters and takes the space after it, so that what
# stands right before a value in a request is the word that says what it is (`folder ` a8). A value, and any
# other letter or digit, is a piece of its own.
_PIECES = r"[\p{L}_]{2,} ?|[a-x]\p{N}(?!\p{N})|\p{L}|\p{N}|[^\s\p{L}\p{N}]+ ?|[\r\n]+|[^\S\r\n]+"

_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
# How the method writes a decomposition, so that these words are in the vocabulary too.
_DECOMPOSITION = '[{{"step": {0}, "description": "{1}", "index": [{0}]}}]'


def build_tokenizer(out_dir: str | os.PathLike[str], *, vocab_size: int = 1088) -> PreTrainedTokenizerFast:
    """Train the nano tokenizer, save it to `out_dir` in Hugging Face form, and return it.
    The files are the same bytes every time. `<|endoftext|>` pads, `<|im_end|>` ends a turn and is the eos
    token; the chat template is ChatML with `tools=`. Raises UserError when `vocab_size` has no room for the
    bytes and the added tokens.
    """
    smallest = _BYTES + len(_ADDED)
    if vocab_size < smallest:
        raise UserError(f"vocab_size={vocab_size} is too small: bytes and added tokens alone take {smallest}")
    tokenizer = _empty_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_ADDED),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = _wrap(tokenizer)
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(str(out_dir))
    return fast


def _empty_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(_ADDED)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=_TEMPLATE.read_text(encoding="utf-8"),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> Iterator[str]:
    """Sample conversations as the template writes them, without the tags, which are tokens already; all values; and every word
    that training can show of the tool world. What is held out (families, names, wordings) is not in it.
    """
    yield from [" ".join(f"{letter}{digit}" for letter in VALUE_LETTERS for digit in range(10))] * 50
    yield from [text for name in family_names() for text in _family_text(get_family(name))] * 10
    yield from ["\n\n".join(m["content"] for m in record["messages"]) for record in copying_records(500)]
    writer = _wrap(_empty_tokenizer())
    tasks = generate_tasks(200, seed=0, kinds=KINDS) + generate_tasks(
        40, seed=0, policy=True, subtasks=(1, 1)
    )
    for task in tasks:
        for call_format in ("python", "qwen"):
            record = to_record(task, call_format=call_format)
            for end, message in enumerate(record["messages"], 1):
                if (
                    message["role"] == "assistant"
                ):  # each turn with its thought, which the template drops from history
                    turns = record["messages"][:end]
                    text = render_chat(writer, turns, record["tools"])
                    for token in (PAD, START, END, *TAGS):
                        text = text.replace(token, "\n\n")
                    yield text
        for number, subtask in enumerate(task.subtasks, 1):
            yield _DECOMPOSITION.format(number, subtask)


def _family_text(family: ToolFamily) -> Iterator[str]:
    """The words of a family's tools, of its requests in the wordings that training sees, and of its rules."""
    for tool in family.tools:
        yield f"\n{tool.name}({', '.join(tool.parameters['properties'])})\n[{tool.name}("
        for name in tool.parameters["properties"]:
            yield f'{name}="'
    for plan in (*family.plans, *family.foreign):
        yield from (re.sub(r"\{\w+\}", " ", wording) for wording in plan.wordings())
        yield from (f"some {slot_type(slot)} which {slot_type(slot)}?" for slot in plan.slots)
        for step in plan.steps:
            yield re.sub(r"\{\w+\}", " ", step.wording)
    yield from (re.sub(r"\{\w+\}", " ", rule.wording) for rule in family.policies)
