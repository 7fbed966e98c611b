"""How every script starts and fails: a user's mistake is one clear message and exit status 1, without a traceback."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the results; must be new, unless --resume or --overwrite."
)
RESUME = flags.DEFINE_bool("resume", False, "Go on in --workdir, computing only what is missing.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete what an earlier run left in --workdir.")


def run(main: Callable[[], None]) -> None:
    """Parse the flags and call `main`; with --verbosity=1 a mistake shows its traceback too."""

    def wrapped(arguments: list[str]) -> None:
        # orbax reports every file operation; what a person wants to know is in our own lines.
        logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)
        if len(arguments) > 1:
            raise app.UsageError(
                f"Unexpected arguments: {' '.join(arguments[1:])}; settings look like --config.splits=10."
            )
        try:
            main()
        except ValueError as error:
            if logging.level_debug():
                raise
            sys.exit(f"error: {error}")

    app.run(wrapped)
