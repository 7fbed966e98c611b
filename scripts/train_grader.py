"""Train and test the grader of diabetic retinopathy; an interrupted training goes on with --resume, to the same bits.

Examples:
  python scripts/train_grader.py --config=configs/retina.py --workdir=runs/grader
  python scripts/train_grader.py --config=configs/retina.py --config.images=FOLDER --config.size=640 --config.width=1 \
    --workdir=runs/grader_photographs

FOLDER holds fundus photographs and one CSV (columns image and level, as EyePACS has them); tfds:DATA_DIR takes prepared
diabetic_retinopathy_detection. Writes the trimmed eyes, states/ and curve.csv while training, and at the end network/ (a
checkpoint), predictions.csv, confusion.csv, scores.csv, left_out.csv, summary.json, report.html, figures/ and the model card to
--workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import run
from scalecov_jax.experiments import grade
from scalecov_jax.settings import describe

__doc__ += "\n" + describe(grade.Settings)
CONFIG = config_flags.DEFINE_config_file("config", None, "What to train, such as configs/retina.py.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything, print what would be done, and stop.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Train and test."""
    settings, workdir = CONFIG.value.to_dict(), WORKDIR.value
    if DRY_RUN.value:
        print(grade.plan(run.check("grade", settings)[0]))
        return
    print(
        run.run("grade", settings, workdir, command=sys.argv, resume=RESUME.value, overwrite=OVERWRITE.value)
    )


if __name__ == "__main__":
    command.run(main)
