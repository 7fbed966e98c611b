"""How functions that run a network are compiled: the backend's options, and compiled programs kept between runs."""

import os
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.core import Tracer

# XLA's CPU backend (jaxlib 0.10) hands convolutions to YNNPACK, which on two cores takes 1.1 to 2.2 times as long as its own.
# This leaves YNNPACK its other default parts, reductions and single matrix products.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
}


def jit(function: Callable[..., Any], **arguments: Any) -> Any:
    """`jax.jit` with what the present backend needs for fast convolutions.

    The backend is asked at the first call, so that `jax.distributed.initialize` may come after the import. Inside another
    transformation the options are the outer function's.

    Args:
        function: What runs a network.
        **arguments: Of `jax.jit`.

    Returns:
        The compiled function; its attribute `program` gives what `jax.jit` returned.
    """
    inner = jax.jit(function, **arguments)

    @cache
    def program() -> Any:
        return jax.jit(function, compiler_options=compiler_options(), **arguments)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((args, kwargs)))
        return (inner if traced else program())(*args, **kwargs)

    setattr(call, "program", program)  # noqa: B010 - pyright knows no attributes of functions
    return call


@cache
def compiler_options() -> dict[str, bool | str]:
    """Options of the compiler for the present backend; none, with a warning, if this jaxlib does not know them."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        logging.warning(
            "This jaxlib refuses %s; networks run, but slower: %s", ", ".join(CPU_OPTIONS), str(error)[:200]
        )
        return {}
    return {**CPU_OPTIONS}


def keep_programs(folder: str | Path) -> None:
    """Keep compiled programs in a folder, so that a second run starts without compiling what the first compiled.

    Args:
        folder: Made if absent; an empty name keeps none.
    """
    if folder:
        path = Path(folder).expanduser().absolute()
        jax.config.update("jax_compilation_cache_dir", os.fspath(path))
