"""Train a compact network on scenes; an interrupted training goes on with --resume, to the same bits.

Example:
  python scripts/pretrain.py --config=configs/pretrain.py --config.architecture=resnet50 --workdir=runs/pretrain/resnet50

Writes states/ and curve.csv while training, and at the end network/ (a checkpoint), held_out.csv, summary.json, report.html,
figures/ and the model card to --workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import run
from scalecov_jax.experiments import pretrain
from scalecov_jax.settings import describe

__doc__ += "\n" + describe(pretrain.Settings)
CONFIG = config_flags.DEFINE_config_file("config", None, "What to train, such as configs/pretrain.py.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Train."""
    settings, workdir = CONFIG.value.to_dict(), WORKDIR.value
    print(
        run.run(
            "pretrain", settings, workdir, command=sys.argv, resume=RESUME.value, overwrite=OVERWRITE.value
        )
    )


if __name__ == "__main__":
    command.run(main)
