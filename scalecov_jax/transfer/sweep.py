"""Linear heads on every layer of a network, by gradient descent or in closed form: what each of them predicts."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from scalecov_jax.probes import evaluate
from scalecov_jax.transfer.heads import Mask, checked_arrays, train_heads


def sweep(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    targets: Float[np.ndarray, " N"],
    train: Mask,
    seeds: Sequence[int],
    *,
    head: Literal["ridge", "head"],
    progress: bool = False,
    **settings: Any,
) -> dict[str, Float[np.ndarray, "R N"]]:
    """Predictions in px of every seed's head for every row, by layer; one layer's do not depend on the others.

    The head is "ridge" for `evaluate.fit` (penalties by leave-one-out; only the number of seeds matters) or "head" for
    `train_heads`; settings are those of that function. Layers of equal width share one compilation.

    Raises:
        ValueError: As `train_heads` and `evaluate.fit`, for all layers at once; another `head`.
        FloatingPointError: As `train_heads`; its note names the layer.
    """
    if head not in ("ridge", "head"):
        raise ValueError(f'head must be "ridge" or "head", got {head!r}.')
    _, y, mask = checked_arrays(features, targets, train, seeds)
    predictions = {}
    for name, values in tqdm(features.items(), desc="heads", unit="layer", disable=not progress):
        try:
            if head == "ridge":
                fit = evaluate.fit(np.asarray(values), y[:, None], mask, **settings)
                kernel, bias = fit.weights[:, :, 0], fit.intercept[:, 0]
            else:
                heads = train_heads(values, targets, train, seeds, **settings)
                # float64, because the bias cancels much of a feature whose mean is far above its sd.
                kernel, bias = np.asarray(heads.kernel, np.float64), np.asarray(heads.bias, np.float64)
        except FloatingPointError as error:
            error.add_note(f"In layer {name}.")
            raise
        predictions[name] = kernel @ values.T.astype(np.float64) + bias[:, None]
    return predictions
