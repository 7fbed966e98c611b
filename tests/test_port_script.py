"""scripts/port_weights.py as a person types it."""

import os
import re
import shlex
from pathlib import Path

import pytest
from forked import forked
from safetensors.numpy import save_file
from test_port import tensors

from scalecov_jax import checkpoints
from scalecov_jax.models.port import checksum
from scalecov_jax.models.preprocessing import Normalise

SCRIPT = Path(__file__).parents[1] / "scripts" / "port_weights.py"
PLACES = os.pathsep.join(map(str, Path(__file__).parents[:2]))
ENVIRONMENT = os.environ | {"PYTHONPATH": PLACES, "JAX_PLATFORMS": "cpu", "LC_ALL": "C"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("script")
    state = tensors("resnet50", "torch", width=0.0625)
    save_file(state, folder / "resnet50.safetensors")
    save_file({f"net.{name}": values for name, values in state.items()}, folder / "net.safetensors")
    return folder


@pytest.fixture(scope="module")
def port(folder):
    """Run the script on a file."""
    with forked(cwd=folder, env=ENVIRONMENT) as run:

        def port(source, output, *flags):
            given = (f"--source={source}", f"--output={output}", "--architecture=resnet50")
            return run(SCRIPT, *given, *(flags or ("--preprocessing=torch",)))

        yield port


def refused(process):
    """The one line of a refusal."""
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    return line.removeprefix("error: ")


def test_the_example_of_the_help_works(folder):
    (example,) = re.findall(r"python scripts/port_weights\.py (.*?)\n\"\"\"", SCRIPT.read_text(), re.DOTALL)
    with forked(cwd=folder, env=ENVIRONMENT) as run:
        process = run(SCRIPT, *shlex.split(example.replace("\\\n", "")))
    assert process.returncode == 0, process.stderr
    assert checkpoints.load(folder / "runs/weights/resnet50").architecture.name == "resnet50"


def test_what_was_found_and_checked_is_printed(folder, port):
    digest = checksum(folder / "net.safetensors")
    flags = ("--mean=0.7,0.5,0.6", "--std=0.1,0.2,0.3", "--last=add_3", f"--sha256={digest}")
    process = port("net.safetensors", "own", *flags)
    assert process.returncode == 0, process.stderr
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in process.stdout.splitlines())
    assert rows["prefix"] == "net."
    assert "not checked" in rows["preprocessing"]
    assert checkpoints.load(folder / "own").card.preprocessing == Normalise((0.7, 0.5, 0.6), (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mean=0.5,0.5,0.5",), "--std=R,G,B"),
        (("--mean=124,117,104", "--std=1,1,1"), "pixels from 0 to 1"),
        (("--preprocessing=tf", "--sha256=abc"), r"net\.safetensors has .* not the expected abc"),
        (("--last=add_3",), "--preprocessing=caffe if it is Keras's, torch"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, port):
    assert re.search(message, refused(port("net.safetensors", "never", *flags)))


NAMES = ["tench", "goldfish", "Bäume", "d", "e"]


@pytest.mark.parametrize(
    "content",
    ["\n".join(NAMES).encode("utf-8-sig"), "\r\n".join(NAMES).encode(), "\n".join([*NAMES, "", ""]).encode()],
    ids=["byte order mark", "Windows", "blank end"],
)
def test_class_names_of_any_editor(content, folder, port):
    (folder / "names.txt").write_bytes(content)
    process = port("net.safetensors", "names", "--preprocessing=tf", "--class_names=names.txt", "--overwrite")
    assert process.returncode == 0, process.stderr
    assert checkpoints.load(folder / "names").card.class_names == tuple(NAMES)


@pytest.mark.parametrize(
    "content", ["\n".join(NAMES).encode("latin-1"), b'{"0": ["n01440764", "tench"]}', b"a\n\nb\nc\nd"]
)
def test_no_class_names(content, folder, port):
    (folder / "bad.txt").write_bytes(content)
    assert "bad.txt" in refused(
        port("net.safetensors", "never", "--preprocessing=tf", "--class_names=bad.txt")
    )


def test_a_name_of_two_classes_is_reported(folder, port):
    (folder / "twice.txt").write_text("a\na\nb\nc\nd\n")
    process = port("net.safetensors", "twice", "--preprocessing=tf", "--class_names=twice.txt")
    assert process.returncode == 0
    assert "twice.txt" in process.stderr
