"""The scripts as a person types them: what they print, their exit status, and one line for every mistake."""

import ast
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forked import forked
from PIL import Image
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax.atomic import write_json
from scalecov_jax.experiments import noise, probe

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(__file__).parent),
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
# Runs a script in a process that knows the tiny architecture.
WITH_TINY = (
    "import runpy, sys, tiny_network; sys.argv = sys.argv[1:]; sys.path.insert(0, 'scripts'); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
BOXES = "--config=configs/boxes.py"
SCRIPTS = sorted({path.stem for path in (ROOT / "scripts").glob("*.py")} - {"answers", "command"})


@pytest.fixture(scope="module")
def forks():
    with forked(cwd=ROOT, env=ENVIRONMENT) as run:
        yield lambda name, *arguments: run(ROOT / "scripts" / f"{name}.py", *arguments)


def assert_one_line(process, message):
    """A mistake: exit status 1, and on stderr nothing but one line that says what it was."""
    assert process.returncode == 1
    assert process.stdout == ""
    lines = [line for line in process.stderr.splitlines() if not re.match(r"^[IW]\d{4} ", line)]
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tiny and real weights, photographs in VOC layout, of which one is truncated, and the results of a probe."""
    folder = tmp_path_factory.mktemp("files")
    checkpoints.save(folder / "tiny", random_network())
    checkpoints.save(folder / "resnet50", random_network("resnet50", width=1 / 16, last="add_2"))
    checkpoints.save(folder / "damaged", random_network())
    (file,) = (folder / "damaged").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    rng = np.random.default_rng(0)
    for part in ("Annotations", "JPEGImages"):
        (folder / "voc" / part).mkdir(parents=True)
    for side in range(4, 28):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        pixels[:side, :side] = 255 - 6 * side
        path = folder / "voc" / "JPEGImages" / f"{side}.png"
        Image.fromarray(pixels).save(path)
        if side == 9:
            path.write_bytes(path.read_bytes()[:1000])
        (folder / "voc" / "Annotations" / f"{side}.xml").write_text(
            f"<annotation><filename>{path.name}</filename><object><name>car</name><bndbox><xmin>1</xmin><ymin>1"
            f"</ymin><xmax>{side}</xmax><ymax>{side}</ymax></bndbox></object></annotation>"
        )
    return folder


def settings(files, *more, weights="tiny"):
    return (
        BOXES,
        f"--config.architecture={weights}",
        f"--config.weights={files / weights}",
        f"--config.images={files / 'voc'}",
        "--config.image_class=car",
        "--config.layers=stem,block_1",
        "--config.splits=3",
        "--config.input_size=32",
        "--config.seed=0",
        *more,
    )


@pytest.fixture(scope="module")
def probed(files):
    options = settings(files, f"--workdir={files / 'run'}")
    command = [sys.executable, "-c", WITH_TINY, "scripts/probe.py", *options]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_probe_writes_its_results_and_prints_a_table(files, probed):
    assert probed.returncode == 0, probed.stderr
    assert "Traceback" not in probed.stderr
    summary = json.loads((files / "run" / "summary.json").read_text())
    assert summary["skipped"] == {"unreadable image": 1}
    assert "--config.splits=3" in summary["provenance"]["command"]
    assert len(pd.read_csv(files / "run" / "scores.csv")) == 2 * 3 * 3 * 2
    header, *rows = probed.stdout.splitlines()
    assert header.split() == ["quantity", "at", "value"]
    ridge = summary["selected"]["ridge"]
    assert re.search(rf"  tiny {ridge['layer']} +{ridge['r2_mean']:.2f} ".replace("-", "−"), rows[0])
    assert rows[-1] == f"Report: {files / 'run' / 'report.html'}"
    assert "img/s" in probed.stderr  # the progress bar


def test_prune_by_layer_and_by_scores(files, probed, forks):
    weights = f"--weights={files / 'tiny'}"
    by_layer = forks("prune", weights, "--layer=block_1", f"--output={files / 'by_layer'}")
    by_scores = forks("prune", weights, f"--scores={files / 'run'}", f"--output={files / 'by_scores'}")
    dry = forks("probe", *settings(files, "--dry_run", f"--workdir={files / 'dry'}"))
    again = settings(files, "--config.splits=4", "--resume", f"--workdir={files / 'run'}")
    wrong = forks("reproduce", *again, "--profile")
    selected = json.loads((files / "run" / "summary.json").read_text())["selected"]["ridge"]["layer"]
    for process, output, layer in ((by_layer, "by_layer", "block_1"), (by_scores, "by_scores", selected)):
        assert process.returncode == 0, process.stderr
        assert process.stdout.startswith(f"tiny cut after {layer}: ")
        assert checkpoints.load(files / output).module.last == layer
    assert dry.returncode == 0, dry.stderr
    assert re.search(
        r"tiny: about \d+ s at \d+ images/s; features 0\.0 MB; one batch takes \d+ MB", dry.stdout
    )
    assert not (files / "dry").exists()
    assert_one_line(wrong, r"cannot be resumed \(splits: 3, now 4\)")
    assert [*(files / "run" / "profile").rglob("*.xplane.pb")]  # also of a run that fails


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_teaches(forks, name):
    process = forks(name, "--help")
    assert process.stderr == ""
    assert f"python scripts/{name}.py --" in process.stdout
    assert "Example" in process.stdout
    flags = (
        ["weights", "layer", "scores", "output"] if name == "prune" else ["config", "workdir", "[no]resume"]
    )
    for flag in ["source", "verify"] if name == "port_weights" else flags:
        assert re.search(rf"^  --.*{re.escape(flag)}: \S", process.stdout, re.MULTILINE), flag


@pytest.mark.parametrize("experiment", [noise, probe])
def test_help_lists_every_setting(forks, experiment):
    text = forks(experiment.__name__.rpartition(".")[2], "--help").stdout
    for field in dataclasses.fields(experiment.Settings):
        assert f"  --config.{field.name}=" in text
        assert field.metadata["help"].split()[-1] in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_of_the_help_are_understood(name, forks):
    """Their flags and settings are parsed; one word too many stops the script before it does anything."""
    text = ast.get_docstring(ast.parse((ROOT / "scripts" / f"{name}.py").read_text()))
    lines = [line for line in text.splitlines() if line.strip().startswith(f"python scripts/{name}.py")]
    assert lines
    for line in lines:
        _, _, *arguments = shlex.split(line, comments=True)
        assert_one_line(forks(name, *arguments, "stop"), "Unexpected arguments: stop")


def test_answers_of_finished_runs(tmp_path):
    """Both forms of a summary: sentences by line, and what is no finished run."""

    def print_answers(*folders):
        command = [sys.executable, str(ROOT / "scripts" / "answers.py"), *map(str, folders)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for name, answer in (("one", "Scale peaks."), ("two", "First.\nSecond.")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "summary.json", {"answer": answer})
    done = print_answers(tmp_path / "one", tmp_path / "two")
    assert done.returncode == 0
    assert done.stderr == ""
    first, second = (f"Report: {tmp_path / name / 'report.html'}" for name in ("one", "two"))
    assert done.stdout.splitlines() == ["", "Scale peaks.", first, "", "First.", "Second.", second]
    (tmp_path / "one" / "summary.json").unlink()
    assert_one_line(print_answers(tmp_path / "one"), "one holds no finished run")
    assert_one_line(print_answers(), "Expected folders of finished runs")
    assert "python scripts/answers.py" in print_answers("--help").stdout


MISTAKES = {
    "config field": (
        "probe",
        [BOXES, "--config.architecure=resnet50"],
        r"architecure.*[Dd]id you mean .architecture",
    ),
    "config value": ("probe", [BOXES, "--config.splits=many"], "--config.splits=many"),
    "config file": ("reproduce", ["--config=configs/demos.py"], r"configs/demos\.py"),
    "settings of noise": (
        "noise",
        ["--config=configs/noise.py", "--config.splits=0", "--config.sizes=20,x"],
        r"config\.sizes is 'x'; expected an integer; config\.splits is 0; expected at least 1",
    ),
    "imports": (
        "noise",
        ["--config=configs/noise.py", "--imports=no_such_module"],
        "no_such_module cannot be imported",
    ),
    "experiment": (
        "experiment",
        ["--config=configs/noise.py", "--experiment=nose"],
        "No experiment is called 'nose'; did you mean noise",
    ),
    "data of the paper": (
        "reproduce",
        ["--config=configs/paper.py:photos", "--workdir=runs/photos"],
        r"^error: configs/paper\.py:photos is not known; expected one of photographs, imagenet, scenes\.$",
    ),
    "no config": ("pretrain", [], "--config must have a value"),
    "flag": ("probe", [BOXES, "--wrokdir=x"], "wrokdir.*Did you mean: workdir"),
    "pretrained architecture": (
        "pretrain",
        ["--config=configs/pretrain.py", "--config.architecture=inception"],
        "did you mean inception_v3",
    ),
    "weights": ("probe", [BOXES, "--config.weights=/nowhere", "--config.images=x"], "/nowhere is no folder"),
    "damaged weights": (
        "probe",
        [BOXES, "--config.weights={files}/damaged", "--config.images=x"],
        "cannot be read",
    ),
    "other weights": (
        "probe",
        [
            BOXES,
            "--config.architecture=inception_v3",
            "--config.weights={files}/resnet50",
            "--config.images=x",
        ],
        "holds resnet50, but config.architecture is inception_v3",
    ),
    "layer": (
        "probe",
        [BOXES, "--config.weights={files}/resnet50", "--config.images=x", "--config.layers=ad_1"],
        "no layer 'ad_1'; did you mean add_1",
    ),
    "class": (
        "probe",
        [
            BOXES,
            "--config.weights={files}/resnet50",
            "--config.images={files}/voc",
            "--config.image_class=cart",
        ],
        "no object of class 'cart'",
    ),
    "workdir": (
        "probe",
        [BOXES, "--config.weights={files}/resnet50", "--config.images={files}/voc", "--workdir={files}/voc"],
        r"voc exists; pass --resume",
    ),
    "impossible workdir": (
        "probe",
        [BOXES, "--config.weights={files}/resnet50", "--config.images={files}/voc", "--workdir=/dev/null/x"],
        r"/dev/null",
    ),
}


def test_every_mistake_is_one_line(files, forks):
    for name, arguments, message in MISTAKES.values():
        output = "--output" if name == "prune" else "--workdir"
        arguments = [argument.format(files=files) for argument in arguments]
        if not any(argument.startswith(output) for argument in arguments):
            arguments.append(f"{output}={files / 'never'}")
        assert_one_line(forks(name, *arguments), message)
    assert not (files / "never").exists()


FAILING = """
import command


def main():
    raise {error}


command.run(main)
"""


@pytest.fixture
def failing(forks, tmp_path):
    def run(error, *arguments):
        (tmp_path / "failing.py").write_text(FAILING.format(error=error))
        return forks(tmp_path / "failing", *arguments)

    return run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("ValueError('what was given')", "^error: what was given$"),
        ("FloatingPointError('The loss is nan at step 3')", "^error: The loss is nan at step 3$"),
        (
            "OSError(28, 'No space left on device', 'scores.csv')",
            r"^error: .*No space left on device: 'scores\.csv'$",
        ),
    ],
)
def test_what_a_user_can_mend_is_told_without_a_traceback(failing, error, message):
    assert_one_line(failing(error), message)
    detailed = failing(error, "--verbosity=1")
    assert detailed.returncode == 1
    assert "Traceback" in detailed.stderr


def test_a_defect_keeps_its_traceback(failing):
    process = failing("KeyError('a defect')")
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "KeyError: 'a defect'" in process.stderr
