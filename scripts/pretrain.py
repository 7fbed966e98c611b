"""Train a compact network on scenes; an interrupted training goes on with --resume, to the same bits."""

import csv
import json
import platform
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from scalecov_jax import pretraining
from scalecov_jax.images import scenes
from scalecov_jax.models.inception_v3 import InceptionV3
from scalecov_jax.models.resnet50 import ResNet50

CONFIG = config_flags.DEFINE_config_file("config", "configs/pretrain.py", "What to train.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints and the learning curve.", required=True
)
RESUME = flags.DEFINE_bool("resume", False, "Go on from the last checkpoint in --workdir.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete what is in --workdir and start anew.")


def main(_: list[str]) -> None:
    c, workdir = CONFIG.value, Path(WORKDIR.value).absolute()
    states = workdir / "states"
    if states.exists() and not RESUME.value:
        if not OVERWRITE.value:
            raise app.UsageError(
                f"{workdir} holds a training already: pass --resume to go on or --overwrite to start anew."
            )
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)

    network = {"inception_v3": InceptionV3, "resnet50": ResNet50}[c.architecture]
    module = network(last="pre_softmax", width=c.width, classes=len(scenes.CLASSES))
    optimizer = pretraining.make_optimizer(c.learning_rate, c.steps, c.warmup, c.weight_decay)
    key = jax.random.key(c.seed)
    state = pretraining.initial_state(module, optimizer, jax.random.fold_in(key, 0), c.size)
    step = jax.jit(
        partial(
            pretraining.train_step, module, optimizer, steps=c.steps, batch_size=c.batch_size, size=c.size
        ),
        donate_argnums=0,
    )
    with (
        ocp.training.Checkpointer(states) as checkpointer,
        (workdir / "curve.csv").open("a", newline="") as curve,
    ):
        if checkpointer.latest is not None:
            state = checkpointer.load(abstract_state=state)
            logging.info("Resumed at step %d.", state.step)
        writer = csv.writer(curve)
        if curve.tell() == 0:
            writer.writerow(("step", "images", "loss", "top1", "seconds"))
        start, window = time.monotonic(), []
        first = int(state.step)
        with tqdm(
            total=c.steps * c.batch_size, initial=first * c.batch_size, unit="img", mininterval=30
        ) as bar:
            for number in range(first + 1, c.steps + 1):
                state, metrics = step(state, jax.random.fold_in(key, 1))
                window.append(metrics)
                bar.update(c.batch_size)
                if number % c.log_every == 0 or number == c.steps:
                    loss, top1 = (
                        float(np.mean([getattr(m, name) for m in window])) for name in ("loss", "top1")
                    )
                    if not np.isfinite(loss):
                        raise FloatingPointError(
                            f"The loss is {loss} at step {number}; lower config.learning_rate."
                        )
                    writer.writerow(
                        (
                            number,
                            number * c.batch_size,
                            f"{loss:.4f}",
                            f"{top1:.4f}",
                            f"{time.monotonic() - start:.1f}",
                        )
                    )
                    curve.flush()
                    bar.set_postfix(loss=f"{loss:.3f}", top1=f"{top1:.3f}")
                    window = []
                if number % c.save_every == 0 or number == c.steps:
                    checkpointer.save(number, state)


if __name__ == "__main__":
    app.run(main)
