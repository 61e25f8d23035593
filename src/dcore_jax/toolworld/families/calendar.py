"""Meetings of people: find the next, show, count the chairs of its room, set the hour, change the room; three tables."""

from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.families.foreign import FOREIGN, FOREIGN_VALUES
from dcore_jax.toolworld.family import Output, Plan, Policy, ToolFamily, ids, register, step
from dcore_jax.toolworld.tables import SMALL, Tables
from dcore_jax.toolworld.tool import Tool, object_schema

_VALUES = {"person": ids("abcdefgh"), "meeting": ids("ijklmnop"), "room": ids("qrstuvwx"), "hour": SMALL}
_T = Tables("person", "meeting", "room", "hour", _VALUES)


def _find_meeting(state: Any, person: str) -> JSON:
    return {"meeting": _T.latest(state, person)}


def _show_meeting(state: Any, meeting: str) -> JSON:
    return dict(_T.fields(state, meeting))


def _count_chairs(state: Any, room: str) -> JSON:
    return {"chairs": _T.number(state, room)}


def _set_hour(state: Any, meeting: str, hour: int) -> JSON:
    return _T.change(state, meeting, "hour", hour)


def _set_room(state: Any, meeting: str, room: str) -> JSON:
    _T.number(state, room)
    return _T.change(state, meeting, "room", room)


_FIND = step("find_meeting", "find the next meeting of person {person}", person="person")
_SHOW = step("show_meeting", "show meeting {meeting}", meeting="meeting")
_SHOW_FOUND = step("show_meeting", "show the meeting of step {0}", meeting=Output(0, "meeting"))
_HOUR_FOUND = step(
    "set_hour", "set the hour of the meeting of step {0} to {hour}", meeting=Output(0, "meeting"), hour="hour"
)
_ROOM_FOUND = step(
    "set_room", "put the meeting of step {0} into room {room}", meeting=Output(0, "meeting"), room="room"
)
_SHOWN = "the room is {%d[room]} and the hour is {%d[hour]}"

FAMILY = register(
    ToolFamily(
        name="calendar",
        tools=(
            Tool(
                "find_meeting",
                "Name the next meeting of a person.",
                object_schema(person="string"),
                _find_meeting,
                "next_event",
            ),
            Tool(
                "show_meeting",
                "Give the room and the hour of a meeting.",
                object_schema(meeting="string"),
                _show_meeting,
                "inspect_event",
            ),
            Tool(
                "count_chairs",
                "Give the number of chairs of a room.",
                object_schema(room="string"),
                _count_chairs,
                "chair_total",
            ),
            Tool(
                "set_hour",
                "Change the hour of a meeting.",
                object_schema(meeting="string", hour="integer"),
                _set_hour,
                "shift_event",
            ),
            Tool(
                "set_room",
                "Change the room of a meeting.",
                object_schema(meeting="string", room="string"),
                _set_room,
                "host_event",
            ),
        ),
        plans=(
            Plan(
                (
                    "find the next meeting of person {person}",
                    "which meeting is next of person {person}",
                    "name the meeting that person {person} has next",
                ),
                (_FIND,),
                "the next meeting is {0[meeting]}",
            ),
            Plan(
                (
                    "show meeting {meeting}",
                    "where and when is meeting {meeting}",
                    "tell me about meeting {meeting}",
                ),
                (_SHOW,),
                _SHOWN % (0, 0),
            ),
            Plan(
                (
                    "count the chairs of room {room}",
                    "how many chairs are in room {room}",
                    "how large is room {room}",
                ),
                (step("count_chairs", "count the chairs of room {room}", room="room"),),
                "the chairs are {0[chairs]}",
            ),
            Plan(
                (
                    "set the hour of meeting {meeting} to {hour}",
                    "let meeting {meeting} begin at {hour}",
                    "meeting {meeting} should begin at {hour}",
                ),
                (
                    step(
                        "set_hour",
                        "set the hour of meeting {meeting} to {hour}",
                        meeting="meeting",
                        hour="hour",
                    ),
                ),
                "meeting {meeting} is changed",
            ),
            Plan(
                (
                    "put meeting {meeting} into room {room}",
                    "hold meeting {meeting} in room {room}",
                    "room {room} should be used for meeting {meeting}",
                ),
                (step("set_room", "put meeting {meeting} into room {room}", meeting="meeting", room="room"),),
                "meeting {meeting} is changed",
            ),
            Plan(
                (
                    "show the next meeting of person {person}",
                    "where and when is the next meeting of person {person}",
                    "tell me about the meeting that person {person} has next",
                ),
                (_FIND, _SHOW_FOUND),
                _SHOWN % (1, 1),
            ),
            Plan(
                (
                    "set the hour of the next meeting of person {person} to {hour}",
                    "let the next meeting of person {person} begin at {hour}",
                    "the next meeting of person {person} should begin at {hour}",
                ),
                (_FIND, _HOUR_FOUND),
                "meeting {0[meeting]} is changed",
            ),
            Plan(
                (
                    "put the next meeting of person {person} into room {room}",
                    "hold the next meeting of person {person} in room {room}",
                    "room {room} should be used for the next meeting of person {person}",
                ),
                (_FIND, _ROOM_FOUND),
                "meeting {0[meeting]} is changed",
            ),
            Plan(
                (
                    "count the chairs of the room of meeting {meeting}",
                    "how many chairs are in the room of meeting {meeting}",
                    "how large is the room of meeting {meeting}",
                ),
                (
                    _SHOW,
                    step("count_chairs", "count the chairs of the room of step {0}", room=Output(0, "room")),
                ),
                "the chairs are {1[chairs]}",
            ),
            Plan(
                (
                    "hold meeting {meeting} in the room of meeting {meeting2}",
                    "put meeting {meeting} into the room of meeting {meeting2}",
                    "meeting {meeting} should be where meeting {meeting2} is",
                ),
                (
                    step("show_meeting", "show meeting {meeting2}", meeting="meeting2"),
                    step(
                        "set_room",
                        "put meeting {meeting} into the room of step {0}",
                        meeting="meeting",
                        room=Output(0, "room"),
                    ),
                ),
                "meeting {meeting} is changed",
            ),
            Plan(
                (
                    "count the chairs of the room of the next meeting of person {person}",
                    "how many chairs are in the room of the next meeting of person {person}",
                    "how large is the room of the meeting that person {person} has next",
                ),
                (
                    _FIND,
                    _SHOW_FOUND,
                    step("count_chairs", "count the chairs of the room of step {1}", room=Output(1, "room")),
                ),
                "the chairs are {2[chairs]}",
            ),
            Plan(
                (
                    "set the hour of the next meeting of person {person} to {hour} and show it",
                    "let the next meeting of person {person} begin at {hour} and show it",
                    "the next meeting of person {person} should begin at {hour}, show it then",
                ),
                (_FIND, _HOUR_FOUND, _SHOW_FOUND),
                _SHOWN % (2, 2),
            ),
            Plan(
                (
                    "put the next meeting of person {person} into room {room} and set its hour to {hour}",
                    "hold the next meeting of person {person} in room {room} and let it begin at {hour}",
                    "room {room} should be used for the next meeting of person {person}, which begins at {hour}",
                ),
                (_FIND, _ROOM_FOUND, _HOUR_FOUND),
                "meeting {0[meeting]} is changed",
            ),
        ),
        foreign=FOREIGN,
        values={**FOREIGN_VALUES, **_VALUES},
        initial_state=_T.initial_state,
        policies=(
            Policy("set_hour", "meeting", "never set the hour of meeting {meeting}"),
            Policy("set_room", "room", "never put a meeting into room {room}"),
        ),
    )
)
