"""Features on disk, so that an interrupted run computes nothing twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scalecov_jax.features import Features
from scalecov_jax.images.example import Skipped


def cached_features(path: Path | None, compute: Callable[[], Any]) -> Features:
    """Read features from `path`, or compute and write them (a file appears there only when it is complete)."""
    if path is not None and path.exists():
        with np.load(path, allow_pickle=False) as file:
            names = [str(name) for name in file["layers"]]
            skipped = tuple(Skipped(*map(str, row)) for row in file["skipped"])
            values = {name: file[f"layer_{name}"] for name in names}
            origins = dict(zip(names, map(str, file["origins"]), strict=True))
            return Features(values, file["indices"], skipped, origins, str(file["pooling"]))
    features = compute()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial.npz")
        np.savez(
            partial_path,
            layers=list(features.values),
            indices=features.indices,
            skipped=np.array(features.skipped, dtype=str).reshape(-1, 3),
            origins=[features.origins.get(name, "") for name in features.values],
            pooling=features.pooling,
            **{f"layer_{name}": values for name, values in features.values.items()},
        )
        partial_path.replace(path)
    return features
