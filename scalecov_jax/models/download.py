"""The official weight files: where they are and how to know them. Nothing is fetched unless asked for."""

import http.client
import urllib.request
from pathlib import Path

from tqdm import tqdm

from scalecov_jax.atomic import replacing
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
    with replacing(destination, shared=True) as part:
        _download(official.address, part)
        check_digest(part, official.digest, official.address)
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
