import csv
import json
import re

import numpy as np
import pytest
from test_report import HOSTILE, Outline
from tiny_transfer import ERRORS, LAYERS, NETWORKS, SKIPPED, tiny_patches, tiny_results, train_parts

from scalecov_jax.concepts.nuclei import class_means, nearest_class
from scalecov_jax.images.example import Skipped
from scalecov_jax.images.patches import MAGNIFICATIONS
from scalecov_jax.report import page, transfer, transfer_figures
from scalecov_jax.report.transfer_answer import answer_sentences, verdict, warnings
from scalecov_jax.report.transfer_sections import confusion_counts, learning_section
from scalecov_jax.report.transfer_table import table_section
from scalecov_jax.tables import read_table
from scalecov_jax.transfer import results
from scalecov_jax.transfer.metrics import Outcome


def write(folder, patches, compared, title="Does pruning help?", **settings):
    folder.mkdir()
    section = page.Section("Some patches", "As the networks see them.")
    facts = {"command": "scripts/transfer.py"}
    transfer.write_results(folder, title, compared, patches, SKIPPED, facts, settings, [section])
    return Outline((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def patches():
    return tiny_patches()


@pytest.fixture(scope="module")
def compared(patches):
    return tiny_results(patches)


@pytest.fixture(scope="module")
def run(patches, compared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer") / "run"
    return folder, write(folder, patches, compared)


def test_all_files_are_written(run, compared):
    folder, _ = run
    assert {path.name for path in folder.iterdir()} == {
        *("transfer.csv", "comparisons.csv", "sweep.csv", "summary.json", "figures", "report.html")
    }
    assert read_table(folder / "transfer.csv", Outcome) == [
        row for one in compared for row in results.outcomes(one.evaluated)
    ]
    for name, fields, count in (
        ("comparisons.csv", results.Comparison._fields, sum(len(one.comparisons) for one in compared)),
        ("sweep.csv", results.SweepScore._fields, 2 * 2 * 2 * len(LAYERS) * 4),
    ):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert tuple(rows[0]) == fields
        assert len(rows) == 1 + count
    stems = {path.stem for path in (folder / "figures").iterdir()}
    kinds = [f"head-{model}-{kind}" for model in ERRORS for kind in ("predicted", "confusion")]
    kinds += ["head-magnification", "ridge-magnification", "sweep"]
    assert stems == {f"{weights}-{kind}" for _, weights in NETWORKS for kind in kinds}
    assert len(list((folder / "figures").iterdir())) == 2 * len(stems)


def test_summary_is_what_the_predictions_say(run, patches, compared):
    summary = json.loads((run[0] / "summary.json").read_text())
    train = train_parts(patches, 4)
    for one in compared:
        network = summary["networks"][one.weights]
        assert network["layers"] == {str(seed): "mixed1" for seed in range(4)}
        assert network["chosen_by"] == "target"
        assert network["costs"]["pruned"] == {"parameters": 9_000_000, "flops": 4.0e9}
        assert network["comparisons"] == [c._asdict() for c in one.comparisons]
        for model in ERRORS:
            for trainable in ("head", "ridge"):
                entry, mae, macro, by_class, kappas = network["models"][model][trainable], [], [], {}, []
                for prediction in (e.prediction for e in one.evaluated):
                    if (prediction.model, prediction.trainable) != (model, trainable):
                        continue
                    error = np.abs(prediction.area - patches.area[prediction.test])
                    of = patches.magnification[prediction.test]
                    mae.append(error.mean())
                    macro.append(np.mean([error[of == m].mean() for m in MAGNIFICATIONS]))
                    for m in MAGNIFICATIONS:
                        by_class.setdefault(f"{m:g}", []).append(error[of == m].mean())
                    part = train[prediction.seed]
                    means = class_means(patches.area[part], patches.magnification[part])
                    told = nearest_class(prediction.area, means)
                    chance = sum((of == m).mean() * (told == m).mean() for m in MAGNIFICATIONS)
                    kappas.append(((of == told).mean() - chance) / (1 - chance))
                for name, values in (("mae", mae), ("macro_mae", macro), ("kappa", kappas)):
                    assert entry[name] == pytest.approx(
                        {"mean": np.mean(values), "sd": np.std(values, ddof=1)}
                    )
                assert set(entry["mae_by_magnification"]) == set(by_class)
                for m, values in by_class.items():
                    expected = {"mean": np.mean(values), "sd": np.std(values, ddof=1)}
                    assert entry["mae_by_magnification"][m] == pytest.approx(expected)
                assert entry["seeds"] == 4
                assert -1 <= entry["kappa_quadratic"]["mean"] <= 1
    assert summary["patches"] == {
        "count": 168,
        "groups": 8,
        "by_magnification": {f"{m:g}": 24 for m in MAGNIFICATIONS},
    }
    assert summary["skipped"] == {"no whole nucleus": 2}
    assert summary["provenance"] == {"command": "scripts/transfer.py"}


def test_page_holds_every_part_in_order(run):
    outline = run[1]
    text = outline.words
    headings = (
        *("Before you trust this", "Table 2", "Where to cut", "By magnification", "Predicted against true"),
        *("Patches by magnification", "Some patches", "How to read this", "Provenance"),
    )
    body = text[text.index("Before you trust this") :]
    places = [body.index(f" {heading} ") if at else 0 for at, heading in enumerate(headings)]
    assert places == sorted(places)
    assert "Learning curves" not in text
    assert "R² says how well" not in text
    assert "Method: Graziani et al." in text
    assert all(image["alt"] for image in outline.attributes("img"))
    assert len(outline.attributes("caption")) == len(outline.attributes("table"))
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_published_rows_stand_beside_ours(run, patches, compared):
    text = run[1].words
    for row in (
        "InceptionV3, published whole mixed10 all 81.85 ± 11.08 – 0.435 ± 0.02 –",
        "InceptionV3, published pruned mixed8 all 54.93 ± 4.32 – 0.571 ± 0.05 –",
        "InceptionV3, published from scratch mixed10 all 82.30 ± 17.92 – – –",
        "ResNet50, published whole add_16 all 70.08 ± 12.49 – 0.610 ± 0.03 –",
        "ResNet50, published pruned add_15 all 54.76 ± 3.10 – 0.623 ± 0.04 –",
        "ResNet50, published from scratch add_16 all 95.66 ± 21.39 – – –",
        "means over 8 values",
        "InceptionV3, ours pruned mixed1 head",
    ):
        assert row in text
    alone = table_section({"InceptionV3": compared[0]})
    assert not any("ResNet50" in cell for row in alone.tables[0].rows for cell in row)
    assert "ResNet50" not in alone.text
    assert [alone.tables[0].rows[at][1] for at in alone.tables[0].strong] == ["pruned"] * 2


@pytest.mark.parametrize(
    ("pruned", "expected", "found"),
    [
        (
            0.3,
            r"px less \(95 % interval [\d.]+ to [\d.]+ over source images\), better in 9 of 9 seeds",
            "better",
        ),
        (
            0.7,
            r"px more \(95 % interval [\d.]+ to [\d.]+ over source images\), worse in 9 of 9 seeds",
            "worse",
        ),
        (
            0.5,
            r"no difference was shown \([\d.]+ px (less|more), 95 % interval from [\d.]+ px less to [\d.]+ px more",
            None,
        ),
    ],
)
def test_answer_follows_the_data(patches, pruned, expected, found):
    one = tiny_results(patches, 9, {**ERRORS, "pruned": pruned}, ("all",))[0]
    answer = answer_sentences(one, "InceptionV3")
    assert re.search(expected, answer), answer
    assert answer.startswith("Fine-tuned, the pruned InceptionV3 (cut after mixed1) errs by ")
    assert verdict(one, "all") == found
    assert ("no difference was shown" in answer) == (found is None)
    c = one.comparisons[0]
    spread = f"{page.number(c.pruned_mean, 1)} ± {page.number(c.pruned_sd, 1)} px against "
    assert spread + f"{page.number(c.base_mean, 1)} ± {page.number(c.base_sd, 1)} px" in answer
    assert f"p = {c.p:.2g} (Holm {c.p_holm:.2g})" in answer


def test_an_interval_around_0_or_a_large_p_shows_nothing(patches):
    one = tiny_results(patches, 9, trainables=("all",))[0]
    first, *rest = one.comparisons
    for change in ({"high": 0.1}, {"p_holm": 0.05}, {"p_holm": None}):
        changed = one._replace(comparisons=[first._replace(**change), *rest])
        assert verdict(changed, "all") is None
        assert "no difference was shown" in answer_sentences(changed, "InceptionV3")


def test_warnings_name_every_weakness(patches, compared):
    noticed = " ".join(warnings(compared, patches, fixed_split=False))
    for words in (
        "With 4 seeds the exact p cannot fall below 0.12",
        "source images were ever held out",
        "the seeds are not independent, and Wilcoxon's p is optimistic",
    ):
        assert words in noticed
    assert "different layers" not in noticed
    many = tiny_patches(60)
    layers = {seed: "mixed1" if seed else "mixed0" for seed in range(9)}
    nine = tiny_results(many, 9, layers=layers)
    noticed = " ".join(warnings(nine, many, fixed_split=False))
    assert (
        "InceptionV3 was cut at different layers in different seeds: mixed1 in 8 of 9 seeds, mixed0 in 1."
        in noticed
    )
    assert "cannot fall below" not in noticed
    assert "ever held out" not in noticed
    seven = " ".join(warnings(tiny_results(many, 7), many, fixed_split=False))
    assert "With 7 seeds and 4 tests Holm's p cannot fall below 0.062" in seven


def test_one_split_is_no_test_of_new_images(patches):
    fixed = tiny_results(patches, 9, fixed=True)
    noticed = " ".join(warnings(fixed, patches, fixed_split=True))
    assert "All seeds share one split" in noticed
    assert "optimistic" not in noticed
    assert "every seed gives the same predictions" not in noticed
    same = tiny_results(patches, 9, fixed=True, repeat=True)[:1]
    assert not same[0].comparisons
    noticed = " ".join(warnings(same, patches, fixed_split=True))
    assert "InceptionV3, ridge: every seed gives the same predictions" in noticed
    assert verdict(same[0], "ridge") is None
    answer = answer_sentences(same[0], "InceptionV3")
    assert answer.count("; all seeds say the same, which is no test.") == 2
    assert "one seed" not in answer
    tables = table_section({"InceptionV3": same[0]}).tables
    assert not any("p ≥" in table.columns for table in tables)


def test_no_interval_from_one_source_image(patches):
    one = tiny_results(patches, 9, trainables=("all",))[0]
    first, *rest = (c._replace(low=None, high=None) for c in one.comparisons)
    better = one._replace(comparisons=[first, *rest])
    assert re.search(
        r"network: [\d.]+ px less, better in 9 of 9 seeds", answer_sentences(better, "InceptionV3")
    )
    unclear = one._replace(comparisons=[first._replace(p_holm=0.5), *rest])
    assert re.search(r"was shown \([\d.]+ px less\), better in 9", answer_sentences(unclear, "InceptionV3"))


def test_nothing_to_cut_and_a_single_seed_are_said(patches, tmp_path):
    last = tiny_results(patches, 4, layers=dict.fromkeys(range(4), "avg_pool"))
    assert "pruned and whole are the same network" in answer_sentences(last[0], "InceptionV3")
    one = tiny_results(patches, 1, trainables=("head",))[1:]
    outline = write(tmp_path / "one", patches, one)
    assert "one seed allows no test" in outline.words
    assert "One seed: there is neither a spread" in outline.words
    sd = json.loads((tmp_path / "one" / "summary.json").read_text())["networks"]["tiny-resnet"]["models"]
    assert sd["whole"]["head"]["mae"]["sd"] is None
    header = ",".join(results.Comparison._fields) + "\n"
    assert (tmp_path / "one" / "comparisons.csv").read_text() == header


def test_fine_tuning_shows_curves_and_no_sweep(patches, tmp_path):
    tuned = tiny_results(patches, 2, trainables=("all",))[:1]
    outline = write(tmp_path / "all", patches, tuned, batch_norm="recomputed")
    assert "Learning curves" in outline.words
    assert "measured with the running statistics of the batch normalisation" in outline.words
    assert "may be lower than the end of the curve" in outline.words
    assert "Where to cut" not in outline.words
    assert not (tmp_path / "all" / "sweep.csv").exists()
    alts = [image["alt"] for image in outline.attributes("img")]
    assert any("Training RMSE and held-out MAE of InceptionV3 after epoch 3" in alt for alt in alts)
    assert any("81.6 ± 0.0 px and 30.5 ± 0.7 px" in alt for alt in alts)  # sqrt(2e4 / 3), 90 / 3 + 0.5
    plain = learning_section({"InceptionV3": tuned[0]}, tmp_path, recomputed=False)
    assert plain
    assert "batch normalisation" not in plain.text


def test_everything_is_escaped(tmp_path):
    patches = tiny_patches(3, [HOSTILE, "b", "c"])
    compared = tiny_results(patches, 2, trainables=("head",))[:1]
    named = [Skipped(HOSTILE, HOSTILE, HOSTILE)]
    transfer.write_results(tmp_path, HOSTILE, compared, patches, named, {HOSTILE: HOSTILE}, {})
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert Outline(html).words.count(HOSTILE) >= 6


def test_the_same_results_give_the_same_bytes(run, patches, compared, tmp_path):
    folder, _ = run
    write(tmp_path / "again", patches, compared)
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path


def test_terminal_table_holds_rows_and_tests(compared):
    lines = transfer.table(compared).splitlines()
    assert len(lines) == 1 + 2 * 6 + 2 * 6
    c = compared[0].comparisons[0]
    row = next(line for line in lines if line.startswith("InceptionV3  pruned") and " head " in line)
    assert f"{page.number(c.pruned_mean, 1)} ± {page.number(c.pruned_sd, 1)}" in row
    test = next(line for line in lines if line.startswith("InceptionV3, head, MAE, px: pruned − whole: −"))
    assert f"better in 4 of 4 seeds, p 0.12, Holm {c.p_holm:.2g}" in test


def test_weights_of_one_architecture_are_told_apart(compared):
    both = [compared[0], compared[0]._replace(weights="other")]
    text = transfer.table(both)
    assert "InceptionV3 (tiny-inception)" in text
    assert "InceptionV3 (other)" in text


def test_confusion_counts_every_patch_once(patches, compared):
    seeds = [one for one in compared[0].evaluated if one.prediction.model == "pruned"]
    counts, classes = confusion_counts(seeds, patches)
    assert classes == list(MAGNIFICATIONS)
    assert counts.sum() == sum(len(one.prediction.test) for one in seeds)
    perfect = [
        one._replace(prediction=one.prediction._replace(area=patches.area[one.prediction.test]))
        for one in seeds
    ]
    diagonal, _ = confusion_counts(perfect, patches)
    assert np.trace(diagonal) > 0.85 * diagonal.sum()  # areas of neighbouring magnifications overlap a little


def test_sweep_figure_marks_the_cut_and_the_least_error():
    errors = {("trained", "ridge"): np.array([[30.0, 32.0], [10.0, 12.0], [20.0, 22.0]])}
    axes = transfer_figures.cut_curves(("a", "b", "c"), errors, {"a": 2}, "b").axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert "b: 11 px" in texts
    assert "2" in texts
    line = next(line for line in axes.get_lines() if line.get_label() == "trained, ridge")
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [31, 11, 21])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c (whole)"]
