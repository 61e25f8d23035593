"""Messages in chats: find the last, read, count words, set stars, forward, delete; a state of three tables."""

from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.families.foreign import FOREIGN, FOREIGN_VALUES
from dcore_jax.toolworld.family import Output, Plan, Policy, ToolFamily, ids, register, step
from dcore_jax.toolworld.tables import SMALL, Tables
from dcore_jax.toolworld.tool import Tool, object_schema

_VALUES = {"chat": ids("abcdefgh"), "message": ids("ijklmnop"), "note": ids("qrstuvwx"), "stars": SMALL}
_T = Tables("chat", "message", "note", "stars", _VALUES)


def _find_message(state: Any, chat: str) -> JSON:
    return {"message": _T.latest(state, chat)}


def _read_message(state: Any, message: str) -> JSON:
    return dict(_T.fields(state, message))


def _count_words(state: Any, note: str) -> JSON:
    return {"words": _T.number(state, note)}


def _set_stars(state: Any, message: str, stars: int) -> JSON:
    return _T.change(state, message, "stars", stars)


def _forward_message(state: Any, message: str, chat: str) -> JSON:
    _T.add(state, chat, message)
    return {"state": "forwarded"}


def _delete_message(state: Any, message: str) -> JSON:
    _T.remove(state, message)
    return {"state": "deleted"}


_FIND = step("find_message", "find the last message in chat {chat}", chat="chat")
_READ = step("read_message", "read message {message}", message="message")
_READ_FOUND = step("read_message", "read the message of step {0}", message=Output(0, "message"))
_STAR_FOUND = step(
    "set_stars", "give {stars} stars to the message of step {0}", message=Output(0, "message"), stars="stars"
)
_FORWARD_FOUND = step(
    "forward_message",
    "forward the message of step {0} to chat {chat2}",
    message=Output(0, "message"),
    chat="chat2",
)
_DELETE_FOUND = step("delete_message", "delete the message of step {0}", message=Output(0, "message"))
_SHOWN = "the note is {%d[note]} and the stars are {%d[stars]}"

FAMILY = register(
    ToolFamily(
        name="messages",
        tools=(
            Tool(
                "find_message",
                "Name the last message of a chat.",
                object_schema(chat="string"),
                _find_message,
                "last_line",
            ),
            Tool(
                "read_message",
                "Give the note and the stars of a message.",
                object_schema(message="string"),
                _read_message,
                "open_line",
            ),
            Tool(
                "count_words",
                "Give the number of words of a note.",
                object_schema(note="string"),
                _count_words,
                "word_total",
            ),
            Tool(
                "set_stars",
                "Change the stars of a message.",
                object_schema(message="string", stars="integer"),
                _set_stars,
                "rate_line",
            ),
            Tool(
                "forward_message",
                "Put a message into another chat.",
                object_schema(message="string", chat="string"),
                _forward_message,
                "pass_line",
            ),
            Tool(
                "delete_message",
                "Take a message out of its chat.",
                object_schema(message="string"),
                _delete_message,
                "erase_line",
            ),
        ),
        plans=(
            Plan(
                (
                    "find the last message in chat {chat}",
                    "which message is last in chat {chat}",
                    "name the message that came last in chat {chat}",
                ),
                (_FIND,),
                "the last message is {0[message]}",
            ),
            Plan(
                ("read message {message}", "what is in message {message}", "tell me about message {message}"),
                (_READ,),
                _SHOWN % (0, 0),
            ),
            Plan(
                (
                    "count the words of note {note}",
                    "how many words are in note {note}",
                    "how long is note {note}",
                ),
                (step("count_words", "count the words of note {note}", note="note"),),
                "the words are {0[words]}",
            ),
            Plan(
                (
                    "give {stars} stars to message {message}",
                    "set the stars of message {message} to {stars}",
                    "message {message} gets {stars} stars",
                ),
                (
                    step(
                        "set_stars",
                        "give {stars} stars to message {message}",
                        message="message",
                        stars="stars",
                    ),
                ),
                "message {message} is changed",
            ),
            Plan(
                (
                    "forward message {message} to chat {chat}",
                    "send message {message} on to chat {chat}",
                    "chat {chat} should get message {message}",
                ),
                (
                    step(
                        "forward_message",
                        "forward message {message} to chat {chat}",
                        message="message",
                        chat="chat",
                    ),
                ),
                "message {message} is forwarded",
            ),
            Plan(
                (
                    "delete message {message}",
                    "take message {message} out of its chat",
                    "message {message} can go, delete it",
                ),
                (step("delete_message", "delete message {message}", message="message"),),
                "message {message} is deleted",
            ),
            Plan(
                (
                    "read the last message in chat {chat}",
                    "what is in the last message in chat {chat}",
                    "tell me about the message that came last in chat {chat}",
                ),
                (_FIND, _READ_FOUND),
                _SHOWN % (1, 1),
            ),
            Plan(
                (
                    "give {stars} stars to the last message in chat {chat}",
                    "set the stars of the last message in chat {chat} to {stars}",
                    "the last message in chat {chat} gets {stars} stars",
                ),
                (_FIND, _STAR_FOUND),
                "message {0[message]} is changed",
            ),
            Plan(
                (
                    "forward the last message in chat {chat} to chat {chat2}",
                    "send the last message in chat {chat} on to chat {chat2}",
                    "from chat {chat} chat {chat2} should get the last message",
                ),
                (_FIND, _FORWARD_FOUND),
                "message {0[message]} is forwarded",
            ),
            Plan(
                (
                    "delete the last message in chat {chat}",
                    "take the last message out of chat {chat}",
                    "the last message in chat {chat} can go, delete it",
                ),
                (_FIND, _DELETE_FOUND),
                "message {0[message]} is deleted",
            ),
            Plan(
                (
                    "count the words of the note in message {message}",
                    "how many words are in the note of message {message}",
                    "how long is the note in message {message}",
                ),
                (
                    _READ,
                    step("count_words", "count the words of the note of step {0}", note=Output(0, "note")),
                ),
                "the words are {1[words]}",
            ),
            Plan(
                (
                    "count the words of the last message in chat {chat}",
                    "how many words are in the last message in chat {chat}",
                    "how long is the last message in chat {chat}",
                ),
                (
                    _FIND,
                    _READ_FOUND,
                    step("count_words", "count the words of the note of step {1}", note=Output(1, "note")),
                ),
                "the words are {2[words]}",
            ),
            Plan(
                (
                    "read the last message in chat {chat} and delete it",
                    "what is in the last message in chat {chat}, and take it out",
                    "tell me about the last message in chat {chat} and delete it",
                ),
                (_FIND, _READ_FOUND, _DELETE_FOUND),
                _SHOWN % (1, 1) + ". message {0[message]} is deleted",
            ),
            Plan(
                (
                    "give {stars} stars to the last message in chat {chat} and forward it to chat {chat2}",
                    "set the stars of the last message in chat {chat} to {stars} and send it on to chat {chat2}",
                    "the last message in chat {chat} gets {stars} stars and goes to chat {chat2}",
                ),
                (_FIND, _STAR_FOUND, _FORWARD_FOUND),
                "message {0[message]} is forwarded",
            ),
        ),
        foreign=FOREIGN,
        values={**FOREIGN_VALUES, **_VALUES},
        initial_state=_T.initial_state,
        policies=(
            Policy("delete_message", "message", "never delete message {message}"),
            Policy("forward_message", "message", "never forward message {message}"),
        ),
    )
)
