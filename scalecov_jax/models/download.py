"""The official weight files: where they are and how to know them. Nothing is fetched unless asked for."""

from pathlib import Path

import pooch

from scalecov_jax.models.architecture import check_layer, get_architecture
from scalecov_jax.models.port import check_digest
from scalecov_jax.models.sources import Official


def choose(architecture: str, last: str | None = None, max_pool_padding: int = 1) -> Official:
    """The smallest official file for a network: without the head if the network stops before it.

    Without padding of the first pooling, ResNet50 is the one of Keras before 2019.

    Raises:
        ValueError: No architecture or layer of that name, or no file whose checksum is known.
    """
    family = get_architecture(architecture)
    check_layer(family, last or family.layers[-1])
    top = last is None or last in family.head
    files = [official for official in family.sources.official if official.top == top]
    if not files:
        raise ValueError(
            f"No official file of {architecture} is known with its checksum; pass --source=FILE."
        )
    return max(files, key=lambda official: official.options.get("max_pool_padding", 1) == max_pool_padding)


def fetch(official: Official, destination: Path) -> Path:
    """Make sure that `destination` is the official file: download it if it does not exist, and check its checksum.

    The file appears under its name only when complete and right.

    Raises:
        ValueError: The download failed or was cut short, or the file has another checksum.
    """
    if destination.exists():
        check_digest(destination, official.digest)
        return destination
    try:
        pooch.retrieve(
            official.address,
            f"{'sha256' if len(official.digest) == 64 else 'md5'}:{official.digest}",
            fname=destination.name,
            path=destination.parent,
            progressbar=True,
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        raise ValueError(f"{official.address} cannot be downloaded: {error}") from error
    return destination
