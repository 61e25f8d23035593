"""The one exception that a user is meant to read, and the phrases that its messages share."""

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can fix: one line that names the file, record or field, and the fix.

    The commands print it as `error: <message>` and exit with status 1; everything else is a bug and keeps its traceback.
    """


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raises UserError, naming the choices, unless `value` is one of them."""
    known = list(choices)
    if value not in known:
        raise UserError(f"{name} {value!r} is unknown; choose one of {', '.join(map(str, known))}")


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that is not blank; the exception's type where it has no text."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
