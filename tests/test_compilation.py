"""Options of the compiler, the sums that it gets wrong without them, and compiled programs that outlive their process."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jaxlib.version import __version__ as jaxlib_version

from scalecov_jax import compilation
from scalecov_jax.report.provenance import provenance

TWICE = """
import sys, jax, jax.numpy as jnp
from scalecov_jax.compilation import jit, keep_programs
keep_programs(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
print(float(jit(lambda x: jnp.tanh(x).sum())(jnp.arange(3.0))), hits.count("/jax/compilation_cache/cache_hits") > 0)
"""

# What a user may write, under plain jax.jit: relative errors against NumPy. The first {} is what comes before JAX is imported.
SUMS = """
{}
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)

def error(function, x, right):
    difference = np.abs(np.asarray(jax.jit(function)(x)) - right).max() / np.abs(right).max()
    return float(np.nan_to_num(difference, nan=np.inf))

def product(e):
    return ((e @ jnp.full_like(e, 0.7)) * e).sum(-1)

for shape, kind in (((64, 64, 64), float), ((325, 133, 133), float), ((64, 64, 64), "float32")):
    e = np.random.default_rng(0).normal(size=shape).astype(kind)
    print(error(product, e, (0.7 * e.sum(-1, keepdims=True, dtype=float) * e).sum(-1)))
for count, kind in ((16_385, float), (32_769, "float32")):
    x = np.arange(count, dtype=kind)[:, None] * np.array([1, 0, 0], kind)
    squares = jax.vmap(lambda row: ((jnp.eye(3, dtype=row.dtype) @ row) ** 2).sum())
    print(error(squares, x, x[:, 0].astype(float) ** 2))
"""
TOLERANCES = np.array([1e-12, 1e-12, 1e-5, 1e-12, 1e-5])

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the CPU backend")


def python(code: str, *arguments: str, flags: str = "") -> subprocess.CompletedProcess:
    """A process of its own, so that what counts is what happens there before the backend starts."""
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(Path.cwd()),
        "PYTHONWARNINGS": "default",
    }
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def errors(before: str, flags: str = "") -> np.ndarray:
    run = python(SUMS.format(before), flags=flags)
    assert run.returncode == 0, run.stderr
    return np.array(run.stdout.split(), float)


@on_cpu
def test_sums_of_the_users_own_functions_are_right_once_the_package_is_imported():
    assert (errors("import scalecov_jax") < TOLERANCES).all()
    assert (errors("import jax, scalecov_jax") < TOLERANCES).all()


@on_cpu
def test_the_same_sums_are_wrong_without_the_package():
    """If this fails on a newer jaxlib, the fault is gone there."""
    wrong = errors("") > 1e-3
    expected = [True] * 5 if jaxlib_version == "0.10.2" else [True] * 3 + [False] * 2
    assert wrong.tolist() == expected


@on_cpu
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", f"--{compilation.FUSIONS}="),
        ("--xla_cpu_multi_thread_eigen=true", f"--xla_cpu_multi_thread_eigen=true --{compilation.FUSIONS}="),
        (
            f"--{compilation.FUSIONS}=LIBRARY_FUSION_TYPE_REDUCE",
            f"--{compilation.FUSIONS}=LIBRARY_FUSION_TYPE_REDUCE",
        ),
    ],
)
def test_the_flag_joins_the_users_flags_and_reaches_the_processes_that_follow(given, expected):
    code = """
import scalecov_jax, subprocess, sys
assert "jax" not in sys.modules
subprocess.run([sys.executable, "-c", "import os, jax; jax.devices(); print(os.environ['XLA_FLAGS'])"], check=True)
"""
    run = python(code, flags=given)
    assert run.stdout.strip() == expected, run.stderr


@on_cpu
def test_flags_in_a_file_are_kept(tmp_path):
    (tmp_path / "flags").write_text("--xla_cpu_multi_thread_eigen=true\n")
    code = "import scalecov_jax, jax, os; jax.devices(); print(os.environ['XLA_FLAGS'])"
    run = python(code, flags=str(tmp_path / "flags"))
    assert run.stdout.strip() == f"--xla_cpu_multi_thread_eigen=true --{compilation.FUSIONS}=", run.stderr
    (tmp_path / "flags").write_text(f"--{compilation.FUSIONS}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT")
    code = "from scalecov_jax.compilation import compiler_options; print(*compiler_options().values())"
    run = python(code, flags=str(tmp_path / "flags"))
    assert run.stdout.strip() == "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT", run.stderr


def test_a_jaxlib_that_was_not_tested_gets_no_flag_that_might_end_the_process(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")
    monkeypatch.setattr(compilation, "jaxlib_version", lambda: "0.13.0")
    compilation.protect_process()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=true"


@on_cpu
def test_an_import_after_the_backend_started_warns_and_our_functions_are_safe():
    code = """
import jax, jax.numpy as jnp, numpy as np
jax.devices()
from scalecov_jax.compilation import jit
e = np.random.default_rng(0).normal(size=(64, 64, 64)).astype("float32")
found = np.asarray(jit(lambda e: ((e @ jnp.full_like(e, 0.7)) * e).sum(-1))(e))
print(np.abs(found - (0.7 * e.sum(-1, keepdims=True) * e).sum(-1)).max() < 1e-3)
"""
    run = python(code)
    assert run.stdout.strip() == "True", run.stderr
    warning = [line for line in run.stderr.splitlines() if "RuntimeWarning" in line]
    assert len(warning) == 1
    assert all(
        part in warning[0] for part in ("0.10.2", "Import scalecov_jax before", f"--{compilation.FUSIONS}=")
    )
    assert "RuntimeWarning" not in python(code, flags=f"--{compilation.FUSIONS}=").stderr


@on_cpu
def test_a_flag_of_the_user_with_which_sums_are_wrong_is_refused():
    code = """
from scalecov_jax.compilation import jit
try:
    jit(lambda x: x + 1)(1.0)
except FloatingPointError as error:
    print(error)
"""
    value = "LIBRARY_FUSION_TYPE_REDUCE"
    message = python(code, flags=f"--{compilation.FUSIONS}={value}").stdout
    assert f"jaxlib {jaxlib_version} computes sums of a product times its operand" in message
    assert value in message
    assert f"Take --{compilation.FUSIONS} out of XLA_FLAGS" in message
    assert python(code, flags=f"--{compilation.FUSIONS}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT").stdout == ""


@on_cpu
def test_nothing_runs_while_the_self_test_fails(monkeypatch):
    monkeypatch.setattr(compilation, "wrong_patterns", lambda options: ["sums of squared products"])
    compilation.compiler_options.cache_clear()
    try:
        function = compilation.jit(lambda x: x + 1)
        for _ in range(2):
            with pytest.raises(
                FloatingPointError, match=r"computes sums of squared products wrongly.*XLA_FLAGS"
            ):
                function(1.0)
    finally:
        compilation.compiler_options.cache_clear()


@on_cpu
def test_the_self_test_sees_the_fault():
    reduce = {compilation.FUSIONS: "LIBRARY_FUSION_TYPE_REDUCE"}
    assert len(compilation.wrong_patterns(reduce)) == (2 if jaxlib_version == "0.10.2" else 1)
    assert compilation.wrong_patterns({compilation.FUSIONS: ""}) == []


def test_compiled_functions_work_inside_other_transformations():
    square = compilation.jit(lambda x, power: x**power, static_argnames=("power",))
    assert float(square(3.0, power=2)) == 9
    assert float(jax.jit(lambda x: square(x, power=2) + 1)(3.0)) == 10
    assert float(jax.jit(lambda x: square(2.0, power=2) + x)(3.0)) == 7
    assert float(jax.grad(lambda x: square(x, power=2))(3.0)) == 6
    assert float(jax.vmap(jax.grad(lambda x: square(x, power=2)))(np.full(1, 3.0))[0]) == 6
    assert square.program()._cache_size() == 1


@on_cpu
def test_options_that_a_jaxlib_does_not_know_are_left_out_with_a_warning(monkeypatch, caplog):
    assert compilation.compiler_options() == {compilation.FUSIONS: ""}
    monkeypatch.setattr(compilation, "FUSIONS", "xla_cpu_no_such_option")
    compilation.compiler_options.cache_clear()
    try:
        with caplog.at_level("WARNING", logger="absl"):
            assert compilation.compiler_options() == {}
    finally:
        compilation.compiler_options.cache_clear()
    assert "xla_cpu_no_such_option" in caplog.text


@on_cpu
def test_a_run_names_versions_and_flags():
    facts = provenance(["probe.py"], {"seed": 1}, {}, 0.0)
    assert facts["compiler"] == f"XLA_FLAGS={os.environ['XLA_FLAGS']}\n{compilation.FUSIONS}="
    for package in ("jax", "jaxlib", "flax", "numpy", "scipy", "scikit-learn"):
        assert f"\n{package} " in facts["versions"]


def test_a_second_process_takes_the_programs_of_the_first(tmp_path):
    runs = [python(TWICE, str(tmp_path)).stdout.split() for _ in range(2)]
    assert runs[0] == [runs[1][0], "False"]
    assert runs[1][1] == "True"
