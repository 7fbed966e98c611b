"""Fixtures and guards shared by all tests."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("scalecov_jax", "beartype.beartype")
import scalecov_jax  # noqa: E402, F401 - before a test starts the backend

jax.config.update("jax_numpy_rank_promotion", "raise")

# What one test compiled is kept for all tests of this run, in all of its processes and those that tests start.
_PROGRAMS = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="programs_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs",
    float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]),
)


def pytest_unconfigure():
    if _PROGRAMS:
        shutil.rmtree(_PROGRAMS, ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs, weights and reference results; skip without it, but fail in CI."""
    folder = Path(os.environ.get("SCALECOV_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the shared folder, and {folder} is absent.")
        pytest.skip(f"needs the shared folder, and {folder} is absent; set SCALECOV_SHARED")
    return folder


@pytest.fixture(scope="module")
def quick_compilation():
    """For programs that run for a moment and compile for long: without LLVM's optimisations, here and in further processes."""

    def optimise(answer: bool):
        jax.clear_caches()  # else programs would be other ones after other tests
        jax.config.update("jax_disable_most_optimizations", not answer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        optimise(False)
        yield
        optimise(True)


@pytest.fixture(scope="module")
def quick_scenes():
    """Scenes drawn by NumPy in place of those rendered, whose program compiles for long."""
    import plain_scenes

    from scalecov_jax.imaging import scenes

    with pytest.MonkeyPatch.context() as patch:
        for name in ("examples", "growing", "contact_sheet"):
            patch.setattr(scenes, name, getattr(plain_scenes, name))
        yield
