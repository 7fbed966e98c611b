"""Features on disk, of single images and of sources: what is found again, what is not, and what survives."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_features import Broken, source
from tiny_network import LAYERS, random_network

from scalecov_jax import cache
from scalecov_jax import extraction as features
from scalecov_jax.cache import FeatureStore
from scalecov_jax.checkpoints import random_network as reinitialised


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "store")


@pytest.fixture
def forwarded(monkeypatch):
    """How often the network ran."""
    calls = []
    original = features._compiled

    def counted(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(features, "_compiled", counted)
    return calls


def compute(network, images, store, layers=LAYERS, **settings):
    return features.compute_features(network, images, layers, batch_size=4, store=store, **settings)


def files(store):
    return sorted(store.folder.glob("*/*"))


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert found.skipped == expected.skipped
    for layer, values in found.values.items():
        np.testing.assert_array_equal(values, expected.values[layer])


def test_nothing_is_computed_twice(network, store, forwarded):
    expected = compute(network, source(), None)
    first = compute(network, source(), store)
    assert len(forwarded) == 6
    assert len(files(store)) == 9
    again = compute(network, source(), store)
    for found in (first, again):
        assert_equal(found, expected)
    compute(network, source()[::-1][:5], store, LAYERS[:2])
    assert len(forwarded) == 6


def test_what_is_missing_is_computed_with_the_rest(network, store, forwarded):
    images = source()
    compute(network, images[3:6], store)
    del forwarded[:]
    assert_equal(compute(network, Broken(images), store), compute(network, Broken(images), None))
    assert len(forwarded) == 2 + 2  # 6 images, then 8


def test_layers_join_those_that_are_there(network, store, forwarded):
    compute(network, source(), store, LAYERS[:1])
    compute(network, source(), store, LAYERS[1:])
    del forwarded[:]
    assert_equal(compute(network, source(), store), compute(network, source(), None))
    assert len(forwarded) == 3


@pytest.mark.parametrize("change", ["weights", "preprocessing", "dtype", "pooling", "size", "code"])
def test_whatever_differs_is_not_found(network, store, change, monkeypatch, forwarded):
    compute(network, source(), store)
    other, settings = network, {}
    if change == "weights":
        other = reinitialised(network, 1)
    elif change == "preprocessing":
        other = network._replace(card=dataclasses.replace(network.card, preprocessing="unit"))
    elif change == "code":
        monkeypatch.setattr(cache, "_code", lambda: "changed")
    else:
        settings = {"dtype": {"dtype": jnp.bfloat16}, "pooling": {"pooling": "max"}, "size": {"size": 40}}[
            change
        ]
    del forwarded[:]
    expected = compute(other, source(), None, **settings)
    assert_equal(compute(other, source(), store, **settings), expected)
    assert len(forwarded) == 6
    assert len(files(store)) == 18


def test_damaged_files_are_replaced(network, store, forwarded):
    compute(network, source(), store)
    whole = files(store)
    whole[0].write_bytes(whole[0].read_bytes()[:100])
    whole[1].write_bytes(b"")
    del forwarded[:]
    assert_equal(compute(network, source(), store), compute(network, source(), None))
    assert len(forwarded) == 1 + 3
    assert files(store) == whole
    del forwarded[:]
    compute(network, source(), store)
    assert not forwarded


def test_what_was_not_used_for_longest_goes_first(network, store):
    compute(network, source(), store)
    size = max(path.stat().st_size for path in files(store))
    small = store._replace(limit=5 * size)
    for age, path in enumerate(files(store)):
        os.utime(path, ns=(0, 10**9 * age))
    newest = files(store)[-4:]
    compute(network, source()[:1], small)
    kept = files(store)
    assert sum(path.stat().st_size for path in kept) <= small.limit
    assert {*newest[1:]} <= {*kept}
    assert store._replace(limit=0).trim() == len(kept)
    assert not files(store)


def test_a_full_disk_costs_only_the_store(network, store, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert_equal(compute(network, source(), store), compute(network, source(), None))
    assert not files(store)  # nor half a file


def test_features_of_a_source_are_computed_once(network, tmp_path, caplog):
    calls, path = [], tmp_path / "features" / "some.npz"

    def computed():
        calls.append(1)
        return compute(network, Broken(source()), None)

    first, second = (features.cached_features(path, computed) for _ in range(2))
    assert len(calls) == 1
    assert_equal(second, first)
    assert (second.origins, second.pooling) == (first.origins, first.pooling)
    assert [one.name for one in path.parent.iterdir()] == ["some.npz"]
    path.write_bytes(path.read_bytes()[:1000])
    assert_equal(features.cached_features(path, computed), first)
    assert len(calls) == 2
    assert "some.npz is damaged" in caplog.text
    assert_equal(features.cached_features(None, computed), first)


PROGRAM = """
import sys
from pathlib import Path
from test_features import source
from tiny_network import LAYERS, random_network
from scalecov_jax import extraction as features
from scalecov_jax.cache import FeatureStore

if len(sys.argv) > 2:  # slowly, to be killed half-way
    import time
    original = FeatureStore.write
    FeatureStore.write = lambda *arguments: (original(*arguments), time.sleep(0.3))
features.compute_features(
    random_network(), source(), LAYERS, batch_size=4, store=FeatureStore(Path(sys.argv[1]))
)
"""


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments)], env=environment)


def test_two_processes_and_a_kill(network, store, forwarded):
    killed = start(store.folder, "slowly")
    deadline = time.monotonic() + 120
    while len(files(store)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 2 <= len(files(store)) < 9
    both = [start(store.folder) for _ in range(2)]
    assert [one.wait(300) for one in both] == [0, 0]
    assert len([path for path in files(store) if path.suffix == ".npz"]) == 9
    assert_equal(compute(network, source(), store), compute(network, source(), None))
    assert len(forwarded) == 3
