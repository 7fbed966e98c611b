"""Fine-tune a detector of tumour, and read texture from its layers, those of the pretrained network and of a random one.

Example:
  python scripts/texture.py --config=configs/texture.py --workdir=runs/texture
  python scripts/texture.py --config=configs/texture.py:real --workdir=runs/texture_real

Writes scores.csv, sensitivity.csv, summary.json, report.html, figures/, fine_tuned/ (a checkpoint, for scripts/explain.py),
tuning/, features/ and arrays to --workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR, run
from ml_collections import config_flags

from scalecov_jax.pipelines import texture

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The settings, such as configs/texture.py, which explains each of them."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything, print what would be computed, and stop.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Fine-tune, regress and report."""
    table = texture.run(
        CONFIG.value.to_dict(),
        WORKDIR.value,
        command=sys.argv,
        resume=RESUME.value,
        overwrite=OVERWRITE.value,
        dry_run=DRY_RUN.value,
    )
    print(table)


if __name__ == "__main__":
    run(main)
