"""Options of the compiler, and compiled programs that outlive their process."""

import subprocess
import sys

import jax
import pytest

from scalecov_jax.models import compilation

TWICE = """
import sys, jax, jax.numpy as jnp
from scalecov_jax.models.compilation import jit, keep_programs
keep_programs(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
print(float(jit(lambda x: jnp.tanh(x).sum())(jnp.arange(3.0))), hits.count("/jax/compilation_cache/cache_hits") > 0)
"""


def test_compiled_functions_work_inside_other_transformations():
    square = compilation.jit(lambda x, power: x**power, static_argnames=("power",))
    assert float(square(3.0, power=2)) == 9
    assert float(jax.jit(lambda x: square(x, power=2) + 1)(3.0)) == 10
    assert float(jax.grad(lambda x: square(x, power=2))(3.0)) == 6
    assert square.program()._cache_size() == 1


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="options of the CPU backend")
def test_options_that_a_jaxlib_does_not_know_are_left_out_with_a_warning(monkeypatch, caplog):
    assert compilation.compiler_options() == compilation.CPU_OPTIONS
    monkeypatch.setattr(compilation, "CPU_OPTIONS", {"xla_cpu_no_such_option": "x"})
    compilation.compiler_options.cache_clear()
    try:
        with caplog.at_level("WARNING", logger="absl"):
            assert compilation.compiler_options() == {}
    finally:
        compilation.compiler_options.cache_clear()
    assert "xla_cpu_no_such_option" in caplog.text


def test_a_second_process_takes_the_programs_of_the_first(tmp_path):
    runs = [
        subprocess.run(
            [sys.executable, "-c", TWICE, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert runs[0] == [runs[1][0], "False"]
    assert runs[1][1] == "True"
