"""Run a whole experiment on several networks from its configuration; configs/demo.py is what `make demo` runs.

Example:
  python scripts/reproduce.py --config=configs/demo.py --workdir=runs/demo

Writes scores.csv, summary.json, report.html, figures/, pruned/ and features/ to --workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR, run
from ml_collections import config_flags

from scalecov_jax.pipelines import probe

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, such as configs/demo.py.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Run the experiment."""
    settings, workdir = CONFIG.value.to_dict(), WORKDIR.value
    print(probe.run(settings, workdir, command=sys.argv, resume=RESUME.value, overwrite=OVERWRITE.value))


if __name__ == "__main__":
    run(main)
