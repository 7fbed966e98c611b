"""Find where in a pretrained network a continuous concept lives, cut the network there, and measure whether that helps.

import scalecov_jax as sc

network = sc.load("checkpoints/resnet50")
images = sc.images("photographs", measures="measures.csv", groups="patient")
found = sc.probe(network, images, "age")
found.table(), found.best, found.peak_set, found.plot()
"""

from typing import TYPE_CHECKING, Any

from scalecov_jax.compilation import protect_process

if TYPE_CHECKING:
    from scalecov_jax.api import (
        cut,
        explain,
        export,
        features,
        images,
        load,
        maps,
        probe,
        rcv,
        save,
        write_geojson,
    )

__all__ = [
    "cut",
    "explain",
    "export",
    "features",
    "images",
    "load",
    "maps",
    "probe",
    "rcv",
    "save",
    "write_geojson",
]

protect_process()  # before JAX's backend starts


def __getattr__(name: str) -> Any:
    # Imported when it is asked for, since it takes seconds.
    if name in __all__:
        from scalecov_jax import api

        return getattr(api, name)
    raise AttributeError(f"scalecov_jax has no {name}; it has {', '.join(__all__)} and its modules.")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
