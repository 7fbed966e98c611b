"""Find the layer of one network where object scale is best readable, and cut the network there.

Example:
  python scripts/probe.py --config=configs/boxes.py --config.architecture=resnet50 --config.weights=runs/weights/resnet50 \
    --config.images=VOCdevkit/VOC2007 --config.image_class=car --workdir=runs/resnet50_car

Writes scores.csv, summary.json, report.html, figures/, pruned/ and features/ (streamed/ where images are streamed) to --workdir.

Several hosts: the same command on each with --multihost. Where jax finds the others by itself (SLURM, Open MPI, Kubernetes, TPU)
that is all; elsewhere set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID. See docs/streaming.md.
"""

import os
import sys

import command
import jax
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR, run
from ml_collections import config_flags

from scalecov_jax.pipelines import probe

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The settings, such as configs/boxes.py, which explains each of them."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what the run would take in memory and time, and stop.")
MULTIHOST = flags.DEFINE_bool("multihost", False, "Share the images with the same command on other hosts.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Run the main job."""
    if MULTIHOST.value:
        by_hand = {
            argument: int(os.environ[name])
            for argument, name in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID"))
            if name in os.environ
        }
        jax.distributed.initialize(**by_hand)
    table = probe.run(
        CONFIG.value.to_dict(),
        WORKDIR.value,
        command=sys.argv,
        resume=RESUME.value,
        overwrite=OVERWRITE.value,
        estimate_only=DRY_RUN.value,
    )
    print(table)


if __name__ == "__main__":
    run(main)
