"""Damaged files: a reader gives what was written, or says in one ValueError or OSError what is wrong with which file.

Every kind of file is made small and damaged with a seed: flipped bits, cut ends, insertions, swapped and erased blocks, odd
tokens.
Whatever carries a digest must come back as it was written, or not at all.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file
from test_patches import annotated, source_of
from test_voc import GRADIENT, annotation_xml, object_xml
from tiny_network import random_network

from scalecov_jax import atomic, checkpoints, run, states, workdir
from scalecov_jax.cache import MeasureCache
from scalecov_jax.experiments import noise
from scalecov_jax.extraction import cached_features
from scalecov_jax.feature_files import Features, read_features
from scalecov_jax.imaging.csv_file import read_csv
from scalecov_jax.imaging.decoding import decode_image, decode_mask, image_size, mask_size
from scalecov_jax.imaging.image_set import ImageSet, Pixels
from scalecov_jax.imaging.patches import open_patches, prepare_patches
from scalecov_jax.imaging.prepared import Records, open_tfds
from scalecov_jax.imaging.prepared_eyes import prepare_eyes
from scalecov_jax.imaging.voc import read_boxes
from scalecov_jax.models.port import _config
from scalecov_jax.models.weight_files import read_weights
from scalecov_jax.vectors import Rcv, load_rcvs, save_rcvs

SECONDS = 10.0  # of one input at most; all take milliseconds
TOKENS = (
    b"\0",
    b'"',
    b"\xff\xfe",
    b"nan",
    b"-1",
    b"1e999",
    b",",
    b"\r",
    b"<",
    b"&x;",
    b"[",
    b"{}",
    b"null",
    b"9" * 30,
)


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        write: Makes it in a new folder; returns its path.
        read: What the package makes of it.
        inputs: Number of damaged files.
        sealed: Whether it carries a digest, so that nothing but what was written may come back.
        instead: What may come back of a damaged one besides.
        named: What errors must name; the file when empty.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    inputs: int = 60
    sealed: bool = True
    instead: Any = None
    named: str = ""


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One of seven kinds of damage."""
    data, size = bytearray(content), len(content)
    a, b = sorted(rng.integers(0, size + 1, 2).tolist())
    match rng.integers(7):
        case 0:
            for place in rng.integers(0, size, rng.integers(1, 9)):
                data[place] ^= 1 << int(rng.integers(8))
        case 1:
            del data[int(rng.integers(size)) :]
        case 2:
            data[a:a] = rng.bytes(int(rng.integers(1, 40)))
        case 3:
            length = max(1, (b - a) // 2)
            data[a : a + length], data[a + length : a + 2 * length] = (
                data[a + length : a + 2 * length],
                data[a : a + length],
            )
        case 4:
            data[a:b] = bytes(b - a)
        case 5:
            del data[a:b]
        case 6:
            for _ in range(int(rng.integers(1, 4))):
                place = int(rng.integers(len(data) + 1))
                data[place:place] = TOKENS[int(rng.integers(len(TOKENS)))]
    return bytes(data) if bytes(data) != content else content[:-1]


def frozen(value: Any) -> Any:
    """A value in a form that can be compared."""
    if isinstance(value, pd.DataFrame):
        return value.to_csv(), tuple(map(str, value.dtypes))
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return tuple((name, frozen(value[name])) for name in sorted(value, key=str))
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


# What is written


RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 4)).astype(np.float32)
VECTORS = dict.fromkeys(("weights", "pattern", "scale", "mean"), RNG.normal(size=5))


def image(suffix: str, mode: str = "RGB", **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        Image.fromarray(GRADIENT).convert(mode).save(folder / f"picture.{suffix}", **options)
        return folder / f"picture.{suffix}"

    return write


def mask(suffix: str) -> Callable[[Path], Path]:
    values = np.arange(48, dtype=np.uint16).reshape(6, 8) // 12

    def write(folder: Path) -> Path:
        path = folder / f"mask.{suffix}"
        np.save(path, values) if suffix == "npy" else Image.fromarray(values.astype(np.uint8)).save(path)
        return path

    return write


def text(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


def annotation(folder: Path) -> Path:
    for index in range(12):
        name = f"{index:02d}"
        for kind in ("Annotations", "JPEGImages"):
            (folder / kind).mkdir(exist_ok=True)
        xml = annotation_xml(f"{name}.png", object_xml(box=(1, 1, 11 + index, 30)))
        (folder / "Annotations" / f"{name}.xml").write_text(xml)
        Image.fromarray(GRADIENT).save(folder / "JPEGImages" / f"{name}.png")
    return folder / "Annotations" / "05.xml"


def rcvs(folder: Path) -> Path:
    names = {
        "measure": "size",
        "image_class": "",
        "weights_name": "w",
        "layer": "stem",
        "network": "n",
        "pooling": "gap",
    }
    numbers: Any = dict.fromkeys(("alpha", "r2", "sigma", "intercept"), 0.5)
    save_rcvs(folder / "rcvs.npz", [Rcv(**names, **numbers, **VECTORS)])
    return folder / "rcvs.npz"


def features_of(path: Path) -> Features:
    values = {"a": FEATURES, "b": 2 * FEATURES}
    return cached_features(path, lambda: Features(values, np.arange(6), (), {"a": "x", "b": "y"}, "gap"))


def features(folder: Path) -> Path:
    features_of(folder / "features.npz")
    return folder / "features.npz"


def brought(suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / f"brought.{suffix}"
        if suffix == "npy":
            np.save(path, FEATURES)
        elif suffix == "npz":
            np.savez_compressed(path, layer=FEATURES)
        elif suffix == "parquet":
            pd.DataFrame(FEATURES).rename(columns=str).to_parquet(path)
        else:
            with h5py.File(path, "w") as file:
                file["X" if suffix == "h5ad" else "layer"] = FEATURES
                if suffix == "h5ad":
                    file["obs/_index"] = [f"cell {row}" for row in range(len(FEATURES))]
        return path

    return write


def measures(folder: Path) -> Path:
    cache = MeasureCache(folder / "measures.csv")
    cache.add("a.png", "0123", "scale", 1 / 3)
    cache.write()
    return folder / "measures.csv"


def state(folder: Path) -> Path:
    for number in (1, 2):
        states.write_state(folder / "states", number, {"x": number * FEATURES}, {"curve": [[number, 0.5]]})
    return folder / "states" / "2.npz"


def summary(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        table = pd.DataFrame({"name": ["a", "", "c"], "value": [1.5, np.nan, 3.0]})
        table.to_csv(folder / "scores.csv", index=False)
        kinds = {column: str(kind) for column, kind in table.dtypes.items()}
        digests = {"scores": atomic.digest((folder / "scores.csv").read_bytes())}
        facts = {"experiment": "noise", "settings": dataclasses.asdict(noise.Settings())}
        atomic.write_json(folder / "summary.json", {**facts, "tables": {"scores": kinds}, "digests": digests})
        return folder / name

    return write


def run_settings(folder: Path) -> Path:
    atomic.write_json(folder / "scalecov_run.json", {"seed": 1, "layers": ["a", "b"], "width": 0.25})
    return folder / "scalecov_run.json"


def eyes_of(path: Path) -> Any:
    names = [f"eye_{index}" for index in range(9)]
    table = pd.DataFrame({"name": names, "group": names})
    return prepare_eyes(
        ImageSet(table, lambda index: Pixels(np.full((6, 6, 3), index, np.uint8))),
        path.with_suffix(".npy"),
        6,
    )


def eyes(suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        eyes_of(folder / "train.npy")
        return folder / f"train.{suffix}"

    return write


def network(folder: Path) -> Path:
    checkpoints.save(folder / "net", random_network())
    return folder / "net" / "model.safetensors"


def weights(suffix: str) -> Callable[[Path], Path]:
    tensors = {"conv/kernel": FEATURES, "conv/bias": FEATURES[0]}

    def write(folder: Path) -> Path:
        path = folder / f"weights.{suffix}"
        if suffix == "safetensors":
            save_file({name.replace("/", "."): values for name, values in tensors.items()}, path)
        elif suffix == "pt":
            torch = pytest.importorskip("torch")
            torch.save({name: torch.tensor(values) for name, values in tensors.items()}, path)
        else:
            with h5py.File(path, "w") as file:
                for name, values in tensors.items():
                    file[f"conv/{name}"] = values
        return path

    return write


def patches(pattern: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        prepare_patches(source_of(annotated()), folder / "patches", size=64, magnifications=(20.0,))
        (path,) = (folder / "patches").rglob(pattern)
        return path

    return write


def all_patches(path: Path) -> Any:
    opened = open_patches(next(one for one in path.parents if one.name == "patches"))
    return opened.table, [opened[index].image for index in range(len(opened))]


def dataset(path: Path) -> Any:
    folder = next(one for one in path.parents if one.name.startswith("part_"))
    records, _ = open_tfds(folder, "patches", "nuclei_patches")
    images = Records(records, [f"{folder} {index}" for index in range(len(records))])
    return [images(index).image for index in range(len(records))]


KINDS = {
    "table": Kind(
        text("table.csv", 'image,age,patient\na.png,31.5,"x, y"\nb.png,40,z\n'), read_csv, 150, sealed=False
    ),
    "configuration": Kind(
        text("config.json", '{"architecture": "resnet50", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}'),
        _config,
        sealed=False,
    ),
    "annotation": Kind(annotation, lambda path: len(read_boxes(path.parents[1], "car")), sealed=False),
    **{
        f"image {suffix}": Kind(
            image(suffix, mode), lambda path: (image_size(path), decode_image(path)), 60, sealed=False
        )
        for suffix, mode in {
            "png": "RGBA",
            "jpg": "RGB",
            "tif": "RGB",
            "bmp": "RGB",
            "gif": "P",
            "webp": "RGB",
        }.items()
    },
    **{
        f"mask {suffix}": Kind(
            mask(suffix), lambda path: (mask_size(path), decode_mask(path)), 60, sealed=False
        )
        for suffix in ("png", "tif", "npy")
    },
    **{
        f"features {suffix}": Kind(
            brought(suffix), lambda path: read_features(path).values, number, sealed=False
        )
        for suffix, number in {"npz": 100, "npy": 60, "h5": 100, "h5ad": 100, "parquet": 60}.items()
    },
    **{
        f"weights {suffix}": Kind(weights(suffix), lambda path: read_weights(path).tensors, 40, sealed=False)
        for suffix in ("safetensors", "pt", "h5")
    },
    "dataset": Kind(patches("*.array_record*"), dataset, 30, sealed=False, named="part_0000"),
    "dataset description": Kind(patches("dataset_info.json"), dataset, 30, sealed=False, named="part_0000"),
    "features of patches": Kind(patches("features.json"), all_patches, 20, sealed=False, named="patches"),
    "records of patches": Kind(patches("*.array_record*"), all_patches, 30, named="patches"),
    "table of patches": Kind(patches("patches.csv"), all_patches, 30, named="patches"),
    "rcvs": Kind(rcvs, load_rcvs, 100),
    "features": Kind(features, features_of, 100),
    "measures": Kind(measures, lambda path: MeasureCache(path)._values, instead={}),
    "state": Kind(
        state,
        lambda path: states.newest_state(path.parent, lambda _: {"x": FEATURES}),
        80,
        instead=(1, {"x": FEATURES}, {"curve": [[1, 0.5]]}),
    ),
    "summary": Kind(summary("summary.json"), lambda path: run.read(path.parent), 100),
    "table of a run": Kind(summary("scores.csv"), lambda path: run.read(path.parent), 60),
    "settings of a run": Kind(run_settings, workdir._read_settings),
    "prepared eyes": Kind(eyes("npy"), eyes_of),
    "note of prepared eyes": Kind(eyes("json"), eyes_of),
    "checkpoint": Kind(network, lambda path: checkpoints.load(path)[1:], 80),
}


@pytest.mark.large
@pytest.mark.filterwarnings("ignore::UserWarning")  # of parsers that meet nonsense
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_refused_or_as_they_were(name, tmp_path):
    kind = KINDS[name]
    path = kind.write(tmp_path)
    whole, rng, named = path.read_bytes(), np.random.default_rng([*name.encode()]), kind.named or path.name
    allowed = frozen(kind.read(path)), frozen(kind.instead)
    wrong = []
    for number in range(kind.inputs):
        content, before = mutated(whole, rng), time.monotonic()
        path.write_bytes(content)
        try:
            if frozen(kind.read(path)) not in allowed and kind.sealed:
                wrong.append((number, "changed"))
        except (ValueError, OSError) as error:
            if named not in str(error):
                wrong.append((number, f"without its file: {error!r}"))
        except Exception as error:
            wrong.append((number, repr(error)[:300]))
        if time.monotonic() - before > SECONDS:
            wrong.append((number, "slow"))
    assert not wrong
    path.write_bytes(whole)
    assert frozen(kind.read(path)) == allowed[0]


def test_there_are_a_thousand_inputs():
    assert sum(kind.inputs for kind in KINDS.values()) >= 1000
