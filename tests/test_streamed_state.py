"""Passes that are killed, damaged, changed, or run twice at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_stream_sums import FOLDS, Noise, assert_same, stream

from scalecov_jax.streaming import stream_sums as streaming
from scalecov_jax.streaming.state import keeper, resume
from scalecov_jax.streaming.stream_sums import State

FINGERPRINT = {"weights": "abc", "batch_size": "8"}
FLUSHES = 2 * FOLDS


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(streaming, "ROWS", 16)


def run(folder, source=None, fingerprint=FINGERPRINT, after=lambda state: None):
    """A pass that keeps its states and tells of each."""
    begun = resume(folder, fingerprint)
    keep = keeper(folder, fingerprint)

    def kept(state):
        keep(state)
        after(state)

    return stream(source, flush=1, state=begun, keep=kept)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "ROWS", 16)
        folder = tmp_path_factory.mktemp("unbroken") / "states"
        return run(folder), folder


def states(folder):
    return sorted(int(path.stem) for path in folder.iterdir())


def test_the_last_two_states_are_kept_and_a_finished_pass_reads_nothing(unbroken):
    state, folder = unbroken
    assert states(folder) == [FLUSHES - 1, FLUSHES]
    source = Noise(broken=range(100))
    assert_same(run(folder, source), state)
    assert source.read == []


_SCRIPT = """
import sys, time
import test_streamed_state as t
from pathlib import Path

t.streaming.ROWS = 16

def after(state):
    print("kept", state.flushes, flush=True)
    time.sleep(0.5)

t.run(Path(sys.argv[1]), after=after)
"""


@pytest.mark.parametrize("wait", [0.0, 0.6])
def test_a_killed_pass_goes_on_to_the_same_bits(tmp_path, unbroken, wait):
    """Killed while it sleeps, or while it computes or writes the next state."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, tmp_path / "states"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("kept 2"):
        assert line, "the pass ended before it could be killed"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(wait)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert 6 not in states(tmp_path / "states")
    source = Noise()
    assert_same(run(tmp_path / "states", source), unbroken[0])
    assert 0 < len(source.read) <= 75 - 25


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_state_costs_one_stretch(tmp_path, unbroken, damage, caplog):
    folder = tmp_path / "states"
    run(folder)
    newest = folder / f"{FLUSHES}.npz"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    source = Noise()
    assert_same(run(folder, source), unbroken[0])
    assert len(source.read) == 9
    assert f"State {FLUSHES} is set aside as damaged_{FLUSHES}.npz: {newest} is damaged" in caplog.text
    assert (tmp_path / f"damaged_{FLUSHES}.npz").is_file()


def test_a_changed_fingerprint_is_refused(unbroken):
    _, folder = unbroken
    changed = {"weights": "abd", "batch_size": "8", "dtype": "bfloat16"}
    with pytest.raises(
        ValueError, match=r"cannot be resumed \(weights: abc, now abd; dtype: None, now bfloat16\)"
    ):
        run(folder, fingerprint=changed)
    assert states(folder) == [FLUSHES - 1, FLUSHES]


def test_a_full_disk_keeps_what_was_written(tmp_path, unbroken, monkeypatch):
    folder = tmp_path / "states"

    def full(*args, **arrays):
        raise OSError(28, "No space left on device")

    def fill(state: State):
        if state.flushes == 3:
            monkeypatch.setattr(np, "savez", full)

    with pytest.raises(ValueError, match=r"State 4 cannot be written .*4\.npz.*pass --resume"):
        run(folder, after=fill)
    monkeypatch.undo()
    monkeypatch.setattr(streaming, "ROWS", 16)
    assert states(folder) == [2, 3]
    assert_same(run(folder), unbroken[0])
