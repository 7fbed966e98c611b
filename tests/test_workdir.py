"""The folder of a run: never overwritten or mixed by mistake."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scalecov_jax.atomic import read_json
from scalecov_jax.workdir import open_workdir

SETTINGS = {"seed": 0, "images": "scenes", "width": 0.25, "layers": ("a", "b")}


def opened(path, settings=SETTINGS, resume=False, overwrite=False):
    return open_workdir(path, settings, resume=resume, overwrite=overwrite)


@pytest.fixture
def earlier(tmp_path):
    folder = opened(tmp_path / "run")
    (folder / "result").write_text("precious")
    return folder


def test_new_folder_keeps_the_settings(tmp_path):
    folder = opened(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert read_json(folder / "scalecov_run.json") == {**SETTINGS, "layers": ["a", "b"]}
    assert [path.name for path in folder.iterdir()] == ["scalecov_run.json"]


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_empty_and_absent_folders_may_be_used_in_any_way(tmp_path, flags):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        assert (opened(tmp_path / name, **flags) / "scalecov_run.json").is_file()


def test_existing_run_is_refused(earlier):
    with pytest.raises(ValueError, match=r"run exists; pass --resume .* --overwrite"):
        opened(earlier)
    assert (earlier / "result").read_text() == "precious"


def test_resume_keeps_what_is_there(earlier):
    assert opened(earlier, resume=True) == earlier
    assert (earlier / "result").read_text() == "precious"


def test_resume_with_other_settings_names_all_of_them(earlier):
    changed = {**SETTINGS, "seed": 1, "new": True}
    del changed["width"]
    with pytest.raises(ValueError, match="cannot be resumed") as error:
        opened(earlier, changed, resume=True)
    for change in ("seed: 0, now 1", "new: None, now True", "width: 0.25, now None"):
        assert change in str(error.value)
    assert "images" not in str(error.value)
    assert read_json(earlier / "scalecov_run.json")["seed"] == 0


def test_overwrite_starts_anew(earlier):
    opened(earlier, {"seed": 1}, overwrite=True)
    assert [path.name for path in earlier.iterdir()] == ["scalecov_run.json"]
    assert read_json(earlier / "scalecov_run.json") == {"seed": 1}


def test_overwrite_and_resume_exclude_each_other(earlier):
    with pytest.raises(ValueError, match="exclude each other"):
        opened(earlier, resume=True, overwrite=True)
    assert (earlier / "result").exists()


@pytest.mark.parametrize("flags", [{"resume": True}, {"overwrite": True}])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path, flags):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds no earlier run"):
        opened(tmp_path, **flags)
    with pytest.raises(ValueError, match="holds no earlier run"):
        opened(tmp_path / "thesis.tex", **flags)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0"])
def test_damaged_settings_are_refused_but_can_be_overwritten(earlier, text):
    (earlier / "scalecov_run.json").write_text(text)
    with pytest.raises(ValueError, match=r"scalecov_run\.json"):
        opened(earlier, resume=True)
    opened(earlier, overwrite=True)
    assert not (earlier / "result").exists()


def test_killed_before_the_settings_were_complete(tmp_path):
    (tmp_path / "scalecov_run.partial.json").write_text('{"se')
    assert (opened(tmp_path, resume=True) / "scalecov_run.json").is_file()


def test_workers_may_change_under_resume(tmp_path):
    opened(tmp_path / "run", {**SETTINGS, "workers": 0})
    (tmp_path / "run" / "result").write_text("computed")
    again = opened(tmp_path / "run", {**SETTINGS, "workers": 3}, resume=True)
    assert (again / "result").read_text() == "computed"
    with pytest.raises(ValueError, match="other settings"):
        opened(again, {**SETTINGS, "workers": 3, "other": 1}, resume=True)


_WORK = """
import sys
from scalecov_jax.workdir import open_workdir
open_workdir(sys.argv[1], {"seed": 0}, resume=False, overwrite=False)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_run_is_kept_out_until_the_first_is_dead(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", _WORK, folder]
    first = subprocess.Popen(command, stdin=-1, stdout=-1, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    assert first.stdin is not None
    assert first.stdout is not None
    with first.stdin, first.stdout:
        assert first.stdout.readline() == b"open\n"
        for flags in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match=r"Another run works in .*run; wait until it ends"):
                opened(folder, {"seed": 0}, **flags)
        first.kill()
        assert first.wait() == -signal.SIGKILL
    opened(folder, {"seed": 0}, resume=True)
