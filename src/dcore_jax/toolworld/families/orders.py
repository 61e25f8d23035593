"""Orders of a shop: find a user's latest, show, change the count, look up a price.

State: `{"users": {user: [order, ...]}, "orders": {order: {"item", "count"}}, "prices": {item: price}}`; the
last order of a user is the latest.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.families.foreign import FOREIGN, FOREIGN_VALUES
from dcore_jax.toolworld.family import (
    Output,
    Plan,
    Policy,
    Step,
    ToolFamily,
    draw_distinct,
    ids,
    integers,
    pick,
    register,
)
from dcore_jax.toolworld.tool import Tool, ToolError, object_schema

_USERS, _ORDERS, _ITEMS = ids("abcdefgh"), ids("ijklmnop"), ids("qrstuvwx")
_COUNTS, _PRICES = integers(1, 9), integers(10, 99)


def _find_order(state: dict[str, Any], user: str) -> JSON:
    if user not in state["users"]:
        raise ToolError(f"no user {user}")
    return {"order": state["users"][user][-1]}


def _get_order(state: dict[str, Any], order: str) -> JSON:
    return dict(_known(state, order))


def _get_price(state: dict[str, Any], item: str) -> JSON:
    if item not in state["prices"]:
        raise ToolError(f"no item {item}")
    return {"price": state["prices"][item]}


def _set_count(state: dict[str, Any], order: str, count: int) -> JSON:
    entry = _known(state, order)
    if not 1 <= count <= 9:
        raise ToolError("count must be 1 to 9")
    entry["count"] = count
    return {"state": "changed"}


def _known(state: dict[str, Any], order: str) -> dict[str, Any]:
    if order not in state["orders"]:
        raise ToolError(f"no order {order}")
    return state["orders"][order]


def _initial_state(rng: Random, wanted: Mapping[str, Sequence[JSON]]) -> JSON:
    asked_users, asked_orders = list(wanted.get("user", ())), list(wanted.get("order", ()))
    asked_items = list(wanted.get("item", ()))
    users = asked_users + draw_distinct(rng, _USERS, 2, asked_users)
    latest = draw_distinct(rng, _ORDERS, len(users), asked_orders)
    placed: dict[str, list[str]] = {user: [] for user in users}
    # An order that the request names is never a latest one: what `find_order` answers is not in the request.
    for order in asked_orders:
        placed[pick(rng, users)].append(order)
    for user, order in zip(users, latest, strict=True):
        placed[user].append(order)
    orders = asked_orders + latest
    items = draw_distinct(rng, _ITEMS, len(orders), asked_items)
    return {
        "users": placed,
        "orders": {
            order: {"item": item, "count": _COUNTS(rng)} for order, item in zip(orders, items, strict=True)
        },
        "prices": {item: _PRICES(rng) for item in asked_items + items},
    }


_FIND = Step("find_order", {"user": "user"}, "find the latest order of user {user}")
_SET_FOUND = Step(
    "set_count",
    {"order": Output(0, "order"), "count": "count"},
    "set the count of the order of step {0} to {count}",
)
_SHOW_FOUND = Step("get_order", {"order": Output(0, "order")}, "show the order of step {0}")

FAMILY = register(
    ToolFamily(
        name="orders",
        tools=(
            Tool(
                "find_order",
                "Name the latest order of a user.",
                object_schema(user="string"),
                _find_order,
                "latest_purchase",
            ),
            Tool(
                "get_order",
                "Give the item and the count of an order.",
                object_schema(order="string"),
                _get_order,
                "inspect_purchase",
            ),
            Tool(
                "get_price",
                "Give the price of an item.",
                object_schema(item="string"),
                _get_price,
                "item_cost",
            ),
            Tool(
                "set_count",
                "Change the count of an order.",
                object_schema(order="string", count="integer"),
                _set_count,
                "resize_purchase",
            ),
        ),
        plans=(
            Plan(
                (
                    "find the latest order of user {user}",
                    "which order is latest of user {user}",
                    "name the order that user {user} made last",
                ),
                (_FIND,),
                "the latest order is {0[order]}",
            ),
            Plan(
                ("show order {order}", "what is in order {order}", "tell me about order {order}"),
                (Step("get_order", {"order": "order"}, "show order {order}"),),
                "the item is {0[item]} and the count is {0[count]}",
            ),
            Plan(
                (
                    "get the price of item {item}",
                    "what is the price of item {item}",
                    "how much does item {item} cost",
                ),
                (Step("get_price", {"item": "item"}, "get the price of item {item}"),),
                "the price is {0[price]}",
            ),
            Plan(
                (
                    "set the count of order {order} to {count}",
                    "let order {order} have a count of {count}",
                    "order {order} should count {count}",
                ),
                (
                    Step(
                        "set_count",
                        {"order": "order", "count": "count"},
                        "set the count of order {order} to {count}",
                    ),
                ),
                "order {order} is changed",
            ),
            Plan(
                (
                    "show the latest order of user {user}",
                    "what is in the latest order of user {user}",
                    "tell me about the order that user {user} made last",
                ),
                (_FIND, _SHOW_FOUND),
                "the item is {1[item]} and the count is {1[count]}",
            ),
            Plan(
                (
                    "set the count of the latest order of user {user} to {count}",
                    "let the latest order of user {user} have a count of {count}",
                    "the latest order of user {user} should count {count}",
                ),
                (_FIND, _SET_FOUND),
                "order {0[order]} is changed",
            ),
            Plan(
                (
                    "get the price of the item in order {order}",
                    "what is the price of the item in order {order}",
                    "how much does the item in order {order} cost",
                ),
                (
                    Step("get_order", {"order": "order"}, "show order {order}"),
                    Step("get_price", {"item": Output(0, "item")}, "get the price of the item of step {0}"),
                ),
                "the price is {1[price]}",
            ),
            Plan(
                (
                    "get the price of the item in the latest order of user {user}",
                    "what is the price of the item in the latest order of user {user}",
                    "how much does the item in the latest order of user {user} cost",
                ),
                (
                    _FIND,
                    _SHOW_FOUND,
                    Step("get_price", {"item": Output(1, "item")}, "get the price of the item of step {1}"),
                ),
                "the price is {2[price]}",
            ),
            Plan(
                (
                    "set the count of the latest order of user {user} to {count} and show it",
                    "let the latest order of user {user} have a count of {count} and show it",
                    "the latest order of user {user} should count {count}, show it then",
                ),
                (_FIND, _SET_FOUND, _SHOW_FOUND),
                "the item is {2[item]} and the count is {2[count]}",
            ),
            Plan(
                (
                    "set the count of the latest order of user {user} to {count} and get the price of its item",
                    "let the latest order of user {user} have a count of {count} and get the price of its item",
                    "the latest order of user {user} should count {count}, how much does its item cost then",
                ),
                (
                    _FIND,
                    _SET_FOUND,
                    _SHOW_FOUND,
                    Step("get_price", {"item": Output(2, "item")}, "get the price of the item of step {2}"),
                ),
                "order {0[order]} is changed. the price is {3[price]}",
            ),
        ),
        foreign=FOREIGN,
        values={**FOREIGN_VALUES, "user": _USERS, "order": _ORDERS, "item": _ITEMS, "count": _COUNTS},
        initial_state=_initial_state,
        policies=(
            Policy("set_count", "order", "never set the count of order {order}"),
            Policy("get_price", "item", "never tell the price of item {item}"),
        ),
    )
)
