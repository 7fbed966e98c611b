"""Networks on disk: what is saved is read, and what is damaged or does not fit is refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors import numpy as safetensors
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax.cutting import pruned_network
from scalecov_jax.models.preprocessing import Normalise, preprocess


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


def save_by_orbax(folder, network):
    """As earlier versions of this package wrote checkpoints."""
    card = {"format": 1, **dataclasses.asdict(network.card), "class_names": list(network.card.class_names)}
    ocp.save(str(folder), jax.tree.map(np.asarray, network.variables), custom_metadata=card)


@pytest.fixture(scope="module")
def saved_by_orbax(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "old"
    save_by_orbax(folder, network)
    return folder


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "new" / "network"
    checkpoints.save(folder, network)
    return folder


def test_round_trip_keeps_every_bit_and_the_card(network, saved):
    for path in (saved, saved / "model.safetensors"):
        loaded = checkpoints.load(path)
        assert same_variables(loaded.variables, network.variables)
        assert loaded.card == network.card
        assert loaded.module == network.module
        assert loaded.architecture is network.architecture
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert [path.name for path in saved.iterdir()] == ["model.safetensors"]
    stored = safetensors.load_file(saved / "model.safetensors")
    np.testing.assert_array_equal(
        stored["params/block_2/kernel"], network.variables["params"]["block_2"]["kernel"]
    )


def test_own_mean_and_sd_are_kept(network, tmp_path):
    own = Normalise((0.7, 0.5, 0.6), (0.1, 0.2, 0.3))
    card = dataclasses.replace(network.card, preprocessing=own)
    checkpoints.save(tmp_path / "own", network._replace(card=card))
    assert checkpoints.load(tmp_path / "own").card == card
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    expected = (images / 255 - np.array([[[own.mean]]])) / np.array([[[own.sd]]])
    np.testing.assert_allclose(preprocess(jnp.asarray(images), own), expected, rtol=1e-5, atol=1e-5)
    names = [f"{one}" for one in checkpoints.fingerprints(network._replace(card=card), ["block_1"]).values()]
    assert names != [*checkpoints.fingerprints(network, ["block_1"]).values()]


def test_every_dtype_and_order_in_memory_is_kept(network, tmp_path):
    variables = jax.tree.map(np.asfortranarray, network.variables)
    for number, dtype in enumerate((jnp.bfloat16, np.float16)):
        one = network._replace(variables=jax.tree.map(lambda leaf, to=dtype: leaf.astype(to), variables))
        checkpoints.save(tmp_path / str(number), one)
        loaded = checkpoints.load(tmp_path / str(number))
        assert same_variables(loaded.variables, one.variables)
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype(dtype)}


def test_checkpoints_of_earlier_versions_are_read(network, saved, saved_by_orbax):
    loaded = checkpoints.load(saved_by_orbax)
    assert same_variables(loaded.variables, network.variables)
    assert loaded.card == network.card
    layers = ["block_1", "softmax"]
    assert checkpoints.fingerprints(loaded, layers) == checkpoints.fingerprints(
        checkpoints.load(saved), layers
    )


@pytest.mark.parametrize(
    ("name", "layer", "fingerprint"),
    [
        ("dr_grader", "pre_softmax", "dr_grader-cf8efb552d03"),
        ("inception_v3", "mixed4", "inception_v3-b83eb572170d"),
        ("inception_v3", "pre_softmax", "inception_v3-807c6bc296e6"),
        ("resnet50", "add_12", "resnet50-ee061aeefb77"),
        ("resnet50", "pre_softmax", "resnet50-98dfda65af6c"),
    ],
)
def test_embedded_networks_are_those_of_the_first_version(name, layer, fingerprint):
    """Fingerprints of the checkpoints as orbax kept them, so that concept vectors fitted then are still valid."""
    network = checkpoints.load(Path(__file__).parents[1] / "checkpoints" / name)
    assert checkpoints.fingerprints(network, [layer]) == {layer: fingerprint}


def test_several_files_where_large_ones_are_not_wanted(network, tmp_path):
    folder = tmp_path / "parts"
    checkpoints.save(folder, network, largest=4_000)
    files = sorted(folder.iterdir())
    assert [path.name for path in files[:1]] == [f"model-00001-of-{len(files):05}.safetensors"]
    assert len(files) > 2
    assert same_variables(checkpoints.load(folder).variables, network.variables)
    checkpoints.save(tmp_path / "other", random_network(classes=3, seed=1), largest=4_000)
    aside = files[1].rename(tmp_path / "aside")
    assert "is missing, expected" in refusal(folder)
    shutil.copy(tmp_path / "other" / files[1].name, folder)
    assert "its files are of different networks" in refusal(folder)
    aside.replace(files[1])
    assert checkpoints.load(folder).card == network.card


def test_names_of_networks(network, saved, tmp_path):
    alone = tmp_path / "alone.safetensors"
    shutil.copy(saved / "model.safetensors", alone)
    assert [*checkpoints.load_networks([str(saved / "model.safetensors"), str(alone)])] == [
        "network",
        "alone",
    ]
    with pytest.raises(ValueError, match="Two weights are called network"):
        checkpoints.load_networks([str(saved), str(saved / "model.safetensors")])


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
    assert "is no folder" in refusal(tmp_path / "absent.safetensors")
    assert "is no folder" in refusal(tmp_path / "other" / "weights.h5")
    assert "No valid PyTree" in refusal(tmp_path / "empty")
    assert "No valid PyTree" in refusal(tmp_path / "other")
    assert "no card of this package" in refusal(tmp_path / "foreign")
    for name, metadata in {"torch": {"format": "pt"}, "bare": None}.items():
        safetensors.save_file({"a": np.zeros(3)}, tmp_path / f"{name}.safetensors", metadata)
        assert f"{name}.safetensors holds no card" in refusal(tmp_path / f"{name}.safetensors")


def test_a_later_format_is_refused(saved, tmp_path):
    file = tmp_path / "model.safetensors"
    note = {"format": 3, "sha256": "", "card": {}}
    safetensors.save_file({"a": np.zeros(3)}, file, {"scalecov_jax": json.dumps(note)})
    assert "its format is 3, expected 2" in refusal(file)


def test_a_damaged_file_is_refused(saved, tmp_path):
    """Cut, emptied, or with a changed byte, in the card and among the values."""
    whole = (saved / "model.safetensors").read_bytes()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    header = int.from_bytes(whole[:8], "little")
    at = [0, 9, whole.index(b"0.9"), whole.index(b"block_2"), 8 + header, len(whole) // 2, len(whole) - 1]
    changed = [whole[:one] + bytes([whole[one] ^ 1]) + whole[one + 1 :] for one in at]
    for content in (b"", whole[:5], whole[: header // 2], whole[: len(whole) // 2], whole[:-1], *changed):
        (damaged / "model.safetensors").write_bytes(content)
        refusal(damaged)
    assert "its card and values are not those that were written" in refusal(damaged)
    (damaged / "model.safetensors").write_bytes(whole)
    checkpoints.load(damaged)


def test_every_flipped_bit_is_refused(saved, tmp_path):
    """One bit at each of 500 places spread over header, card and values, and at the first 200."""
    whole = (saved / "model.safetensors").read_bytes()
    rng = np.random.default_rng(0)
    damaged = tmp_path / "model.safetensors"
    for at in {*range(200), *rng.integers(0, len(whole), 250), *rng.integers(0, whole.index(b"}}") + 2, 250)}:
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.integers(8)
        damaged.write_bytes(changed)
        refusal(damaged)


def test_a_deleted_or_truncated_file_of_orbax_is_refused_or_does_not_matter(
    network, saved_by_orbax, tmp_path
):
    """Orbax keeps some files twice; those that hold the card and the values must be missed."""
    damaged, saved = tmp_path / "damaged", saved_by_orbax
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
        ({"preprocessing": ((0.5, 0.5, 0.5), (0.2, 0.0, 0.2))}, "mean and sd"),
        ({"input_size": 10**9}, "its input_size is 1000000000"),
        ({"options": {"classes": 10**12}}, "its classes is"),
        ({"notes": {"long": "x" * 2**20}}, "characters"),
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
    assert all(name.endswith(".partial") for name in names - whole)
    assert {str(number) for number in range(len(whole))} == whole
    next_one = random_network(width=8.0)
    checkpoints.save(tmp_path / str(len(whole)), next_one)
    assert same_variables(checkpoints.load(tmp_path / str(len(whole))).variables, next_one.variables)
