"""Pooled features of every block in one pass, against what a user would take instead, on the same cores in one run.

Peers, each in its own process: Keras on TensorFlow and on JAX (one model with every block as an output, pooled inside), Keras on
TensorFlow with a model per layer (as rcvtool extracts), torch (torchvision, channels last, hooks), and OpenVINO (the Keras model
with every block as an output, pooled inside, converted; float32 like the others). A peer that is not installed is left out and
named. Rounds go through all of them in turn, so that a slow minute of the machine hits all alike; the processor seconds of a step
hardly depend on what else the machine does. Needs `pip install .[benchmarks]`, and torch and torchvision for torch. Takes about
ten minutes on 2 cores.

  python benchmarks/extraction_speed.py --output=docs/extraction_speed.csv
"""

import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

PEERS = ("ours", "keras_tensorflow", "keras_jax", "one_layer_at_a_time", "torch", "openvino")
KERAS = {"inception_v3": ("InceptionV3", [f"mixed{i}" for i in range(11)])}
KERAS["resnet50"] = (
    "ResNet50",
    [f"conv{s}_block{b}_add" for s, n in ((2, 3), (3, 4), (4, 6), (5, 3)) for b in range(1, n + 1)],
)
TORCH = {
    "inception_v3": [
        f"Mixed_{name}" for name in ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]
    ]
}
TORCH["resnet50"] = [
    f"layer{s}.{b}" for s, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for b in range(n)
]  # after the ReLU
SIZES = {"inception_v3": 299, "resnet50": 224}

NETWORKS = flags.DEFINE_list("networks", list(SIZES), "Networks to time.")
CHOSEN = flags.DEFINE_list("peers", list(PEERS), "What to time; ours is always among it.")
BATCH = flags.DEFINE_integer("batch", 16, "Images a step.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Steps timed of each; the median counts.")
OUTPUT = flags.DEFINE_string("output", None, "CSV file for the table.")
WORKER = flags.DEFINE_string("worker", None, "For the processes that this one starts.")


def ours(network: str, images: np.ndarray) -> Callable[[], object]:
    """One step of `compute_features`, as a script takes it."""
    import jax

    from scalecov_jax.checkpoints import Card, random_network
    from scalecov_jax.checkpoints import network as network_of
    from scalecov_jax.extraction import sharded_forward
    from scalecov_jax.models.architecture import get_architecture
    from scalecov_jax.models.pruning import abstract_variables

    family = get_architecture(network)
    card = Card(network, {}, "tf", SIZES[network], "benchmark")
    blank = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), abstract_variables(family.module(), family)
    )
    layers = tuple(layer for layer in family.trunk_layers if layer.startswith(("mixed", "add")))
    forward, _ = sharded_forward(random_network(network_of(blank, card), 0), layers, len(images), np.float32)
    return lambda: jax.device_get(forward(images))


def keras(network: str, images: np.ndarray, backend: str) -> Callable[[], object]:
    """One model with all blocks as outputs."""
    taps = keras_taps(network, backend)
    return lambda: taps.predict_on_batch(images.astype(np.float32) / 127.5 - 1)


def keras_taps(network: str, backend: str) -> Any:
    """A Keras model from preprocessed images to the pooled output of every block."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    name, layers = KERAS[network]
    model = getattr(keras.applications, name)(weights=None)
    pool = keras.layers.GlobalAveragePooling2D()
    return keras.Model(model.input, [pool(model.get_layer(layer).output) for layer in layers])


def openvino(network: str, images: np.ndarray) -> Callable[[], object]:
    """The same Keras model, converted and compiled for this batch; bfloat16, which it takes where it can, is ruled out."""
    import openvino

    converted = openvino.convert_model(keras_taps(network, "tensorflow"), input=list(images.shape))
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda: compiled([images.astype(np.float32) / 127.5 - 1])


def one_layer_at_a_time(network: str, images: np.ndarray) -> Callable[[], object]:
    """A model and a pass for each block; the maps come back and are pooled by NumPy."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    name, layers = KERAS[network]
    model = getattr(keras.applications, name)(weights=None)
    taps = [keras.Model(model.input, model.get_layer(layer).output) for layer in layers]
    return lambda: [
        np.asarray(tap.predict_on_batch(images.astype(np.float32) / 127.5 - 1)).mean((1, 2)) for tap in taps
    ]


def torch(network: str, images: np.ndarray) -> Callable[[], object]:
    """Torchvision's module in eager mode, channels last, with hooks that pool."""
    import torch
    import torchvision

    torch.set_num_threads(os.cpu_count() or 1)
    options = {"init_weights": False} if network == "inception_v3" else {}
    module = getattr(torchvision.models, network)(weights=None, **options)
    module = module.eval().to(memory_format=torch.channels_last)
    found: dict[str, torch.Tensor] = {}
    for layer in TORCH[network]:
        module.get_submodule(layer).register_forward_hook(
            lambda _module, _args, output, layer=layer: found.update({layer: output.mean((2, 3))})
        )

    def step() -> object:
        with torch.inference_mode():
            inputs = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
            module(inputs)
        return {layer: value.numpy() for layer, value in found.items()}

    return step


def work(peer: str, network: str) -> None:
    """Answer each line on stdin with the seconds of one step: on the clock, and of all processors."""
    size = SIZES[network]
    images = np.random.default_rng(0).integers(0, 256, (BATCH.value, size, size, 3)).astype(np.uint8)
    makers = {
        "ours": lambda: ours(network, images),
        "keras_tensorflow": lambda: keras(network, images, "tensorflow"),
        "keras_jax": lambda: keras(network, images, "jax"),
        "one_layer_at_a_time": lambda: one_layer_at_a_time(network, images),
        "torch": lambda: torch(network, images),
        "openvino": lambda: openvino(network, images),
    }
    try:
        step = makers[peer]()
    except ImportError as error:
        sys.exit(f"not installed: {error}")

    def timed() -> None:
        start, used = time.perf_counter(), time.process_time()
        step()
        print(time.perf_counter() - start, time.process_time() - used, flush=True)

    timed()
    for _ in sys.stdin:
        timed()


def measure(network: str) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every step of every peer, on the clock and of all processors, the first (with compilation) in front."""
    seconds: dict[str, list[tuple[float, float]]] = {}
    workers: dict[str, subprocess.Popen[str]] = {}
    for peer in dict.fromkeys(("ours", *CHOSEN.value)):
        command = [
            sys.executable,
            __file__,
            f"--worker={peer}",
            f"--networks={network}",
            f"--batch={BATCH.value}",
        ]
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        assert worker.stderr is not None
        if not (line := worker.stdout.readline()):
            print(f"{peer} is left out: {worker.stderr.read().strip().splitlines()[-1]}")
            continue
        seconds[peer], workers[peer] = [_pair(line)], worker
    for number in range(ROUNDS.value + 1):
        for peer, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            taken = _pair(worker.stdout.readline())
            if number:  # the first warms up the caches after the others' start
                seconds[peer].append(taken)
        print(f"{network}: round {number} of {ROUNDS.value}", file=sys.stderr)
    for worker in workers.values():
        worker.communicate()
    return seconds


def _pair(line: str) -> tuple[float, float]:
    clock, processors = map(float, line.split())
    return clock, processors


def main(_: list[str]) -> None:
    """Time all and print the table."""
    if WORKER.value:
        work(WORKER.value, NETWORKS.value[0])
        return
    rows = []
    for network in NETWORKS.value:
        seconds = measure(network)
        used = {peer: statistics.median(cpu for _, cpu in steps[1:]) for peer, steps in seconds.items()}
        clocks = {peer: [clock for clock, _ in steps] for peer, steps in seconds.items()}
        rates = {peer: BATCH.value / statistics.median(times[1:]) for peer, times in clocks.items()}
        for peer, times in clocks.items():
            rows.append(
                {
                    "network": network,
                    "peer": peer,
                    "images_per_second": f"{rates[peer]:.2f}",
                    "slowest": f"{BATCH.value / max(times[1:]):.2f}",
                    "fastest": f"{BATCH.value / min(times[1:]):.2f}",
                    "ours_over_peer": f"{rates['ours'] / rates[peer]:.2f}",
                    "processor_seconds": f"{used[peer]:.3f}",
                    "peer_over_ours": f"{used[peer] / used['ours']:.2f}",
                    "first_step_seconds": f"{times[0]:.1f}",
                }
            )
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print("  ".join(f"{value:>20}" for value in row.values()))
    print(f"batch {BATCH.value}, {ROUNDS.value} rounds, {os.cpu_count()} cores")
    if OUTPUT.value:
        with Path(OUTPUT.value).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    app.run(main)
