"""Networks on disk: what is saved is read, and what is damaged or does not fit is refused."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax.cutting import pruned_network


def same_variables(one, other):
    """Whether names, dtypes and bits are the same."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.fixture(scope="module")
def network():
    network = random_network(classes=3)
    card = dataclasses.replace(
        network.card,
        preprocessing="caffe",
        origin="somewhere, über",
        sha256="ab" * 32,
        class_names=("a", "b", "c"),
        notes={"held_out": 0.9, "nested": {"list": [1, 2]}},
    )
    return network._replace(card=card)


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "new" / "network"
    checkpoints.save(folder, network)
    return folder


def test_round_trip_keeps_every_bit_and_the_card(network, saved):
    loaded = checkpoints.load(saved)
    assert same_variables(loaded.variables, network.variables)
    assert loaded.card == network.card
    assert loaded.module == network.module
    assert loaded.architecture is network.architecture
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("resnet50", {"width": 1 / 16, "last": "add_4", "max_pool_padding": 0, "stride_on_3x3": True}),
        ("inception_v3", {"width": 1 / 16, "last": "mixed0", "use_scale": True}),
    ],
)
def test_round_trip_of_the_real_families(tmp_path, architecture, options):
    network = random_network(architecture, **options)
    checkpoints.save(tmp_path / "network", network)
    loaded = checkpoints.load(tmp_path / "network")
    assert same_variables(loaded.variables, network.variables)
    assert (loaded.card, loaded.module) == (network.card, network.module)


def test_pruned_round_trip(network, tmp_path):
    pruned = pruned_network(network, "block_1")
    checkpoints.save(tmp_path / "pruned", pruned)
    loaded = checkpoints.load(tmp_path / "pruned")
    assert loaded.card.options["last"] == loaded.module.last == "block_1"
    assert same_variables(loaded.variables, pruned.variables)
    assert "block_2" not in loaded.variables["params"]


def test_existing_folder_is_refused_unless_overwritten(network, saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    other = random_network(classes=3, seed=1)
    with pytest.raises(ValueError, match="copy exists"):
        checkpoints.save(folder, other)
    assert same_variables(checkpoints.load(folder).variables, network.variables)
    checkpoints.save(folder, other, overwrite=True)
    assert same_variables(checkpoints.load(folder).variables, other.variables)


def refusal(folder):
    """The one line in which `load` refuses a folder."""
    with pytest.raises(ValueError, match=r"is no folder|cannot be read as a network") as error:
        checkpoints.load(folder)
    message = str(error.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    assert len(message) < 900
    return message


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights.h5").write_bytes(b"\x89HDF")
    ocp.save(str(tmp_path / "foreign"), {"params": {"a": np.zeros(3)}})
    assert "is no folder" in refusal(tmp_path / "absent")
    assert "is no folder" in refusal(tmp_path / "other" / "weights.h5")
    assert "No valid PyTree" in refusal(tmp_path / "empty")
    assert "No valid PyTree" in refusal(tmp_path / "other")
    assert "no card of this package" in refusal(tmp_path / "foreign")


def test_a_deleted_or_truncated_file_is_refused_or_does_not_matter(network, saved, tmp_path):
    """Orbax keeps some files twice; those that hold the card and the values must be missed."""
    damaged = tmp_path / "damaged"
    files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: (saved / path).stat().st_size)
    refused = set()
    for file in files:
        content = (saved / file).read_bytes()
        for rest in (None, content[: len(content) // 2], b""):
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(saved, damaged)
            (damaged / file).unlink()
            if rest is not None:
                (damaged / file).write_bytes(rest)
            try:
                loaded = checkpoints.load(damaged)
            except ValueError:
                refusal(damaged)
                refused.add(file)
            else:
                assert same_variables(loaded.variables, network.variables)
                assert loaded.card == network.card
    assert {largest, Path("_CHECKPOINT_METADATA"), Path("state/_METADATA")} <= refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"options": {"classes": 3, "width": 0.5}},
            r"block_1/norm/mean is \(16,\), expected \(8,\).* and \d+ more",
        ),
        ({"options": {"classes": 7}}, r"pre_softmax/bias is \(3,\), expected \(7,\)"),
        ({"options": {"classes": 3, "last": "block_1"}}, r"block_2/kernel is .*, expected none"),
        ({"options": {"classes": 3, "last": "block_7"}}, "did you mean block_"),
        ({"options": {"classes": 3, "widht": 0.5}}, "widht"),
        ({"architecture": "resnet50"}, r"is missing, expected \(\d+,\)"),
        ({"architecture": "resnet"}, "did you mean resnet50"),
        ({"preprocessing": "keras"}, "keras"),
    ],
)
def test_card_that_does_not_fit_its_variables(network, tmp_path, change, message):
    if "preprocessing" in change:
        card = dataclasses.replace(network.card)
        object.__setattr__(card, "preprocessing", change["preprocessing"])  # past the type check of the tests
    else:
        card = dataclasses.replace(network.card, **change)
    checkpoints.save(tmp_path / "network", network._replace(card=card))
    with pytest.raises(ValueError, match=message):
        checkpoints.load(tmp_path / "network")
    refusal(tmp_path / "network")


def test_variables_cut_more_than_the_card_says(network, tmp_path):
    pruned = pruned_network(network, "block_1")
    checkpoints.save(tmp_path / "network", pruned._replace(card=network.card))
    assert "block_2/kernel is missing, expected (3, 3, 16, 32)" in refusal(tmp_path / "network")


SAVE_FOR_EVER = """
import itertools, sys
from pathlib import Path
import jax, numpy as np
from tiny_network import random_network
from scalecov_jax import checkpoints

network = random_network(width=8.0)
for number in itertools.count():
    variables = jax.tree.map(lambda leaf: np.full_like(leaf, number), network.variables)
    checkpoints.save(Path(sys.argv[1]) / str(number), network._replace(variables=variables))
"""


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.07])
def test_killed_while_saving(tmp_path, delay):
    """Whatever bears the name that was asked for is whole."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, tmp_path], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "1").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    names = {path.name for path in tmp_path.iterdir()}
    whole = {name for name in names if name.isdigit()}
    assert len(names - whole) <= 1
    for name in whole:
        values = jax.tree.leaves(checkpoints.load(tmp_path / name).variables)
        assert all((leaf == int(name)).all() for leaf in values)
    for name in names - whole:
        refusal(tmp_path / name)
    assert {str(number) for number in range(len(whole))} == whole
    next_one = random_network(width=8.0)
    checkpoints.save(tmp_path / str(len(whole)), next_one)
    assert same_variables(checkpoints.load(tmp_path / str(len(whole))).variables, next_one.variables)
