"""The official weight files: where they are and how to know them. Nothing is fetched unless asked for."""

import http.client
import os
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from scalecov_jax.models.architecture import check_layer, get_architecture
from scalecov_jax.models.port import checksum

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_KERAS_2 = "https://github.com/fchollet/deep-learning-models/releases/download/v0.2"


class Official(NamedTuple):
    """One file.

    Attributes:
        address: Where it is.
        md5: Published digest, hexadecimal.
        top: Whether it has the 1000-class head.
    """

    address: str
    md5: str
    top: bool


# Source: keras.applications (inception_v3, resnet) 3.15; resnet50 of keras-applications 1.0.0 for the last two.
OFFICIAL = {
    "inception_v3": (
        Official(
            f"{_KERAS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
            "9a0d58056eeedaa3f26cb7ebd46da564",
            True,
        ),
        Official(
            f"{_KERAS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "bcbd6486424b2319ff4ef7d526e38f63",
            False,
        ),
    ),
    "resnet50": (
        Official(
            f"{_KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels.h5",
            "2cb95161c43110f7111970584f804107",
            True,
        ),
        Official(
            f"{_KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "4d473c1dd8becc155b73f8504c6f6626",
            False,
        ),
    ),
    "resnet50 before 2019": (
        Official(
            f"{_KERAS_2}/resnet50_weights_tf_dim_ordering_tf_kernels.h5",
            "a7b3fe01876f51b976af0dea6bc144eb",
            True,
        ),
        Official(
            f"{_KERAS_2}/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "a268eb855778b3df3c7506639542a6af",
            False,
        ),
    ),
}


def choose(architecture: str, last: str | None = None, max_pool_padding: int = 1) -> Official:
    """The smallest official file for a network: without the head if the network stops before it.

    Without padding of the first pooling, ResNet50 is the one of Keras before 2019.

    Raises:
        ValueError: No architecture or layer of that name.
    """
    family = get_architecture(architecture)
    check_layer(family, last or family.layers[-1])
    name = family.name
    if name == "resnet50" and max_pool_padding == 0:
        name = "resnet50 before 2019"
    top = last in (None, "pre_softmax", "softmax")
    return next(official for official in OFFICIAL[name] if official.top == top)


def fetch(official: Official, destination: Path) -> Path:
    """Make sure that `destination` is the official file: download it if it does not exist, and check its checksum.

    The file appears under its name only when complete and right.

    Args:
        official: Which one.
        destination: Path of the file.

    Raises:
        ValueError: The download failed or was cut short, or the file has another checksum.
    """
    if destination.exists():
        _check(destination, official, destination)
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        _download(official.address, part)
        _check(part, official, official.address)
        part.rename(destination)
    finally:
        part.unlink(missing_ok=True)
    return destination


def _download(address: str, part: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=60) as response, part.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=address.rpartition("/")[2]) as bar:
                while block := response.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
                if total and file.tell() != total:
                    raise ValueError(
                        f"{address} broke off after {file.tell():,} of {total:,} bytes; run the command again."
                    )
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{address} cannot be downloaded: {error or type(error).__name__}.") from error


def _check(path: Path, official: Official, given: object) -> None:
    found = checksum(path, "md5")
    if found != official.md5:
        raise ValueError(
            f"{given} has the MD5 {found} and not the published {official.md5}; it is damaged or not the official file."
        )
