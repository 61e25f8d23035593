"""Dishes of cooks: find the favourite, show, get the heat of a spice, set portions and spice; a held-out family."""

from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.families.foreign import FOREIGN, FOREIGN_VALUES
from dcore_jax.toolworld.family import Output, Plan, Policy, ToolFamily, ids, register, step
from dcore_jax.toolworld.tables import SMALL, Tables
from dcore_jax.toolworld.tool import Tool, object_schema

_VALUES = {"cook": ids("abcdefgh"), "dish": ids("ijklmnop"), "spice": ids("qrstuvwx"), "portions": SMALL}
_T = Tables("cook", "dish", "spice", "portions", _VALUES)


def _find_dish(state: Any, cook: str) -> JSON:
    return {"dish": _T.latest(state, cook)}


def _show_dish(state: Any, dish: str) -> JSON:
    return dict(_T.fields(state, dish))


def _get_heat(state: Any, spice: str) -> JSON:
    return {"heat": _T.number(state, spice)}


def _set_portions(state: Any, dish: str, portions: int) -> JSON:
    return _T.change(state, dish, "portions", portions)


def _set_spice(state: Any, dish: str, spice: str) -> JSON:
    _T.number(state, spice)
    return _T.change(state, dish, "spice", spice)


_FIND = step("find_dish", "find the favourite dish of cook {cook}", cook="cook")
_SHOW = step("show_dish", "show dish {dish}", dish="dish")
_SHOW_FOUND = step("show_dish", "show the dish of step {0}", dish=Output(0, "dish"))
_PORTIONS_FOUND = step(
    "set_portions",
    "set the portions of the dish of step {0} to {portions}",
    dish=Output(0, "dish"),
    portions="portions",
)
_SPICE_FOUND = step(
    "set_spice", "season the dish of step {0} with spice {spice}", dish=Output(0, "dish"), spice="spice"
)
_SHOWN = "the spice is {%d[spice]} and the portions are {%d[portions]}"

FAMILY = register(
    ToolFamily(
        name="recipes",
        tools=(
            Tool(
                "find_dish",
                "Name the favourite dish of a cook.",
                object_schema(cook="string"),
                _find_dish,
                "best_plate",
            ),
            Tool(
                "show_dish",
                "Give the spice and the portions of a dish.",
                object_schema(dish="string"),
                _show_dish,
                "view_plate",
            ),
            Tool(
                "get_heat",
                "Give the heat of a spice.",
                object_schema(spice="string"),
                _get_heat,
                "spice_degree",
            ),
            Tool(
                "set_portions",
                "Change the portions of a dish.",
                object_schema(dish="string", portions="integer"),
                _set_portions,
                "size_plate",
            ),
            Tool(
                "set_spice",
                "Change the spice of a dish.",
                object_schema(dish="string", spice="string"),
                _set_spice,
                "season_plate",
            ),
        ),
        plans=(
            Plan(
                (
                    "find the favourite dish of cook {cook}",
                    "which dish is favourite of cook {cook}",
                    "name the dish that cook {cook} likes most",
                ),
                (_FIND,),
                "the favourite dish is {0[dish]}",
            ),
            Plan(
                ("show dish {dish}", "what goes into dish {dish}", "tell me about dish {dish}"),
                (_SHOW,),
                _SHOWN % (0, 0),
            ),
            Plan(
                (
                    "get the heat of spice {spice}",
                    "what is the heat of spice {spice}",
                    "how hot is spice {spice}",
                ),
                (step("get_heat", "get the heat of spice {spice}", spice="spice"),),
                "the heat is {0[heat]}",
            ),
            Plan(
                (
                    "set the portions of dish {dish} to {portions}",
                    "let dish {dish} have {portions} portions",
                    "dish {dish} should serve {portions} portions",
                ),
                (
                    step(
                        "set_portions",
                        "set the portions of dish {dish} to {portions}",
                        dish="dish",
                        portions="portions",
                    ),
                ),
                "dish {dish} is changed",
            ),
            Plan(
                (
                    "season dish {dish} with spice {spice}",
                    "use spice {spice} in dish {dish}",
                    "dish {dish} should taste of spice {spice}",
                ),
                (step("set_spice", "season dish {dish} with spice {spice}", dish="dish", spice="spice"),),
                "dish {dish} is changed",
            ),
            Plan(
                (
                    "show the favourite dish of cook {cook}",
                    "what goes into the favourite dish of cook {cook}",
                    "tell me about the dish that cook {cook} likes most",
                ),
                (_FIND, _SHOW_FOUND),
                _SHOWN % (1, 1),
            ),
            Plan(
                (
                    "set the portions of the favourite dish of cook {cook} to {portions}",
                    "let the favourite dish of cook {cook} have {portions} portions",
                    "the favourite dish of cook {cook} should serve {portions} portions",
                ),
                (_FIND, _PORTIONS_FOUND),
                "dish {0[dish]} is changed",
            ),
            Plan(
                (
                    "season the favourite dish of cook {cook} with spice {spice}",
                    "use spice {spice} in the favourite dish of cook {cook}",
                    "the favourite dish of cook {cook} should taste of spice {spice}",
                ),
                (_FIND, _SPICE_FOUND),
                "dish {0[dish]} is changed",
            ),
            Plan(
                (
                    "get the heat of the spice of dish {dish}",
                    "what is the heat of the spice of dish {dish}",
                    "how hot is the spice of dish {dish}",
                ),
                (_SHOW, step("get_heat", "get the heat of the spice of step {0}", spice=Output(0, "spice"))),
                "the heat is {1[heat]}",
            ),
            Plan(
                (
                    "get the heat of the spice of the favourite dish of cook {cook}",
                    "what is the heat of the spice of the favourite dish of cook {cook}",
                    "how hot is the spice of the favourite dish of cook {cook}",
                ),
                (
                    _FIND,
                    _SHOW_FOUND,
                    step("get_heat", "get the heat of the spice of step {1}", spice=Output(1, "spice")),
                ),
                "the heat is {2[heat]}",
            ),
            Plan(
                (
                    "set the portions of the favourite dish of cook {cook} to {portions} and show it",
                    "let the favourite dish of cook {cook} have {portions} portions and show it",
                    "the favourite dish of cook {cook} should serve {portions} portions, show it then",
                ),
                (_FIND, _PORTIONS_FOUND, _SHOW_FOUND),
                _SHOWN % (2, 2),
            ),
        ),
        foreign=FOREIGN,
        values={**FOREIGN_VALUES, **_VALUES},
        initial_state=_T.initial_state,
        policies=(Policy("set_portions", "dish", "never set the portions of dish {dish}"),),
        held_out=True,
    )
)
