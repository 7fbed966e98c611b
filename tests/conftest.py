"""Fixtures and guards shared by all tests."""

import os
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("scalecov_jax", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs, weights and reference results; skip without it, but fail in CI."""
    folder = Path(os.environ.get("SCALECOV_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the shared folder, and {folder} is absent.")
        pytest.skip(f"needs the shared folder, and {folder} is absent; set SCALECOV_SHARED")
    return folder
