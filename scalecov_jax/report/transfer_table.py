"""Table 2 of the paper beside ours: errors of the three models, tests of pruned against the others, and their sizes."""

from collections.abc import Mapping

import numpy as np

from scalecov_jax.models.architecture import plain_name
from scalecov_jax.paper.published import TABLE_2
from scalecov_jax.report import page
from scalecov_jax.report.transfer_answer import shown
from scalecov_jax.report.transfer_figures import MODEL_NAMES
from scalecov_jax.report.transfer_result import (
    NetworkResult,
    by_model,
    mean_and_sd,
    p_value,
    spread,
    trainables,
    values,
)
from scalecov_jax.transfer.results import Comparison

METRIC_NAMES = {"mae": "MAE, px", "kappa": "κ", "kappa_quadratic": "quadratic κ"}


def table_section(networks: Mapping[str, NetworkResult]) -> page.Section:
    """The published rows of these architectures and ours, the tests and the sizes, by the name of the network."""
    tables = [_scores(networks), _tests(networks), _sizes(networks)]
    return page.Section("Table 2", _text(networks), (), [table for table in tables if table.rows])


def score_rows(result: NetworkResult, name: str, trainable: str) -> list[tuple[str, ...]]:
    """Rows of Table 2 for one way of training: name, model, layer, training, MAE and macro MAE in px, kappa, quadratic kappa."""
    rows = []
    for model, seeds in by_model(result, trainable).items():
        layers = list(dict.fromkeys(one.prediction.layer for one in seeds))
        layer = layers[0] if len(layers) == 1 else f"{len(layers)} layers"
        maes = (mean_and_sd(values(seeds, metric), 1) for metric in ("mae", "macro_mae"))
        kappas = (mean_and_sd(values(seeds, metric), 3) for metric in ("kappa", "kappa_quadratic"))
        rows.append((name, MODEL_NAMES[model], layer, trainable, *maes, *kappas))
    return rows


def difference(value: float, metric: str) -> str:
    """A difference of two models with its sign."""
    return mean_and_sd([value], 1 if metric == "mae" else 3, signed=True)


def interval(c: Comparison) -> str:
    """The interval of a difference; a dash where there is none."""
    if c.low is None or c.high is None:
        return "–"
    return f"{difference(c.low, c.metric)} to {difference(c.high, c.metric)}"


def _text(networks: Mapping[str, NetworkResult]) -> str:
    present = {one.architecture for one in networks.values()}
    published = [architecture for architecture in TABLE_2 if architecture in present]
    text = (
        "The published table beside ours. The data sets differ, and with them the size of nuclei: the pixels of the "
        "published rows and of ours cannot be compared, the order of the models can."
    )
    if published:
        which = " and ".join(plain_name(architecture) for architecture in published)
        text += (
            f" Of the published rows those of {which} are shown (Graziani et al. 2021, Table 2; κ from its workshop "
            "version).\n\nWhat to know about the published numbers: p < 0.001, as stated there, cannot come from ten pairs "
            "of seeds, whose exact two-sided test reaches 0.002 at best. The κ of the networks trained from scratch were not "
            "available."
        )
    else:
        text += " The published table has no row of these architectures."
    if "resnet50" in published:
        text += (
            " The κ of ResNet50 are means over 8 values pasted by hand from two runs (7 distinct ones of the whole network), "
            "which loses the pairing by seed; in the published log one seed of five is better without pruning."
        )
    if any(one.sweep for one in networks.values()):
        text += (
            "\n\nHere features are frozen and heads trained on them; the published networks were fine-tuned. From "
            "scratch is one draw of random weights for all seeds, so its ± tells of splits alone."
        )
    return text


def _scores(networks: Mapping[str, NetworkResult]) -> page.Table:
    rows, strong, published = [], [], dict(TABLE_2)
    for name, one in networks.items():
        for model, cut in published.pop(one.architecture, {}).items():
            network = f"{plain_name(one.architecture)}, published"
            mae = f"{cut.mae[0]:.2f} ± {cut.mae[1]:.2f}"
            kappa = f"{cut.kappa[0]:.3f} ± {cut.kappa[1]:.2f}" if cut.kappa else "–"
            rows.append((network, MODEL_NAMES[model], cut.layer, "all", mae, "–", kappa, "–"))
        for trainable in trainables(one):
            errors = [spread(values(seeds, "mae")).mean for seeds in by_model(one, trainable).values()]
            strong.append(len(rows) + int(np.argmin(np.array(errors, float))))
            rows += score_rows(one, f"{name}, ours", trainable)
    seeds = max(len(one.layers) for one in networks.values())
    return page.Table(
        f"Mean ± sd over {seeds} {'seed' if seeds == 1 else 'seeds'} (published: 10). The least MAE of each network and "
        "training is marked.",
        ("network", "model", "ends at", "trained", "MAE, px", "macro MAE", "κ", "quadratic κ"),
        rows,
        strong,
    )


def _tests(networks: Mapping[str, NetworkResult]) -> page.Table:
    compared = [(name, c) for name, one in networks.items() for c in one.comparisons]
    return page.Table(
        "Pruned minus the other network, paired by seed. Less is better for MAE, more for κ. p ≥: the smallest p that so many "
        "seeds can reach. Marked: a difference was shown.",
        (
            *("network", "trained", "metric", "against", "difference", "95 % interval"),
            *("better in", "p", "Holm p", "p ≥"),
        ),
        [
            (
                *(name, c.trainable, METRIC_NAMES[c.metric], MODEL_NAMES[c.base]),
                *(difference(c.difference, c.metric), interval(c), f"{c.wins} of {c.seeds}"),
                *(p_value(c.p), p_value(c.p_holm), p_value(c.smallest_p)),
            )
            for name, c in compared
        ],
        [at for at, (_, c) in enumerate(compared) if shown(c)],
    )


def _sizes(networks: Mapping[str, NetworkResult]) -> page.Table:
    several = any(len(set(one.layers.values())) > 1 for one in networks.values())
    rows = []
    for name, one in networks.items():
        all_parameters, all_flops = one.costs["whole"]
        for model, (parameters, flops) in one.costs.items():
            shares = (f"{100 * parameters / all_parameters:.0f} %", f"{100 * flops / all_flops:.0f} %")
            rows.append(
                (name, MODEL_NAMES[model], f"{parameters:,}", shares[0], f"{flops / 1e9:.3g}", shares[1])
            )
    return page.Table(
        "Size of the networks: trunk without head, one forward pass of one patch."
        + (" Pruned: at the layer chosen most often." if several else ""),
        ("network", "model", "parameters", "of the whole", "GFLOPs", "of the whole"),
        rows,
    )
