"""Find the layer of a network where a concept such as object scale is best readable, and cut the network there.

Example:
  python scripts/probe.py --config=configs/boxes.py --config.architecture=resnet50 --config.weights=runs/weights/resnet50 \
    --config.images=VOCdevkit/VOC2007 --config.image_class=car --workdir=runs/resnet50_car

Writes layers.csv, contrasts.csv, choices.csv, images.csv, scores.csv and further tables, rcvs.npz, summary.json, report.html,
figures/, pruned/ and features/ (streamed/ where images are streamed) to --workdir.

Several hosts: the same command on each with --multihost. Where jax finds the others by itself (SLURM, Open MPI, Kubernetes, TPU)
that is all; elsewhere set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID. See docs/streaming.md.
"""

import os
import sys

import command
import jax
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import run
from scalecov_jax.experiments import probe
from scalecov_jax.settings import describe, parse

__doc__ += "\n" + describe(probe.Settings)
CONFIG = config_flags.DEFINE_config_file("config", None, "The settings, such as configs/boxes.py.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what the run would take in memory and time, and stop.")
MULTIHOST = flags.DEFINE_bool("multihost", False, "Share the images with the same command on other hosts.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Run the experiment."""
    if MULTIHOST.value:
        by_hand = {
            argument: int(os.environ[name])
            for argument, name in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID"))
            if name in os.environ
        }
        jax.distributed.initialize(**by_hand)
    settings, workdir = CONFIG.value.to_dict(), WORKDIR.value
    if DRY_RUN.value:
        print(probe.estimate(parse(probe.Settings, settings, "config.")))
    else:
        print(
            run.run(
                "probe", settings, workdir, command=sys.argv, resume=RESUME.value, overwrite=OVERWRITE.value
            )
        )


if __name__ == "__main__":
    command.run(main)
