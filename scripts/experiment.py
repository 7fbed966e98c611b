"""Run an experiment by name; docs/architecture.md shows how to write one of your own.

Example:
  python scripts/experiment.py --experiment=noise --config=configs/noise.py --workdir=runs/noise

For your own, name the module that registers it, such as --imports=positions, and a file of settings like configs/noise.py. Writes
one CSV per table, summary.json, report.html, figures/ and features/ to --workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import run

EXPERIMENT = flags.DEFINE_string("experiment", None, "Its name among those that are registered.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Its settings.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["experiment", "config", "workdir"])


def main() -> None:
    """Run the experiment."""
    settings, options = CONFIG.value.to_dict(), {"resume": RESUME.value, "overwrite": OVERWRITE.value}
    print(run.run(EXPERIMENT.value, settings, WORKDIR.value, command=sys.argv, **options))


if __name__ == "__main__":
    command.run(main)
