"""The one exception a user is meant to read."""


class UserError(Exception):
    """A mistake that the user can mend: the message is one line that names the file, record or field, and the mend.

    The scripts print it as `error: <message>` and exit with status 1; everything else is a bug and keeps its traceback.
    """
