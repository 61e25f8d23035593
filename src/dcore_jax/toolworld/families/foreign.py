"""Requests that no family serves, for the irrelevant tasks of all."""

from dcore_jax.toolworld.family import Plan, ids, integers

FOREIGN = (
    Plan(("call number {number}", "ring number {number}", "make a call to number {number}")),
    Plan(("wash car {car}", "clean car {car}", "give car {car} a wash")),
    Plan(("feed cat {cat}", "give food to cat {cat}", "let cat {cat} have food")),
    Plan(
        (
            "paint wall {wall} with {coats} coats",
            "put {coats} coats on wall {wall}",
            "wall {wall} needs {coats} coats",
        )
    ),
    Plan(
        (
            "reserve {seats} seats for guest {guest}",
            "keep {seats} seats for guest {guest}",
            "hold {seats} seats for guest {guest}",
        )
    ),
)
FOREIGN_VALUES = {
    "number": ids("abcdefgh"),
    "car": ids("ijklmnop"),
    "cat": ids("qrstuvwx"),
    "wall": ids("qrstuvwx"),
    "guest": ids("abcdefgh"),
    "coats": integers(1, 9),
    "seats": integers(1, 9),
}
