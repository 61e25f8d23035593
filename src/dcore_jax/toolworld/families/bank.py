"""Accounts of clients: find the latest, show, get the balance of a card, set the limit, pay with a card; three tables."""

from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.families.foreign import FOREIGN, FOREIGN_VALUES
from dcore_jax.toolworld.family import Output, Plan, Policy, ToolFamily, ids, register, step
from dcore_jax.toolworld.tables import SMALL, Tables
from dcore_jax.toolworld.tool import Tool, ToolError, object_schema

_VALUES = {
    "client": ids("abcdefgh"),
    "account": ids("ijklmnop"),
    "card": ids("qrstuvwx"),
    "limit": SMALL,
    "amount": SMALL,
}
_T = Tables("client", "account", "card", "limit", _VALUES)


def _find_account(state: Any, client: str) -> JSON:
    return {"account": _T.latest(state, client)}


def _show_account(state: Any, account: str) -> JSON:
    return dict(_T.fields(state, account))


def _get_balance(state: Any, card: str) -> JSON:
    return {"balance": _T.number(state, card)}


def _set_limit(state: Any, account: str, limit: int) -> JSON:
    return _T.change(state, account, "limit", limit)


def _pay(state: Any, card: str, amount: int) -> JSON:
    left = _T.number(state, card) - amount
    if amount < 1 or left < 0:
        raise ToolError(f"card {card} cannot pay {amount}")
    state["cards"][card] = left
    return {"balance": left}


_FIND = step("find_account", "find the latest account of client {client}", client="client")
_SHOW = step("show_account", "show account {account}", account="account")
_SHOW_FOUND = step("show_account", "show the account of step {0}", account=Output(0, "account"))
_LIMIT_FOUND = step(
    "set_limit",
    "set the limit of the account of step {0} to {limit}",
    account=Output(0, "account"),
    limit="limit",
)
_SHOWN = "the card is {%d[card]} and the limit is {%d[limit]}"

FAMILY = register(
    ToolFamily(
        name="bank",
        tools=(
            Tool(
                "find_account",
                "Name the latest account of a client.",
                object_schema(client="string"),
                _find_account,
                "client_book",
            ),
            Tool(
                "show_account",
                "Give the card and the limit of an account.",
                object_schema(account="string"),
                _show_account,
                "inspect_book",
            ),
            Tool(
                "get_balance",
                "Give the balance of a card.",
                object_schema(card="string"),
                _get_balance,
                "money_left",
            ),
            Tool(
                "set_limit",
                "Change the limit of an account.",
                object_schema(account="string", limit="integer"),
                _set_limit,
                "cap_book",
            ),
            Tool(
                "pay",
                "Pay an amount with a card.",
                object_schema(card="string", amount="integer"),
                _pay,
                "spend",
            ),
        ),
        plans=(
            Plan(
                (
                    "find the latest account of client {client}",
                    "which account is latest of client {client}",
                    "name the account that client {client} opened last",
                ),
                (_FIND,),
                "the latest account is {0[account]}",
            ),
            Plan(
                (
                    "show account {account}",
                    "what belongs to account {account}",
                    "tell me about account {account}",
                ),
                (_SHOW,),
                _SHOWN % (0, 0),
            ),
            Plan(
                (
                    "get the balance of card {card}",
                    "what is the balance of card {card}",
                    "how much is left on card {card}",
                ),
                (step("get_balance", "get the balance of card {card}", card="card"),),
                "the balance is {0[balance]}",
            ),
            Plan(
                (
                    "set the limit of account {account} to {limit}",
                    "let account {account} have a limit of {limit}",
                    "account {account} should have limit {limit}",
                ),
                (
                    step(
                        "set_limit",
                        "set the limit of account {account} to {limit}",
                        account="account",
                        limit="limit",
                    ),
                ),
                "account {account} is changed",
            ),
            Plan(
                (
                    "pay {amount} with card {card}",
                    "use card {card} to pay {amount}",
                    "{amount} is due, pay it with card {card}",
                ),
                (step("pay", "pay {amount} with card {card}", card="card", amount="amount"),),
                "the balance is {0[balance]}",
            ),
            Plan(
                (
                    "show the latest account of client {client}",
                    "what belongs to the latest account of client {client}",
                    "tell me about the account that client {client} opened last",
                ),
                (_FIND, _SHOW_FOUND),
                _SHOWN % (1, 1),
            ),
            Plan(
                (
                    "set the limit of the latest account of client {client} to {limit}",
                    "let the latest account of client {client} have a limit of {limit}",
                    "the latest account of client {client} should have limit {limit}",
                ),
                (_FIND, _LIMIT_FOUND),
                "account {0[account]} is changed",
            ),
            Plan(
                (
                    "get the balance of the card of account {account}",
                    "what is the balance of the card of account {account}",
                    "how much is left on the card of account {account}",
                ),
                (
                    _SHOW,
                    step("get_balance", "get the balance of the card of step {0}", card=Output(0, "card")),
                ),
                "the balance is {1[balance]}",
            ),
            Plan(
                (
                    "pay {amount} with the card of account {account}",
                    "use the card of account {account} to pay {amount}",
                    "{amount} is due, pay it with the card of account {account}",
                ),
                (
                    _SHOW,
                    step(
                        "pay",
                        "pay {amount} with the card of step {0}",
                        card=Output(0, "card"),
                        amount="amount",
                    ),
                ),
                "the balance is {1[balance]}",
            ),
            Plan(
                (
                    "get the balance of the card of the latest account of client {client}",
                    "what is the balance of the card of the latest account of client {client}",
                    "how much is left on the card of the account that client {client} opened last",
                ),
                (
                    _FIND,
                    _SHOW_FOUND,
                    step("get_balance", "get the balance of the card of step {1}", card=Output(1, "card")),
                ),
                "the balance is {2[balance]}",
            ),
            Plan(
                (
                    "pay {amount} with the card of the latest account of client {client}",
                    "use the card of the latest account of client {client} to pay {amount}",
                    "{amount} is due, pay it with the card of the latest account of client {client}",
                ),
                (
                    _FIND,
                    _SHOW_FOUND,
                    step(
                        "pay",
                        "pay {amount} with the card of step {1}",
                        card=Output(1, "card"),
                        amount="amount",
                    ),
                ),
                "the balance is {2[balance]}",
            ),
            Plan(
                (
                    "set the limit of the latest account of client {client} to {limit} and show it",
                    "let the latest account of client {client} have a limit of {limit} and show it",
                    "the latest account of client {client} should have limit {limit}, show it then",
                ),
                (_FIND, _LIMIT_FOUND, _SHOW_FOUND),
                _SHOWN % (2, 2),
            ),
        ),
        foreign=FOREIGN,
        values={**FOREIGN_VALUES, **_VALUES},
        initial_state=_T.initial_state,
        policies=(
            Policy("pay", "card", "never pay with card {card}"),
            Policy("set_limit", "account", "never set the limit of account {account}"),
        ),
    )
)
