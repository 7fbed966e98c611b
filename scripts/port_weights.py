"""Turn a weight file of Keras, torchvision or timm into a checkpoint.

Example:
  python scripts/port_weights.py --architecture=resnet50 --source=resnet50.safetensors --preprocessing=torch \
    --output=runs/weights/resnet50
"""

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from absl import app, flags, logging

from scalecov_jax import checkpoints
from scalecov_jax.models import download, parity
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.port import port
from scalecov_jax.models.preprocessing import PREPROCESSINGS, Preprocessing, as_preprocessing
from scalecov_jax.models.pruning import count_parameters

LARGEST = 2**30  # bytes of a file: what is written is copied in memory first

ARCHITECTURE = flags.DEFINE_enum(
    "architecture", None, list(ARCHITECTURES), "What the file holds.", required=True
)
SOURCE = flags.DEFINE_string(
    "source",
    None,
    "The weight file: Keras .h5 (with or without top), .weights.h5 or .keras; torchvision, timm or your own .safetensors or, "
    "with torch installed, .pth, .pt, .bin or .ckpt. With --download, where to put it (default: next to --output).",
)
PREPROCESSING = flags.DEFINE_enum(
    "preprocessing",
    None,
    list(PREPROCESSINGS),
    "What the weights expect at their input; a wrong one gives plausible but wrong features. Keras: tf (x / 127.5 - 1) for "
    "InceptionV3 and MobileNetV2, caffe (BGR minus mean) for ResNet and VGG16, torch (mean and sd) for DenseNet121, "
    "EfficientNetB0 and ConvNeXt-Tiny. torchvision and timm: torch, but tf for InceptionV3 (whose transform_input amounts to "
    "it). ViTs: as published with them. unit: 0 to 1. raw: 0 to 255. Needed unless --download, --mean, or a config.json of timm "
    "or a preprocessor_config.json of Hugging Face beside the file says it.",
)
MEAN = flags.DEFINE_list(
    "mean",
    None,
    "In place of --preprocessing: mean of red, green and blue for pixels from 0 to 1, with --std.",
)
STD = flags.DEFINE_list("std", None, "Standard deviations that belong to --mean.")
FORCE_PREPROCESSING = flags.DEFINE_bool(
    "force_preprocessing", False, "Take it though the file's configuration or statistics say another one."
)
PREFIX = flags.DEFINE_string(
    "prefix",
    "",
    "Beginning of the names of the tensors to read, such as model_ema.; found by itself where the file holds one network.",
)
SHA256 = flags.DEFINE_string("sha256", "", "What the file must have.")
LAST = flags.DEFINE_string(
    "last",
    None,
    "Stop after this layer, such as mixed8 or add_15; needed if the file does not hold the whole network.",
)
OUTPUT = flags.DEFINE_string("output", None, "New folder for the checkpoint.", required=True)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the checkpoint in --output.")
VERIFY = flags.DEFINE_bool(
    "verify", False, "Compare every layer with keras.applications (needs keras) before anything is written."
)
DOWNLOAD = flags.DEFINE_bool("download", False, "Fetch the official Keras file first and check its checksum.")
CLASS_NAMES = flags.DEFINE_string(
    "class_names", None, "UTF-8 text file with one class name per line, in the order of the outputs."
)
HEADS = flags.DEFINE_integer(
    "heads",
    None,
    "ViTs only: heads of each attention, which no tensor tells; by default what config.json beside the file says, or one for "
    "each 64 channels.",
    lower_bound=1,
)
MAX_POOL_PADDING = flags.DEFINE_enum(
    "max_pool_padding",
    "1",
    ["0", "1"],
    "ResNets only: 1 as Keras since 2.2.3 and torchvision, 0 as Keras before.",
)


def main(_: list[str]) -> None:
    """Port, verify if asked, write, and print what was written."""
    output = Path(OUTPUT.value).expanduser().absolute()
    if output.exists():
        if not OVERWRITE.value:
            raise ValueError(
                f"{output} exists: choose another --output, or pass --overwrite to replace the checkpoint there."
            )
        checkpoints.load(output)  # Replaces checkpoints only, and no folder given by mistake.
    network = port(
        find_source(output),
        ARCHITECTURE.value,
        find_preprocessing(),
        LAST.value,
        read_class_names(Path(CLASS_NAMES.value).expanduser()) if CLASS_NAMES.value else (),
        int(MAX_POOL_PADDING.value),
        prefix=PREFIX.value,
        sha256=SHA256.value,
        force_preprocessing=FORCE_PREPROCESSING.value,
        heads=HEADS.value,
    )
    if VERIFY.value:
        verify(network)
    checkpoints.save(output, network, overwrite=OVERWRITE.value, largest=LARGEST)
    card = network.card
    print_table(
        ("architecture", card.architecture),
        ("options", ", ".join(f"{k}={v}" for k, v in card.options.items()) or "defaults"),
        ("layers", f"{network.architecture.layers[0]} to {network.module.last}"),  # pyright: ignore[reportAttributeAccessIssue]
        ("parameters", f"{count_parameters(network.variables):,}"),
        ("preprocessing", f"{card.preprocessing} ({card.notes['preprocessing']})"),
        ("resize", ", ".join(f"{k}={v}" for k, v in card.notes["resize"].items()) or "not known"),
        ("layout", card.notes["layout"]),
        ("prefix", card.notes["prefix"] or "none"),
        ("ignored tensors", counts(card.notes["ignored"])),
        ("beyond --last", counts(card.notes["beyond_last"])),
        ("class names", len(card.class_names)),
        ("origin", card.origin),
        ("sha256", card.sha256),
        ("written to", output),
    )


def find_source(output: Path) -> Path:
    """The file named by --source or fetched by --download."""
    if DOWNLOAD.value:
        official = download.choose(ARCHITECTURE.value, LAST.value, int(MAX_POOL_PADDING.value))
        default = output.parent / official.address.rpartition("/")[2]
        return download.fetch(official, Path(SOURCE.value) if SOURCE.value else default)
    if not SOURCE.value:
        raise ValueError("Pass --source=FILE, or --download for the official Keras file.")
    return Path(SOURCE.value).expanduser()


def find_preprocessing() -> Preprocessing | None:
    """What --preprocessing, or --mean and --std say; that of Keras's files with --download."""
    if (MEAN.value is None) != (STD.value is None) or (MEAN.value and PREPROCESSING.value):
        raise ValueError("Pass --mean=R,G,B and --std=R,G,B together, or --preprocessing.")
    if MEAN.value:
        return as_preprocessing((MEAN.value, STD.value))
    if PREPROCESSING.value:
        return as_preprocessing(PREPROCESSING.value)
    return ARCHITECTURES[ARCHITECTURE.value].preprocessing if DOWNLOAD.value else None


def read_class_names(path: Path) -> list[str]:
    """The lines of a text file; blank ones at its end do not count."""
    try:
        names = [line.strip() for line in path.read_bytes().decode("utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); save it as UTF-8.") from error
    if "" in names or names[0].startswith(("{", "[")):
        what = f"line {names.index('') + 1} is blank" if "" in names else "it begins as JSON does"
        raise ValueError(f"{path} is no list of one class name per line: {what}.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        logging.warning("%s names several outputs %s; as a target the name means the first.", path, twice[0])
    return names


def counts(found: Mapping[str, int]) -> str:
    """How many there are of each, as text."""
    return ", ".join(f"{number} {name}" for name, number in found.items()) or "none"


def verify(network: checkpoints.Network) -> None:
    """Print how far every layer is from Keras's; refuse to go on if one is too far."""
    rows = parity.compare_with_keras(network)
    print_table(
        ("layer", f"{'shape':20} max abs error / max abs value against Keras"),
        *((row.layer, f"{'x'.join(map(str, row.shape)):20} {row.error:.1e}") for row in rows),
    )
    bad = [row.layer for row in rows if not row.error <= parity.TOLERANCE]
    if bad:
        raise ValueError(
            f"{', '.join(bad)} differ from Keras by more than {parity.TOLERANCE:g}; nothing was written."
        )


def print_table(*rows: tuple[object, object]) -> None:
    """Print names and values in two columns."""
    for name, value in rows:
        print(f"{name!s:16} {value}")


def run(argv: list[str]) -> None:
    """Turn a user's mistake into one line and exit status 1."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"error: Unexpected arguments: {' '.join(argv[1:])}; settings look like --last=add_15.")
    try:
        main(argv)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(run)
