"""What the comparison says in words: the answer at the top of the page and what to know before trusting it."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from scalecov_jax.images.patches import Patches
from scalecov_jax.report import page
from scalecov_jax.report.transfer_result import (
    TRAINED,
    NetworkResult,
    by_model,
    cuts,
    mean_and_sd,
    named,
    p_value,
    trainables,
    values,
)
from scalecov_jax.transfer.results import Comparison

FEW_IMAGES = 20  # below, the bootstrap over source images is too narrow, see bootstrap.clustered_bootstrap
LEVEL = 0.05


def answer_sentences(result: NetworkResult, name: str) -> str:
    """What cutting did to the MAE of one network, in a sentence for each way of training."""
    return " ".join(_answer(result, name, trainable) for trainable in trainables(result))


def _answer(result: NetworkResult, name: str, trainable: str) -> str:
    models = by_model(result, trainable)
    whole, pruned = (mean_and_sd(values(models[model], "mae"), 1) for model in ("whole", "pruned"))
    if models["pruned"][0].prediction.layer == models["whole"][0].prediction.layer:
        return (
            f"{TRAINED[trainable]}, {name} errs by {whole} px; the layer to cut after is its last one, so there was nothing "
            "to cut and pruned and whole are the same network."
        )
    if trainable == trainables(result)[0]:
        start = (
            f"{TRAINED[trainable]}, the pruned {name} (cut after {cuts(result)}) errs by {pruned} px against {whole} px for "
            "the whole network"
        )
    else:
        start = f"{TRAINED[trainable]} it errs by {pruned} px against {whole} px"
    compared = _against_whole(result, trainable)
    if compared is None:
        said = (
            "all seeds say the same, which is no test"
            if len(result.layers) > 1
            else "one seed allows no test"
        )
        return f"{start}; {said}."
    found, amount = verdict(result, trainable), _change(compared.difference)
    interval = _interval(compared, found)
    if found is None:
        start += f": no difference was shown ({amount}{interval and ', '}{interval})"
    else:
        start += f": {amount}{interval and f' ({interval})'}"
    wins = f"worse in {compared.seeds - compared.wins}" if found == "worse" else f"better in {compared.wins}"
    return (
        f"{start}, {wins} of {compared.seeds} seeds, exact Wilcoxon p = {p_value(compared.p)} "
        f"(Holm {p_value(compared.p_holm)})."
    )


def verdict(result: NetworkResult, trainable: str) -> Literal["better", "worse"] | None:
    """Whether the pruned network is better or worse than the whole one in MAE; None if no difference was shown."""
    compared = _against_whole(result, trainable)
    if compared is None or not shown(compared):
        return None
    return "better" if compared.difference < 0 else "worse"


def shown(c: Comparison) -> bool:
    """Whether Holm's p is below 0.05 and the interval over source images, where there is one, leaves out 0."""
    if c.p_holm is None or c.p_holm >= LEVEL:
        return False
    if c.low is None or c.high is None:
        return True
    return c.high < 0 if c.difference < 0 else c.low > 0


def warnings(results: Sequence[NetworkResult], patches: Patches, *, fixed_split: bool) -> list[str]:
    """What a reader must know before trusting the numbers."""
    tests = {one.prediction.seed: one.prediction.test for result in results for one in result.evaluated}
    held_out = [set(patches.group[test].tolist()) for test in tests.values()]
    messages = _few_seeds(results, len(tests))
    images = len(set().union(*held_out))
    if images < FEW_IMAGES:
        messages.append(
            f"Only {images} source {'image was' if images == 1 else 'images were'} ever held out: with fewer than "
            f"{FEW_IMAGES} the bootstrap interval is too narrow."
        )
    for name, one in named(results).items():
        if len(set(one.layers.values())) > 1:
            messages.append(
                f"{name} was cut at different layers in different seeds: {cuts(one)}. Its pruned rows average over them."
            )
        for trainable in trainables(one) if len(tests) > 1 else ():
            if _against_whole(one, trainable) is None:
                messages.append(
                    f"{name}, {trainable}: every seed gives the same predictions for the same patches. That is one result, "
                    "which is neither a spread nor a test."
                )
    pairs = [len(a & b) / min(len(a), len(b)) for a, b in itertools.combinations(held_out, 2)]
    if fixed_split or (pairs and all(a == held_out[0] for a in held_out)):
        messages.append(
            "All seeds share one split: the spread over seeds and p speak of this one split only, not of other source "
            "images. The interval does."
        )
    elif any(pairs):
        messages.append(
            f"The held-out source images of two seeds overlap (by {100 * float(np.mean(pairs)):.0f} % on average), and so do "
            "the training parts: the seeds are not independent, and Wilcoxon's p is optimistic."
        )
    return messages


def _few_seeds(results: Sequence[NetworkResult], seeds: int) -> list[str]:
    if seeds == 1:
        return ["One seed: there is neither a spread over seeds nor a test."]
    smallest = 2.0 ** (1 - seeds)
    if smallest >= LEVEL:
        return [
            f"With {seeds} seeds the exact p cannot fall below {p_value(smallest)}: no difference can be shown at {LEVEL}, "
            "whatever the data. At least 6 seeds are needed."
        ]
    families = Counter(
        (c.trainable, c.base) for one in results for c in one.comparisons if c.metric in ("mae", "kappa")
    )
    family = max(families.values(), default=1)
    if family * smallest >= LEVEL:
        return [
            f"With {seeds} seeds and {family} tests Holm's p cannot fall below {p_value(min(1.0, family * smallest))} unless "
            f"the tests differ: no difference can be shown at {LEVEL} for all of them."
        ]
    return []


def _against_whole(result: NetworkResult, trainable: str) -> Comparison | None:
    """None where seeds tell nothing apart: a single one, or repetitions of one result."""
    wanted = (trainable, "whole", "mae")
    return next((c for c in result.comparisons if (c.trainable, c.base, c.metric) == wanted), None)


def _interval(c: Comparison, found: str | None) -> str:
    if c.low is None or c.high is None:
        return ""
    if found is None:
        ends = f"from {_change(c.low)} to {_change(c.high)}"
    else:
        ends = " to ".join(page.number(end, 1) for end in sorted((abs(c.low), abs(c.high))))
    return f"95 % interval {ends} over source images"


def _change(difference: float) -> str:
    return f"{page.number(abs(difference), 1)} px {'less' if difference < 0 else 'more'}"
