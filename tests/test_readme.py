"""What the README and the page on extensions show is run from their own text; the form of all pages."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from io import StringIO
from pathlib import Path

import annotated_folders
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file
from torch_references import state_dict

import scalecov_jax as sc
from scalecov_jax.concepts.measure import MEASURES
from scalecov_jax.models.architecture import ARCHITECTURES

ROOT = Path(__file__).parents[1]
README, EXTEND = ROOT / "README.md", ROOT / "docs" / "extend.md"
ARCHITECTURES_PAGE = ROOT / "docs" / "architectures.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ROUTES = {"scalecov probe": ("--config.layers=add_3,add_12", "--config.splits=3", "--config.permutations=0")}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the quickstart begins with: rendered images, a table, and weights of torchvision's layout."""
    folder, rows = tmp_path_factory.mktemp("readme"), []
    (folder / "photographs").mkdir()
    for number, scene in enumerate(sc.images("scenes", image_class="ringed_star", count=120, seed=1)):
        Image.fromarray(scene.image).save(folder / "photographs" / f"{number:03}.png")
        box = scene.box
        side = ((box.x_max - box.x_min + 1) * (box.y_max - box.y_min + 1)) ** 0.5
        rows.append((f"{number:03}.png", round(0.2 * side, 1), f"p{number // 2:02}"))
    pd.DataFrame(rows, columns=["image", "diameter", "patient"]).to_csv(folder / "measures.csv", index=False)
    save_file(state_dict("mobilenet_v2", "torchvision"), folder / "model.safetensors")
    return folder


def test_quickstart(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (table,), (output,) = blocks(README, "csv"), blocks(README, "text")
    assert Path("measures.csv").read_text().startswith(table)
    names = {}
    quickstart, *more = blocks(README, "python")
    exec(compile(quickstart, README.name, "exec"), names)
    expected, printed = (
        pd.read_csv(StringIO(text), sep=r"\s+") for text in (output, capsys.readouterr().out)
    )
    pd.testing.assert_frame_equal(printed, expected, atol=0.02)
    assert sc.load("resnet50_cut").module.last == names["found"].best == "add_12"
    assert sc.rcv("diameter.npz").layer == "add_12"
    assert len(more) == 2
    for code in more:
        exec(compile(code, README.name, "exec"), names)
    late, trained = re.findall(r"difference=([\d.]+)", capsys.readouterr().out)
    assert float(late) == pytest.approx(0.032, abs=0.01)
    assert float(trained) > 0.3  # than a network with weights that NumPy drew


def run_commands(code, folder, routes):
    for line in code.replace("\\\n", " ").splitlines():
        (_, *arguments), more = shlex.split(line), routes.get(" ".join(line.split()[:2]), ())
        process = subprocess.run(
            [sys.executable, "-m", "scalecov_jax", *arguments, *more],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr


def test_commands(folder):
    (code,) = (code for code in blocks(README, "sh") if code.startswith("scalecov"))
    run_commands(code, folder, ROUTES)
    files = re.findall(r"`([\w./]+)`", README.read_text().partition("## What a run writes")[2].split("##")[0])
    assert len(files) >= 10
    for file in files:
        assert (folder / "runs" / "diameter" / file).exists() or file.endswith("resume"), file
    assert sc.load(folder / "runs" / "resnet50_cut").module.last == "add_12"


@pytest.mark.large
def test_the_main_job_on_a_vit(folder, shared):
    """From a file of timm to a head on the cut network, as the page on architectures has it."""
    shutil.copy(shared / "reference" / "vit" / "timm_vit.safetensors", folder / "model.safetensors")
    every = {f"p{at}": annotated_folders.nuclei(at, 24, 140, 140) for at in range(6)}
    annotated_folders.write(folder / "nuclei", "mask", every)
    (code,) = blocks(ARCHITECTURES_PAGE, "sh")
    few = (
        "--config.magnification=40",
        "--config.magnifications=20,40",
        "--config.seeds=2",
        "--config.head_epochs=2",
    )
    probing = ("--config.splits=3", "--config.permutations=19")
    run_commands(code, folder, {"scalecov probe": probing, "scalecov transfer": few})
    layers = pd.read_csv(folder / "runs" / "vit" / "layers.csv")
    assert [*layers["layer"]][:5] == [*(f"block_{number}" for number in range(4)), "norm"]
    cut = sc.load(folder / "runs" / "weights" / "vit_cut").module.last
    assert cut == layers["layer"][layers["r2"].idxmax()]
    photographs = sc.images(folder / "photographs", measures=folder / "measures.csv")
    read = sc.features(
        sc.load(folder / "runs" / "weights" / "vit_cut"), photographs, [cut], size=64, pooling="mean_patch"
    )
    vector = sc.rcv(folder / "runs" / "vit" / "rcvs.npz", layer=cut)
    assert np.corrcoef(vector.predict(read), photographs.column("diameter"))[0, 1] > 0.3
    models = pd.read_csv(folder / "runs" / "vit_nuclei" / "models.csv", index_col="model")
    assert models["layer"]["pruned"] == cut
    assert (folder / "runs" / "vit" / "report.html").stat().st_size > 10_000


def test_the_command_lists_scripts_and_names_the_nearest():
    command = [sys.executable, "-m", "scalecov_jax"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"command"}
    assert set(re.findall(r"^  (\w+) {2,}\w", listed, re.M)) == scripts
    wrong = subprocess.run([*command, "prob"], cwd=ROOT, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.rstrip().endswith("Did you mean probe?")


def test_custom_concept_probe_and_architecture(monkeypatch, capsys):
    """One after the other: probe and architecture build on what came before."""
    monkeypatch.chdir(ROOT)
    for registry, name in ((MEASURES, "warmth"), (ARCHITECTURES, "small")):
        monkeypatch.setitem(registry, name, None)  # gone after the test
    names, codes = {}, blocks(EXTEND, "python")
    assert len(codes) == 3
    for code in codes:
        exec(compile(code, EXTEND.name, "exec"), names)
        (expected,) = re.findall(r"# \[(.*?)\]", code)
        printed = np.array(capsys.readouterr().out.strip("[] \n").split(), float)
        np.testing.assert_allclose(printed, [float(value) for value in expected.split(",")], atol=0.05)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_lines(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in map("".join, re.findall(r"\]\((?!http)(.*?)\)|src=\"(.*?)\"", text)):
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading:
            lines = re.findall(r"^#+ (.*)", target.read_text(), re.M)
            assert heading in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in lines], link
    prose = [line for line in text.splitlines() if not re.match(r" {4}|\s*(\||!\[|<img|#)", line)]
    assert max(map(len, prose)) <= (100 if page == README else 120)


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 180


def test_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"scalecov_jax {version}," in README.read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
