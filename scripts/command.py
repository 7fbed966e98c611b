"""How every script starts and fails: a user's mistake is one clear message and exit status 1, without a traceback."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import jax
from absl import app, flags, logging

from scalecov_jax.compilation import keep_programs
from scalecov_jax.settings import with_home

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the results; must be new, unless --resume or --overwrite."
)
RESUME = flags.DEFINE_bool("resume", False, "Go on in --workdir, computing only what is missing.")
PROFILE = flags.DEFINE_bool(
    "profile",
    False,
    "Write a trace of the run to --workdir/profile, for TensorBoard or Perfetto; take few images.",
)
PROGRAMS = flags.DEFINE_string(
    "programs",
    os.environ.get("SCALECOV_PROGRAMS", ""),
    "Folder that keeps compiled programs for the next run, on machines of the same kind; none when empty. SCALECOV_PROGRAMS "
    "in the environment sets it for all runs.",
)
IMPORTS = flags.DEFINE_list(
    "imports",
    [],
    "Modules of yours, separated by commas, in the current folder or on the Python path: what they register (measures, probes, "
    "architectures, experiments) is then known by name.",
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete what an earlier run left in --workdir.")


def run(main: Callable[[], None]) -> None:
    """Parse the flags and call `main`; with --verbosity=1 a mistake shows its traceback too."""

    def wrapped(arguments: list[str]) -> None:
        # orbax reports every file operation; what a person wants to know is in our own lines.
        logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)
        if len(arguments) > 1:
            sys.exit(
                f"error: Unexpected arguments: {' '.join(arguments[1:])}; settings look like --config.splits=10."
            )
        for stream in (sys.stdout, sys.stderr):  # of a terminal that knows no R²
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
        keep_programs(PROGRAMS.value)
        try:
            with jax.profiler.trace(str(Path(WORKDIR.value, "profile"))) if PROFILE.value else nullcontext():
                if IMPORTS.value:
                    from scalecov_jax.run import import_modules  # slow to import, and rarely needed

                    import_modules(IMPORTS.value)
                main()
        except (ValueError, FloatingPointError, OSError) as error:
            if logging.level_debug():
                raise
            sys.exit(f"error: {' '.join(str(error).split()) if isinstance(error, OSError) else error}")

    app.run(wrapped, flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS([*map(with_home, arguments)])
    except ValueError as error:
        sys.exit(f"error: An argument {error}.")
    except AttributeError as error:  # ml_collections: AttributeError(KeyError(message)) for an unknown field
        message = " ".join(str(getattr(error.args[0], "args", error.args)[0]).split())
        sys.exit(f"error: No such field in the file given by --config: {message}")
    except (flags.Error, OSError) as error:
        refused = str(error).rpartition("\nValueError: ")[2]  # by the file given by --config
        if "Error whilst parsing config file" in str(error) and refused != str(error):
            sys.exit(f"error: {refused.strip()}")
        sys.exit(f"error: {' '.join(str(error).split())} (--help lists the flags)")
