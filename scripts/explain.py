"""Show what a network looks at, which concepts push it, or what its channels respond to.

Example:
  python scripts/explain.py --method=grad_cam --config=configs/explain.py --workdir=runs/explain
  python scripts/explain.py --method=grad_cam_pp --config=configs/explain.py --config.architecture=resnet50 \
    --config.weights=runs/weights/resnet50 --config.images=FOLDER --config.limit=8 --workdir=runs/photos
  python scripts/explain.py --method=feature_visualization --config=configs/explain.py --config.layer=add_8 \
    --workdir=runs/channels
  python scripts/explain.py --method=score_propagation --config=configs/explain.py --config.weights=checkpoints/dr_grader \
    --config.images=retina --config.classes=all --config.limit=4 --workdir=runs/scores

Writes CSV tables, summary.json, report.html, figures/, pictures/ and arrays (maps/, gradients/ or states/; scores.npz and blink/
of score_propagation) to --workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import run
from scalecov_jax.experiments import explain
from scalecov_jax.settings import describe, parse

__doc__ += "\n" + describe(explain.Settings)
CONFIG = config_flags.DEFINE_config_file("config", None, "The settings, such as configs/explain.py.")
METHOD = flags.DEFINE_enum("method", None, explain.METHODS, "What to compute.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything, print what would be computed, and stop.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "method", "workdir"])


def main() -> None:
    """Explain and report."""
    settings = {**CONFIG.value.to_dict(), "method": METHOD.value}
    if DRY_RUN.value:
        print(explain.plan(parse(explain.Settings, settings, "config.")))
        return
    options = {"resume": RESUME.value, "overwrite": OVERWRITE.value}
    print(run.run("explain", settings, WORKDIR.value, command=sys.argv, **options))


if __name__ == "__main__":
    command.run(main)
