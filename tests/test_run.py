"""The runner with an experiment of a user's own, found by --imports: folder, tables, page, refusals."""

import json
import sys

import pandas as pd
import pytest

from scalecov_jax import run as runner
from scalecov_jax.experiments import EXPERIMENTS
from scalecov_jax.report.findings import Finding, table, text_table

# All that a newcomer writes: settings, what they name, tables, page.
MODULE = """
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from scalecov_jax.experiments import EXPERIMENTS, Experiment
from scalecov_jax.report import page
from scalecov_jax.report.findings import Finding
from scalecov_jax.settings import Base, setting


@dataclass(frozen=True)
class Settings(Base):
    title: str = setting("Squares <&>", help="Heading.")
    numbers: tuple[int, ...] = setting((1, 2), least=1, help="What to square.")


def check(settings):
    if 13 in settings.numbers:
        raise ValueError("numbers has 13, which brings no luck.")
    return {}


def run(settings, folder):
    rows = [("", x, x / 7) for x in settings.numbers]
    return {"squares": pd.DataFrame(rows, columns=["name", "number", "seventh"])}


def report(settings, tables, folder):
    frame = tables["squares"]
    figure = Figure()
    image = page.Image(figure, "nothing", name="empty")
    found = [
        Finding("largest", "all", float(frame["number"].max()), level="headline"),
        Finding("smallest", "all", float(frame["number"].min()), level="caution", note="Beware."),
    ]
    return page.Page(settings.title, found, [page.Section("Squares", "", [image])])


EXPERIMENTS["squares"] = Experiment(Settings, check, run, report)
"""


@pytest.fixture
def squares(tmp_path, monkeypatch):
    (tmp_path / "squares_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runner.import_modules(["squares_of_mine"])
    yield tmp_path
    del EXPERIMENTS["squares"], sys.modules["squares_of_mine"]


def run(folder, **given):
    options = {name: given.pop(name) for name in ("resume", "overwrite") if name in given}
    return runner.run("squares", given, folder, command=["x"], **options)


def test_a_module_of_the_user_is_run_and_reported(squares):
    text = run(squares / "run", numbers="3,10")
    names = {path.name for path in (squares / "run").iterdir()}
    assert names == {"scalecov_run.json", "squares.csv", "figures", "report.html", "summary.json"}
    assert {path.name for path in (squares / "run" / "figures").iterdir()} == {"empty.png", "empty.svg"}
    assert "Squares &lt;&amp;&gt;" in (squares / "run" / "report.html").read_text()
    summary = json.loads((squares / "run" / "summary.json").read_text())
    assert [x["value"] for x in summary["findings"]] == [10, 3]
    assert summary["settings"]["numbers"] == [3, 10]
    assert summary["warnings"] == ["all: smallest is 3.00. Beware."]
    assert "Caution: all: smallest is 3.00. Beware." in text
    settings, tables = runner.read(squares / "run")
    assert settings.numbers == (3, 10)
    written = EXPERIMENTS["squares"].run(settings, None)["squares"]
    pd.testing.assert_frame_equal(tables["squares"], written, check_exact=True)
    assert runner.page(squares / "run").findings[0].value == 10


def test_folders_are_kept(squares):
    run(squares / "run")
    with pytest.raises(ValueError, match="pass --resume"):
        run(squares / "run")
    with pytest.raises(ValueError, match="numbers: "):
        run(squares / "run", numbers="5", resume=True)
    assert "10.00" in run(squares / "run", numbers="10", overwrite=True)
    assert "10.00" in run(squares / "run", numbers="10", resume=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"numbers": ""}, "config.numbers is ''"),
        ({"numbers": "13"}, "no luck"),
        ({"number": 1}, "did you mean numbers"),
    ],
)
def test_refusals_leave_no_folder(squares, given, message):
    with pytest.raises(ValueError, match=message):
        run(squares / "run", **given)
    assert not (squares / "run").exists()


@pytest.mark.parametrize("text", ["name,number\n,1\n", "name,number,seventh\n,x,1\n", ""])
def test_damaged_tables_are_named(squares, text):
    run(squares / "run")
    (squares / "run" / "squares.csv").write_text(text)
    with pytest.raises(ValueError, match=r"squares\.csv is not as the run wrote it"):
        runner.read(squares / "run")


def test_modules_and_experiments_that_do_not_exist(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match=r"no_such cannot be imported .*; nor_this cannot") as error:
        runner.import_modules(["no_such", "nor_this"])
    assert "on the Python path" in str(error.value)
    with pytest.raises(ValueError, match="No experiment is called 'nose'; did you mean noise"):
        runner.get_experiment("nose")


def test_finding_has_one_form():
    finding = Finding(
        "R²", "conv", -0.5, -1.0, 1200.0, "quartiles", published=0.25, source="Table 1", note="Read it."
    )
    sentence = "conv: R² is −0.50 (quartiles −1.00 to 1,200); published: 0.25 (Table 1). Read it."
    assert finding.sentence == finding.to_dict()["sentence"] == sentence
    assert table([finding])[1] == [("R²", "conv", "−0.50 (−1.00 to 1,200)", "0.25", "−0.75")]
    plain = Finding("share", "conv", 12.3, unit="%", published="about 1")
    assert (plain.shown, plain.reported, plain.difference) == ("12 %", "about 1", "–")
    caution = Finding("loss", "conv", 1.0, level="caution")
    assert table([Finding("R²", "conv", 1.0), caution]) == (
        ("quantity", "at", "value"),
        [("R²", "conv", "1.00")],
    )
    assert text_table([caution]).endswith("Caution: conv: loss is 1.00.")
