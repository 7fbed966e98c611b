"""Does cutting the network help a medical task? Mean nucleus area from the whole, the pruned and the untrained network.

Examples:
  python scripts/transfer.py --config=configs/nuclei.py --config.weights=runs/weights/resnet50 --config.layer=auto \
    --config.data=NUCLEI --config.trainable=head --config.seeds=10 --workdir=runs/nuclei
  python scripts/transfer.py --config=configs/tissue.py --workdir=runs/tissue            # fine-tuning on rendered tissue

Writes transfer.csv, comparisons.csv, sweep.csv (where to cut) or learning.csv, predictions.csv, models.csv, magnifications.csv,
left_out.csv, summary.json, report.html and figures/ to --workdir, beside patches/, features/ and training/, which --resume finds
again. training/NAME/network and head.npz are the fine-tuned networks and their heads, heads/ those on frozen features. An
interrupted training goes on to the same bits.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import run
from scalecov_jax.experiments import transfer
from scalecov_jax.settings import describe

__doc__ += "\n" + describe(transfer.Settings)
CONFIG = config_flags.DEFINE_config_file("config", None, "The settings, such as configs/nuclei.py.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Run the experiment."""
    settings, workdir = CONFIG.value.to_dict(), WORKDIR.value
    options = {"resume": RESUME.value, "overwrite": OVERWRITE.value}
    print(run.run("transfer", settings, workdir, command=sys.argv, **options))


if __name__ == "__main__":
    command.run(main)
