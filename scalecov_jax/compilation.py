"""How JAX compiles here: right numbers and fast convolutions on a CPU, and compiled programs kept between runs.

jaxlib 0.10 to 0.12 hands parts of a program on a CPU to YNNPACK, by default among them sums fused with what is summed. Some of
these are compiled wrongly, without any notice: a product times its operand, summed along the last axis, gives anything up to
1e301 or NaN (0.10.2 and 0.12.0), and sums of squared products are off by 0.8 % from 16,385 rows on (0.10.2). With no fusion for
YNNPACK all are right, and convolutions, which it takes 1.1 to 2.2 times as long for on two cores, run on XLA's own kernels.
Hence one option, set for the whole process on import and for each function of this package where it is compiled.

Nothing here imports JAX before it is needed: `import scalecov_jax` stays light.
"""

import os
import re
import sys
import warnings
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np

FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
PRODUCTS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
KNOWN = (0, 10), (0, 13)  # jaxlib from, and before: XLA ends a process whose flags it does not know

# Without LLVM's optimisations, which come after the fusions and have no part in the fault, the self-test compiles faster.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def protect_process() -> None:
    """Switch off YNNPACK's fusions for all of this process and those it starts, through XLA_FLAGS; called on import.

    Other flags stay, and so does this one if it is set already. Where the backend runs, it has read its flags: a warning then
    says that only functions of this package are safe.
    """
    flags = xla_flags()
    if f"--{FUSIONS}" in flags or not _flag_is_known():
        return
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is None or not bridge.backends_are_initialized():
        os.environ["XLA_FLAGS"] = f"{flags} --{FUSIONS}=".strip()
    elif sys.modules["jax"].default_backend() == "cpu":
        warnings.warn(
            "JAX ran before scalecov_jax was imported: since jaxlib 0.10.2 your own functions under jax.jit may return wrong "
            "sums on a CPU (those of scalecov_jax do not). Import scalecov_jax before the first JAX computation, or start "
            f"Python with XLA_FLAGS=--{FUSIONS}= in its environment.",
            RuntimeWarning,
            stacklevel=3,
        )


def xla_flags() -> str:
    """What XLA_FLAGS says, or the file that it names."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    return Path(flags).read_text().strip() if not flags.startswith("-") and Path(flags).is_file() else flags


def jaxlib_version() -> str:
    """Of what is installed; read without importing JAX."""
    from jaxlib.version import __version__

    return __version__


def _flag_is_known() -> bool:
    version = tuple(int(part) for part in jaxlib_version().split(".")[:2])
    return KNOWN[0] <= version < KNOWN[1]


def jit(function: Callable[..., Any], *, products: bool = False, **arguments: Any) -> Any:
    """`jax.jit` with what the present backend needs for right numbers and fast convolutions.

    The backend is asked at the first call, so that `jax.distributed.initialize` may come after the import. Inside another
    transformation the options are the outer function's.

    Args:
        function: Any function that `jax.jit` takes.
        products: Let YNNPACK have single matrix products, which are right and in float64 up to a quarter faster, while those of
            small float32 matrices are slower.
        **arguments: Of `jax.jit`.

    Returns:
        The compiled function; its attribute `program` gives what `jax.jit` returned.

    Raises:
        FloatingPointError: At the first call; see `compiler_options`.
    """
    import jax
    from jax._src.core import trace_state_clean

    inner = jax.jit(function, **arguments)

    @cache
    def program() -> Any:
        return jax.jit(function, compiler_options=compiler_options(products), **arguments)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (program() if trace_state_clean() else inner)(*args, **kwargs)

    setattr(call, "program", program)  # noqa: B010 - pyright knows no attributes of functions
    return call


@cache
def compiler_options(products: bool = False) -> dict[str, str]:
    """Options of the compiler for the present backend, after making sure that its numbers are right with them.

    On a CPU that is YNNPACK's fusions: none, or single matrix products, or what the user's XLA_FLAGS say. A jaxlib that does not
    know the option gets none.

    Args:
        products: See `jit`.

    Raises:
        FloatingPointError: The self-test does not agree with NumPy (see `wrong_patterns`).
    """
    import jax
    from absl import logging

    if jax.default_backend() != "cpu":
        return {}
    given = re.search(rf"--{FUSIONS}=(\S+)", xla_flags())  # but for what `protect_process` sets
    options = {FUSIONS: given[1] if given else PRODUCTS * products}
    try:
        wrong = wrong_patterns(options)
    except jax.errors.JaxRuntimeError as error:
        logging.warning("This jaxlib refuses the option %s, and networks may run slower: %s", FUSIONS, error)
        options = {}
        wrong = wrong_patterns(options)
    if wrong:
        raise FloatingPointError(
            f"jaxlib {jaxlib_version()} computes {' and '.join(wrong)} wrongly on this CPU: NumPy gives other numbers. The "
            f"compiler's options are {options or 'its own'}, and XLA_FLAGS is {xla_flags()!r}. Take "
            f"--{FUSIONS} out of XLA_FLAGS if it is there, or install the versions of constraints.txt (Python 3.11) or "
            "constraints-3.13.txt."
        )
    return options


def wrong_patterns(options: dict[str, Any]) -> list[str]:
    """Which of the sums known to have been compiled wrongly differ from NumPy's (relative difference above 1e-9, in float64).

    For e [1, 64, 64] and c filled with 0.7: sum_k (e c)_jk e_jk. For 16,385 rows r of three numbers: |I r|^2. Both are the
    smallest found that show the fault; smaller ones come out right.

    Args:
        options: Of the compiler.
    """
    import jax
    import jax.numpy as jnp

    e = np.linspace(-1, 1, 64 * 64).reshape(1, 64, 64)
    rows = np.zeros((16_385, 3))
    rows[:, 0] = np.arange(16_385)

    def patterns(e: Any, rows: Any) -> dict[str, Any]:
        return {
            "sums of a product times its operand": ((e @ jnp.full_like(e, 0.7)) * e).sum(-1),
            "sums of squared products": jax.vmap(lambda row: ((np.eye(3) @ row) ** 2).sum())(rows),
        }

    with jax.enable_x64(True):
        program = jax.jit(patterns, compiler_options={**options, **_QUICK}).lower(e, rows).compile()
        computed = jax.device_get(program(e, rows))
    expected = ((0.7 * e.sum(-1, keepdims=True)) * e).sum(-1), np.square(rows).sum(-1)
    return [
        name
        for (name, values), right in zip(computed.items(), expected, strict=True)
        if not np.allclose(values, right, rtol=1e-9, atol=1e-9 * np.abs(right).max())
    ]


def keep_programs(folder: str | Path) -> None:
    """Keep compiled programs in a folder, so that a second run starts without compiling what the first compiled.

    Args:
        folder: Made if absent; an empty name keeps none.
    """
    import jax

    if folder:
        path = Path(folder).expanduser().absolute()
        jax.config.update("jax_compilation_cache_dir", os.fspath(path))
