"""What every script does around its main function."""

import sys
from collections.abc import Callable

from dcore_jax.errors import UserError


def run_script(main: Callable[[], None]) -> None:
    """Runs `main`; a UserError becomes `error: <one line>` on stderr and exit status 1, everything else keeps its traceback."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "error: interrupted; start the same line again to go on from the last checkpoint", file=sys.stderr
        )
        sys.exit(130)
