"""Flights to cities: find the next, show, get the way to its gate, book, cancel; a state of three tables."""

from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.families.foreign import FOREIGN, FOREIGN_VALUES
from dcore_jax.toolworld.family import Output, Plan, Policy, ToolFamily, ids, register, step
from dcore_jax.toolworld.tables import SMALL, Tables
from dcore_jax.toolworld.tool import Tool, object_schema

_VALUES = {"city": ids("abcdefgh"), "flight": ids("ijklmnop"), "gate": ids("qrstuvwx"), "seats": SMALL}
_T = Tables("city", "flight", "gate", "seats", _VALUES)


def _find_flight(state: Any, city: str) -> JSON:
    return {"flight": _T.latest(state, city)}


def _show_flight(state: Any, flight: str) -> JSON:
    return dict(_T.fields(state, flight))


def _get_way(state: Any, gate: str) -> JSON:
    return {"way": _T.number(state, gate)}


def _book_seats(state: Any, flight: str, seats: int) -> JSON:
    return _T.change(state, flight, "seats", seats)


def _cancel_flight(state: Any, flight: str) -> JSON:
    _T.remove(state, flight)
    return {"state": "cancelled"}


_FIND = step("find_flight", "find the next flight to city {city}", city="city")
_SHOW = step("show_flight", "show flight {flight}", flight="flight")
_SHOW_FOUND = step("show_flight", "show the flight of step {0}", flight=Output(0, "flight"))
_BOOK_FOUND = step(
    "book_seats", "book {seats} seats on the flight of step {0}", flight=Output(0, "flight"), seats="seats"
)
_CANCEL_FOUND = step("cancel_flight", "cancel the flight of step {0}", flight=Output(0, "flight"))
_SHOWN = "the gate is {%d[gate]} and the seats are {%d[seats]}"

FAMILY = register(
    ToolFamily(
        name="travel",
        tools=(
            Tool(
                "find_flight",
                "Name the next flight to a city.",
                object_schema(city="string"),
                _find_flight,
                "next_departure",
            ),
            Tool(
                "show_flight",
                "Give the gate and the booked seats of a flight.",
                object_schema(flight="string"),
                _show_flight,
                "inspect_departure",
            ),
            Tool(
                "get_way",
                "Give the minutes to a gate.",
                object_schema(gate="string"),
                _get_way,
                "walk_minutes",
            ),
            Tool(
                "book_seats",
                "Set the booked seats of a flight.",
                object_schema(flight="string", seats="integer"),
                _book_seats,
                "take_places",
            ),
            Tool(
                "cancel_flight",
                "Take a flight off the board of its city.",
                object_schema(flight="string"),
                _cancel_flight,
                "drop_departure",
            ),
        ),
        plans=(
            Plan(
                (
                    "find the next flight to city {city}",
                    "which flight is next to city {city}",
                    "name the flight that goes next to city {city}",
                ),
                (_FIND,),
                "the next flight is {0[flight]}",
            ),
            Plan(
                ("show flight {flight}", "what is known of flight {flight}", "tell me about flight {flight}"),
                (_SHOW,),
                _SHOWN % (0, 0),
            ),
            Plan(
                (
                    "get the way to gate {gate}",
                    "how far is gate {gate}",
                    "how long is the way to gate {gate}",
                ),
                (step("get_way", "get the way to gate {gate}", gate="gate"),),
                "the way is {0[way]}",
            ),
            Plan(
                (
                    "book {seats} seats on flight {flight}",
                    "take {seats} seats on flight {flight}",
                    "on flight {flight} book {seats} seats",
                ),
                (
                    step(
                        "book_seats", "book {seats} seats on flight {flight}", flight="flight", seats="seats"
                    ),
                ),
                "flight {flight} is booked",
            ),
            Plan(
                (
                    "cancel flight {flight}",
                    "take flight {flight} off the board",
                    "flight {flight} is off, cancel it",
                ),
                (step("cancel_flight", "cancel flight {flight}", flight="flight"),),
                "flight {flight} is cancelled",
            ),
            Plan(
                (
                    "show the next flight to city {city}",
                    "what is known of the next flight to city {city}",
                    "tell me about the flight that goes next to city {city}",
                ),
                (_FIND, _SHOW_FOUND),
                _SHOWN % (1, 1),
            ),
            Plan(
                (
                    "book {seats} seats on the next flight to city {city}",
                    "take {seats} seats on the next flight to city {city}",
                    "on the next flight to city {city} book {seats} seats",
                ),
                (_FIND, _BOOK_FOUND),
                "flight {0[flight]} is booked",
            ),
            Plan(
                (
                    "cancel the next flight to city {city}",
                    "take the next flight to city {city} off the board",
                    "the next flight to city {city} is off, cancel it",
                ),
                (_FIND, _CANCEL_FOUND),
                "flight {0[flight]} is cancelled",
            ),
            Plan(
                (
                    "get the way to the gate of flight {flight}",
                    "how far is the gate of flight {flight}",
                    "how long is the way to the gate of flight {flight}",
                ),
                (_SHOW, step("get_way", "get the way to the gate of step {0}", gate=Output(0, "gate"))),
                "the way is {1[way]}",
            ),
            Plan(
                (
                    "get the way to the gate of the next flight to city {city}",
                    "how far is the gate of the next flight to city {city}",
                    "how long is the way to the gate of the flight that goes next to city {city}",
                ),
                (
                    _FIND,
                    _SHOW_FOUND,
                    step("get_way", "get the way to the gate of step {1}", gate=Output(1, "gate")),
                ),
                "the way is {2[way]}",
            ),
            Plan(
                (
                    "book {seats} seats on the next flight to city {city} and show it",
                    "take {seats} seats on the next flight to city {city} and show it",
                    "on the next flight to city {city} book {seats} seats, and show the flight",
                ),
                (_FIND, _BOOK_FOUND, _SHOW_FOUND),
                _SHOWN % (2, 2),
            ),
            Plan(
                (
                    "show the next flight to city {city} and cancel it",
                    "what is known of the next flight to city {city}, and take it off the board",
                    "tell me about the next flight to city {city} and cancel it",
                ),
                (_FIND, _SHOW_FOUND, _CANCEL_FOUND),
                _SHOWN % (1, 1) + ". flight {0[flight]} is cancelled",
            ),
        ),
        foreign=FOREIGN,
        values={**FOREIGN_VALUES, **_VALUES},
        initial_state=_T.initial_state,
        policies=(
            Policy("book_seats", "flight", "never book flight {flight}"),
            Policy("cancel_flight", "flight", "never cancel flight {flight}"),
        ),
    )
)
