"""The page on what may be brought: its blocks are run from its own text."""

import re
from pathlib import Path

import annotated_folders
import numpy as np
import pandas as pd
from PIL import Image
from skimage import data
from test_slides import write as slide

from scalecov_jax.imaging.annotations import read_geojson

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "bring_your_own.md"


def test_every_block_runs_and_is_short(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    rng, rows = np.random.default_rng(0), []
    for number in range(24):
        side = int(rng.integers(100, 300))
        top, left = rng.integers(0, 300 - side + 1, 2)
        picture = (data.astronaut(), data.coffee(), data.chelsea())[number % 3]
        path = tmp_path / "photographs" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[top : top + side, left : left + side]).save(path)
        rows.append((f"{number}", np.log(side), f"p{number // 2}"))
    pd.DataFrame(rows, columns=["image", "age", "patient"]).to_csv("measures.csv")
    annotated_folders.write(
        tmp_path / "nuclei",
        "geojson",
        {f"p{at}": annotated_folders.nuclei(at, 12, 140, 140) for at in range(12)},
    )
    for name in ("a.tif", "b.tif"):
        (tmp_path / "SLIDES").mkdir(exist_ok=True)
        slide(tmp_path / "SLIDES" / name)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 10
    for code in blocks:
        assert len(code.strip().splitlines()) <= 10
        exec(compile(code, PAGE.name, "exec"), names)
    assert names["again"].best == names["found"].best
    assert names["table"].shape == (24, 256)
    np.testing.assert_allclose(names["maps"].mean((1, 2)), names["table"], rtol=1e-3, atol=1e-4)
    assert names["looks"].shape == names["found_where"].shape == (24, 96, 96)
    assert len(names["nuclei"]) >= 10
    assert names["fitted"].best == "add_3"
    assert len(names["size"].table()) > 0
    drawn = [read_geojson(path) for path in (tmp_path / "qupath").iterdir()]
    assert [len(one.objects) for one in drawn] == [6, 6]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert "add_12" in capsys.readouterr().out
