"""Run a whole experiment on several networks from its configuration.

Examples:
  python scripts/reproduce.py --config=configs/demo.py --workdir=runs/demo       # where scale lives; what `make demo` runs
  python scripts/reproduce.py --config=configs/paper.py --workdir=runs/paper     # every experiment of the paper
  python scripts/reproduce.py --config=configs/paper.py:scenes --workdir=runs/paper_scenes     # the same without other data

Writes summary.json and report.html to --workdir; configs/demo.py also what scripts/probe.py writes, and configs/paper.py
compared.csv (published, ours, difference, explanation) and one folder a section. After an interruption the same command with
--resume goes on where it stopped.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import reproduction, run

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, such as configs/demo.py or configs/paper.py."
)
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Run the experiment: a config with `sections` runs several, one without the probes."""
    settings, workdir = CONFIG.value.to_dict(), WORKDIR.value
    options = {"command": sys.argv, "resume": RESUME.value, "overwrite": OVERWRITE.value}
    if "sections" in settings:
        print(reproduction.run(settings, workdir, **options))
    else:
        print(run.run("probe", settings, workdir, **options))


if __name__ == "__main__":
    command.run(main)
