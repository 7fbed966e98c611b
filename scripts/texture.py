"""Fine-tune a detector of tumour, and read texture from its layers, those of the pretrained network and of a random one.

Example:
  python scripts/texture.py --config=configs/texture.py --workdir=runs/texture
  python scripts/texture.py --config=configs/texture.py:real --workdir=runs/texture_real

Writes scores.csv, sensitivity.csv, detector.csv, summary.json, report.html, figures/, fine_tuned/ (a checkpoint, for
scripts/explain.py), tuning/, features/ and arrays to --workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import run
from scalecov_jax.experiments import texture
from scalecov_jax.settings import describe, parse

__doc__ += "\n" + describe(texture.Settings)
CONFIG = config_flags.DEFINE_config_file("config", None, "The settings, such as configs/texture.py.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything, print what would be computed, and stop.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Run the experiment."""
    settings, options = CONFIG.value.to_dict(), {"resume": RESUME.value, "overwrite": OVERWRITE.value}
    if DRY_RUN.value:
        print(texture.dry_run(parse(texture.Settings, settings, "config.")))
        return
    print(run.run("texture", settings, WORKDIR.value, command=sys.argv, **options))


if __name__ == "__main__":
    command.run(main)
