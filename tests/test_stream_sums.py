"""One pass over images, on one device, on eight, and in two processes, against features in memory."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_streaming import of_features
from tiny_network import random_network

from scalecov_jax import hosts
from scalecov_jax.extraction import compute_features
from scalecov_jax.imaging.image_set import Example, ImageError
from scalecov_jax.probes.permutation import Permuted
from scalecov_jax.probes.splits import k_folds
from scalecov_jax.probes.sums import fold_of, moved
from scalecov_jax.streaming import stream_sums as streaming
from scalecov_jax.streaming.stream_sums import State, Targets, Unreadable, stream_sums

LAYERS = ("stem", "block_2", "softmax")
COUNT, FOLDS = 75, 3
INDICES = np.delete(np.arange(COUNT + 2), [4, 9])
FOLD = fold_of(k_folds(COUNT, FOLDS, seed=0))
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(COUNT, 3)) + 7
TARGETS = Targets(VALUES, Permuted.draw(VALUES[:, :2], 2, 0))


class Noise:
    """Images that differ in brightness; reading one of `broken` fails, and each reading is noted."""

    def __init__(self, broken=()):
        self.broken, self.read = broken, []

    def __len__(self):
        return COUNT + 2

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.broken:
            raise ImageError(f"image {index}", "no such file")
        pixels = np.random.default_rng(index).integers(0, 100 + 2 * index, (32, 32, 3), dtype=np.uint8)
        return Example(pixels, None, None, None, "", f"{index}")


def stream(source=None, **options):
    options = {"batch_size": 8, "flush": 64, **options}
    return stream_sums(random_network(), source or Noise(), INDICES, FOLD, TARGETS, LAYERS, **options)


def expected_of(keep, products="float64"):
    pooled = compute_features(random_network(), Noise(), LAYERS, batch_size=8)
    features = {name: x[INDICES][keep] for name, x in pooled.values.items()}
    targets = TARGETS.rows(np.arange(COUNT))[keep]
    return {n: of_features(x, targets, FOLD[keep], products=products) for n, x in features.items()}


@pytest.fixture(scope="module")
def expected():
    return expected_of(np.arange(COUNT))


@pytest.fixture(scope="module")
def unbroken():
    return stream()


def assert_close(found, expected, rtol=1e-9):
    """Equal about the same shifts, as far as the order of adding goes."""
    assert list(found) == list(expected)
    for name, sums in expected.items():
        for one, other in zip(found[name], sums, strict=True):
            one = moved(one, other.shift_x, other.shift_y)
            for a, b in zip(one, other, strict=True):
                np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1, np.abs(b).max()))


def assert_same(found, expected):
    """Equal bit by bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sums_are_those_of_features_in_memory(unbroken, expected):
    assert_close(unbroken.sums, expected, 1e-6)  # the forward pass is float32, in other batches
    assert unbroken.unreadable == ()
    assert unbroken.flushes == FOLDS
    assert [int(one.count) for one in unbroken.sums["stem"]] == [25, 25, 25]
    columns = TARGETS.rows(np.array([3]))[0]
    np.testing.assert_array_equal(columns[:3], TARGETS.values[3])
    np.testing.assert_array_equal(columns[3:], TARGETS.permuted.rows(np.array([3])).ravel())


def test_every_image_is_read_once_and_workers_change_no_bit(unbroken):
    source = Noise()
    assert_same(stream(source), unbroken)
    assert sorted(source.read) == INDICES.tolist()
    assert_same(stream(workers=1), unbroken)


def test_a_broken_pass_goes_on_to_the_same_bits(expected, monkeypatch):
    monkeypatch.setattr(streaming, "ROWS", 16)
    states: list[State] = []
    whole = stream(flush=1, keep=states.append)
    assert len(states) == whole.flushes == 2 * FOLDS  # 25 images: 16 and 9
    assert_close(whole.sums, expected, 1e-6)
    source = Noise()
    assert_same(stream(source, flush=1, state=states[2]), whole)
    assert len(source.read) == 9 + 25
    source = Noise()
    assert_same(stream(source, flush=1, state=whole), whole)
    assert source.read == []


def test_images_that_cannot_be_read_are_left_out_and_named():
    found = stream(Noise(broken=(0, 30)))
    assert found.unreadable == tuple(
        sorted(
            Unreadable(int(np.flatnonzero(i == INDICES)[0]), f"image {i}", "unreadable image", "no such file")
            for i in (0, 30)
        )
    )
    assert_close(found.sums, expected_of(np.flatnonzero(~np.isin(INDICES, (0, 30)))), 1e-6)


def test_a_part_of_the_data_that_vanishes_stops_the_pass():
    states = []
    vanished = INDICES[FOLD == 1]
    with pytest.raises(
        ValueError, match=r"25 of 25 images in a row cannot be read \(image \d+: no such file\).*--resume"
    ):
        stream(Noise(broken=vanished), keep=states.append)
    assert [state.flushes for state in states] == [1]


def test_float32_products(expected):
    assert_close(stream(products="float32").sums, expected, 1e-5)


ON_EIGHT_DEVICES = """
import sys
import jax, numpy as np
import test_stream_sums as t

assert jax.device_count() == 8
t.write(sys.argv[1], t.stream())
"""


def write(path, state):
    np.savez(path, *jax.tree.leaves(state.sums))


def read(path, like):
    with np.load(path) as file:
        leaves = [file[f"arr_{number}"] for number in range(len(file.files))]
    found = jax.tree.unflatten(jax.tree.structure(like.sums), leaves)
    return {name: found[name] for name in like.sums}


def environment(**more):
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parent)} | more


def test_eight_devices_equal_one(unbroken, tmp_path):
    flags = "--xla_force_host_platform_device_count=8"
    command = [sys.executable, "-c", ON_EIGHT_DEVICES, tmp_path / "sums.npz"]
    subprocess.run(command, env=environment(XLA_FLAGS=flags), check=True, timeout=300)
    assert_close(read(tmp_path / "sums.npz", unbroken), unbroken.sums, 1e-6)


IN_TWO_PROCESSES = """
import sys
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import test_stream_sums as t
from scalecov_jax import hosts

assert jax.process_count() == 2
source = t.Noise(broken=(0, 30))
state = t.stream(source)
print("read", *source.read, flush=True)
assert len(state.unreadable) == 2
if hosts.is_first():
    t.write(sys.argv[3], state)
hosts.check_agreement({"same": "1"})
facts = {"weights": "abc"[jax.process_index()], "same": "1"}
for what in (lambda: hosts.check_agreement(facts), lambda: hosts.on_first(t.refuse)):
    try:
        what()
    except ValueError as error:
        print("refused", error, flush=True)
assert hosts.on_first(lambda: 3) == (3 if hosts.is_first() else None)
"""


def refuse():
    raise ValueError("the folder exists")


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", IN_TWO_PROCESSES, str(port), str(number), tmp_path / "sums.npz"],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    printed = [
        [
            line
            for line in process.communicate(timeout=300)[0].splitlines()
            if line.startswith(("read", "refused"))
        ]
        for process in processes
    ]
    assert [process.returncode for process in processes] == [0, 0]
    reads = [list(map(int, lines[0].split()[1:])) for lines in printed]
    assert sorted(reads[0] + reads[1]) == INDICES.tolist()
    assert min(map(len, reads)) > 30
    alone = stream(Noise(broken=(0, 30)))
    assert_close(read(tmp_path / "sums.npz", alone), alone.sums, 1e-6)
    for lines in printed:
        assert "weights: a on host 0, b on host 1" in lines[1]
        assert "same" not in lines[1].split(".")[0]
        assert lines[2] == "refused the folder exists"


def test_one_host_agrees_with_itself():
    hosts.check_agreement({"weights": "a"})
    assert hosts.gather_text("ä") == ["ä"]
    with pytest.raises(ValueError, match="the folder exists"):
        hosts.on_first(refuse)
