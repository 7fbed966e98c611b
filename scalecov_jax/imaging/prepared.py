"""Datasets as tensorflow-datasets prepared them (array_record), read without TensorFlow and never downloaded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from scalecov_jax.imaging.decoding import decode_image
from scalecov_jax.imaging.image_set import ImageError, ImageSet, Pixels


@dataclass(frozen=True)
class Stored(Sequence[Any]):
    """The records of a split; one that cannot be read is an ImageError that says which."""

    records: Any
    where: Path

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self.records[index]
        except Exception as error:  # array_record, protobuf and tfds have their own
            raise ImageError(f"record {index} of {self.where}", _line(error)) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def open_tfds(data_dir: Path, split: str, name: str) -> tuple[Stored, Any]:
    """Records of a split, images left encoded, and the features of the dataset.

    Raises:
        ValueError: Not prepared, prepared in another format, damaged, or an unknown split.
    """
    import tensorflow_datasets as tfds

    prepare = (
        "Nothing is downloaded here; prepare it once where TensorFlow is installed: "
        f"tfds.builder({name!r}, data_dir={str(data_dir)!r}, file_format='array_record')"
        ".download_and_prepare()"
    )
    # The whole name must match: an interrupted preparation leaves 5.0.0.incomplete... behind.
    folders = [path.parent for path in (data_dir / name).glob("*/dataset_info.json")]
    versions = [path for path in folders if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if not versions:
        raise ValueError(f"{data_dir / name}: no prepared dataset. {prepare}.")
    folder = max(versions, key=lambda path: [*map(int, path.name.split("."))])
    splits = ""
    try:
        builder = tfds.builder_from_directory(folder)
        splits = f"split {split!r}; splits: {', '.join(builder.info.splits)}"
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})  # pyright: ignore[reportCallIssue]
        return Stored(records, folder), builder.info.features
    except NotImplementedError:
        problem = "prepared in another format than array_record; prepare it so in another data_dir"
    except Exception as error:  # protobuf and tfds have their own
        problem = f"cannot read {splits or 'the dataset'} ({_line(error)})"
    raise ValueError(f"{folder}: {problem}.")


class Records(NamedTuple):
    """Images of a data source as they are stored, and their names."""

    records: Any
    names: list[str]

    def __call__(self, index: int) -> Pixels:
        """Decode one image."""
        return Pixels(decode_image(self.records[index]["image"], self.names[index]))


def camelyon_patches(data_dir: str | Path, split: str = "train") -> ImageSet:
    """`patch_camelyon`, with the labels normal and tumour.

    It names no patient, so that each patch counts as one: intervals over patients are then over patches, and too narrow.

    Args:
        data_dir: Folder of prepared datasets.
        split: As in tfds.

    Raises:
        ValueError: Not prepared, prepared in another format, or an unknown split.

    Source: https://www.tensorflow.org/datasets/catalog/patch_camelyon
    """
    records, _ = open_tfds(Path(data_dir).expanduser(), split, "patch_camelyon")
    names = [record["id"].decode() for record in records]
    labels = [("normal", "tumour")[int(record["label"])] for record in records]
    return ImageSet(pd.DataFrame({"name": names, "group": names, "label": labels}), Records(records, names))
