"""Training and test of the grader of diabetic retinopathy, from settings to a checkpoint, its card and a report."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from scalecov_jax import checkpoints, grading
from scalecov_jax.images.eyes import GRADES, PARTS, Eyes, Part, open_eyes
from scalecov_jax.images.prepared_eyes import PreparedEyes, prepare_eyes
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.pipelines.settings import training_problems
from scalecov_jax.report import grader as report
from scalecov_jax.report.grader import Found, Graded
from scalecov_jax.report.grader_card import write_grader_card
from scalecov_jax.report.provenance import provenance
from scalecov_jax.training import make_optimizer
from scalecov_jax.transfer.grades import evaluate
from scalecov_jax.transfer.two_eyes import EyeFeatures, two_eyes
from scalecov_jax.workdir import open_workdir


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> str:
    """Prepare eyes, train the grader, test it on eyes of other patients, and write its checkpoint, card and report.

    Args:
        settings: See configs/retina.py.
        workdir: Folder of the training.
        command: As typed, for the model card.
        resume: Go on from the last eye prepared and the last checkpoint there.
        overwrite: Delete the folder first.
        dry_run: Check the settings and the list of eyes, and say what would be done.

    Returns:
        The test's results, for people.

    Raises:
        ValueError: Settings or images that cannot be used, see `eyes.open_eyes`; a folder that cannot be used.
        FloatingPointError: The loss is not finite.
    """
    started = time.monotonic()
    module = _module(settings)
    parts = {part: _open(part, settings) for part in PARTS}
    size = settings["size"]
    counts = ", ".join(f"{len(eyes)} for {part}" for part, eyes in parts.items())
    if dry_run:
        needed = sum(map(len, parts.values())) * 3 * size**2
        return (
            f"Would trim {counts} to {size} x {size} pixels ({needed / 1e9:.1f} GB in the folder), and train the grader for "
            f"{settings['steps']} steps of {settings['batch_size']}. Nothing was done."
        )
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    prepared = {part: prepare_eyes(eyes, folder / f"{part}.npy", size, part) for part, eyes in parts.items()}
    grades = {part: np.array(eyes.grades)[prepared[part].kept] for part, eyes in parts.items()}
    lacking = [
        f"{grade} for {part}"
        for part, own in grades.items()
        for grade in sorted({*range(GRADES)} - {*own.tolist()})
    ]
    if lacking:
        raise ValueError(
            f"{settings['images']}: all grades are needed; no usable eye of {', '.join(lacking)}."
        )
    steps = settings["steps"]
    optimizer = make_optimizer(settings["learning_rate"], steps, settings["warmup"], settings["weight_decay"])
    same = {name: settings[name] for name in ("seed", "batch_size", "log_every", "save_every")}
    state = grading.train(
        module, optimizer, prepared["train"].images, grades["train"], folder, steps=steps, **same
    )
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    outputs = {part: grading.grade_eyes(module, variables, prepared[part].images, part) for part in PARTS[1:]}
    graded = {part: _graded(parts[part], prepared[part], outputs[part]) for part in outputs}
    features = [
        EyeFeatures(outputs[part].features, one.grades, one.patients, one.sides)
        for part, one in graded.items()
    ]
    both, not_both = None, ""
    try:
        both = two_eyes(*features, seed=settings["seed"])
    except ValueError as error:
        not_both = str(error)
    found = Found(len(prepared["train"].kept), graded["validation"], graded["test"], both, not_both)
    card = checkpoints.Card(
        settings["architecture"],
        {"width": settings["width"], "classes": GRADES},
        grading.PREPROCESSING,
        settings["size"],
        f"trained on {settings['images']} by scripts/train_grader.py",
        class_names=tuple(map(str, range(GRADES))),
        notes={"test_qwk": found.test.evaluation.qwk, "images_seen": steps * settings["batch_size"]},
    )
    network = checkpoints.network(variables, card)
    checkpoints.save(folder / "network", network, overwrite=True)
    # How many sittings it took changes no bit of the result.
    typed = [part for part in command if part.lstrip("-") not in ("resume", "overwrite")]
    facts = provenance(typed, settings, {settings["architecture"]: network}, started)
    training = {
        "optimiser": f"Adam, weight decay {settings['weight_decay']}, on log(1 - kappa)",
        "learning rate": f"to {settings['learning_rate']} in {settings['warmup']} steps, then cosine decay to 0",
        "batches": "grades alike, with replacement; turned, mirrored, brightness and contrast changed",
    }
    write_grader_card(
        folder / settings["architecture"],
        network,
        found.validation.evaluation,
        found.test.evaluation,
        folder / "curve.csv",
        facts,
        settings,
        training,
        both,
    )
    skipped = [skip for part in PARTS for skip in (*parts[part].skipped, *prepared[part].skipped)]
    told = report.write(folder, settings, found, list(dict.fromkeys(skipped)), facts)
    return f"{told}\n\nNetwork: {folder / 'network'}\nReport: {folder / 'report.html'}"


def _graded(eyes: Eyes, prepared: PreparedEyes, outputs: grading.Outputs) -> Graded:
    """The eyes that could be used, and what the network says of them."""
    names, patients, sides = (
        tuple(facts[index] for index in prepared.kept) for facts in (eyes.names, eyes.patients, eyes.sides)
    )
    grades = np.array(eyes.grades)[prepared.kept]
    evaluation = evaluate(grades, outputs.probabilities, patients)
    return Graded(names, patients, sides, grades, outputs.probabilities, evaluation)


def _module(settings: Mapping[str, Any]) -> Any:
    """The network, stopped at its logits.

    Raises:
        ValueError: Settings out of range, an unknown architecture or one without the fields that are set, images too small;
            all at once.
    """
    problems = training_problems(settings)
    architecture = get_architecture(settings["architecture"])
    fields = architecture.module.__dataclass_fields__
    if missing := [field for field in ("width", "classes") if field not in fields]:
        problems.append(
            f"{architecture.name} cannot be trained as a grader: its module has no {' and '.join(missing)}"
        )
    if not problems:
        trunk = architecture.module(width=settings["width"], classes=GRADES, last=architecture.trunk)
        images = jax.ShapeDtypeStruct((1, settings["size"], settings["size"], 3), np.float32)
        maps, _ = jax.eval_shape(trunk.init_with_output, jax.random.key(0), images)
        if not maps.size:
            problems.append(
                f"config.size is {settings['size']}, of which {architecture.trunk} sees nothing; take more pixels"
            )
    if problems:
        raise ValueError(f"{'; '.join(problems)}.")
    return architecture.module(width=settings["width"], classes=GRADES, last="pre_softmax")


def _open(part: Part, settings: Mapping[str, Any]) -> Eyes:
    held_out = settings["validation_share"], settings["test_share"]
    return open_eyes(
        settings["images"],
        part=part,
        size=settings["size"],
        count=settings[part],
        seed=settings["seed"],
        shares=(1 - sum(held_out), *held_out),
    )
