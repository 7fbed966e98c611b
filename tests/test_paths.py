"""Paths as people have them: `~`, blanks and signs that mean something elsewhere, and places where nothing can be written."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from probe_runs import settings_of, write_voc
from tiny_network import random_network

import scalecov_jax as sc
from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.experiments.probe_settings import Settings
from scalecov_jax.imaging.csv_file import texts
from scalecov_jax.imaging.voc import read_boxes
from scalecov_jax.settings import with_home
from scalecov_jax.states import newest_state, write_state

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("quick_compilation")
STRANGE = "my [x=1] #2 50%20 ?, b*"


@pytest.fixture(scope="module")
def probed(quick_compilation):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 3))
    return sc.probe({"a": features}, features @ [1.0, 2, 3], splits=3, permutations=0)


def test_home_is_known_in_every_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.csv").write_text("image,age\na,7\n")
    given = Settings(weights=("~/net", "a~/b"), images="annotated:~/nuclei", concept=("csv:~/t.csv:age",))
    assert given.weights == (f"{tmp_path}/net", "a~/b")
    assert (given.images, given.concept) == (f"annotated:{tmp_path}/nuclei", (f"csv:{tmp_path}/t.csv:age",))
    assert with_home("--workdir=~/x") == f"--workdir={tmp_path}/x"
    assert with_home("t~") == "t~"


def test_no_home(monkeypatch):
    def unknown(_):
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ValueError, match="images is '~/x'; expected a whole path, since no home folder"):
        Settings(images="~/x")
    assert Settings(images="x~").images == "x~"


def test_a_command_at_home(tmp_path):
    arguments = ["prune", "--weights=~/none", "--layer=add_3", "--output=~/cut"]
    environment = {**os.environ, "HOME": str(tmp_path / STRANGE), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "scalecov_jax", *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / STRANGE / 'none'} is no folder")


def test_what_is_written_at_home_is_read_there(probed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / STRANGE))
    (tmp_path / STRANGE).mkdir()
    probed.rcv("a").save("~/vector.npz")
    np.testing.assert_array_equal(sc.rcv("~/vector.npz").weights, probed.rcv("a").weights)
    probed.report("~/report.html")
    network = random_network()
    sc.save(network, "~/net")
    assert sc.load("~/net").card == network.card
    assert {path.name for path in (tmp_path / STRANGE).iterdir()} == {"vector.npz", "report.html", "net"}
    with pytest.raises(ValueError, match="net exists; remove it"):
        sc.save(network, "~/net")


def test_states_and_tables_of_strange_names(tmp_path):
    folder = tmp_path / STRANGE
    folder.mkdir()
    for number in (1, 2):
        write_state(folder, number, {"x": np.arange(3.0) + number}, {"of": "a"})
    found = newest_state(folder, lambda facts: {"x": np.zeros(3)})
    assert found is not None
    np.testing.assert_array_equal(found.tree["x"], [2, 3, 4])
    (folder / "t.csv").write_text("image,age\na,7\n")
    assert [*texts(str(folder / "t.csv"), "age", ["a"])] == ["7"]


def test_where_nothing_can_be_written(probed, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "x"
    network = random_network()
    checkpoints.save(tmp_path / "net", network)
    for write in (
        lambda: sc.save(network, place),
        lambda: probed.rcv("a").save(place / "v.npz"),
        lambda: probed.report(place / "r.html"),
        lambda: runner.run("probe", settings_of(tmp_path / "net"), place, command=["probe.py"]),
    ):
        with pytest.raises((OSError, ValueError), match="file"):
            write()


def test_a_class_with_a_comma(tmp_path):
    folder = write_voc(tmp_path, range(2, 14))
    for path in (folder / "Annotations").iterdir():
        path.write_text(path.read_text().replace(">car<", ">tench, Tinca tinca<"))
    assert len(read_boxes(folder, "tench, Tinca tinca")) == 12
    with pytest.raises(ValueError, match=r"The comma in 'tench, Tinca tinca' parts it"):
        read_boxes(folder, "Tinca tinca")
