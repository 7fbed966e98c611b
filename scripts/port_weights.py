"""Turn a weight file of Keras, torchvision or timm into a checkpoint.

Example:
  python scripts/port_weights.py --architecture=resnet50 --source=resnet50_weights.h5 --preprocessing=caffe \
    --output=runs/weights/resnet50 --verify
"""

import sys
from pathlib import Path
from typing import cast

from absl import app, flags, logging

from scalecov_jax import checkpoints
from scalecov_jax.models import download, parity
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.port import port
from scalecov_jax.models.preprocessing import PREPROCESSINGS, Preprocessing
from scalecov_jax.models.pruning import count_parameters

ARCHITECTURE = flags.DEFINE_enum(
    "architecture", None, list(ARCHITECTURES), "What the file holds.", required=True
)
SOURCE = flags.DEFINE_string(
    "source",
    None,
    "The weight file: Keras .h5 (with or without top) or .weights.h5, torchvision or timm .safetensors, or .pth (needs torch). "
    "With --download, where to put the official file (by default next to --output).",
)
PREPROCESSING = flags.DEFINE_enum(
    "preprocessing",
    None,
    list(PREPROCESSINGS),
    "What the weights expect at their input; a wrong one gives plausible but wrong features. Keras: tf (x / 127.5 - 1) for "
    "InceptionV3 and MobileNetV2, caffe (BGR minus mean) for ResNet and VGG16, torch (mean and sd) for DenseNet121, "
    "EfficientNetB0 and ConvNeXt-Tiny. torchvision and timm: torch, but tf for InceptionV3 (whose transform_input amounts to "
    "it). unit: 0 to 1. raw: 0 to 255. Needed unless --download.",
)
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
    "class_names", None, "Text file with one class name a line, in the order of the outputs."
)
MAX_POOL_PADDING = flags.DEFINE_enum(
    "max_pool_padding",
    "1",
    ["0", "1"],
    "ResNets only: 1 as Keras since 2.2.3 and torchvision, 0 as Keras before.",
)


def main(_: list[str]) -> None:
    """Port, verify if asked, write, and print what was written."""
    output = Path(OUTPUT.value).absolute()
    if output.exists():
        if not OVERWRITE.value:
            raise ValueError(
                f"{output} exists: choose another --output, or pass --overwrite to replace the checkpoint there."
            )
        checkpoints.load(output)  # Replaces checkpoints only, and no folder given by mistake.
    network = port(
        find_source(output),
        ARCHITECTURE.value,
        cast(Preprocessing, PREPROCESSING.value or ARCHITECTURES[ARCHITECTURE.value].preprocessing),
        LAST.value,
        Path(CLASS_NAMES.value).read_text().splitlines() if CLASS_NAMES.value else (),
        int(MAX_POOL_PADDING.value),
    )
    if VERIFY.value:
        verify(network)
    checkpoints.save(output, network, overwrite=OVERWRITE.value)
    card = network.card
    print_table(
        ("architecture", card.architecture),
        ("options", ", ".join(f"{k}={v}" for k, v in card.options.items()) or "defaults"),
        ("layers", f"{network.architecture.layers[0]} to {network.module.last}"),  # pyright: ignore[reportAttributeAccessIssue]
        ("parameters", f"{count_parameters(network.variables):,}"),
        ("preprocessing", card.preprocessing),
        ("layout", card.notes["layout"]),
        ("ignored tensors", ", ".join(f"{n} {kind}" for kind, n in card.notes["ignored"].items()) or "none"),
        (
            "beyond --last",
            ", ".join(f"{n} of {layer}" for layer, n in card.notes["beyond_last"].items()) or "none",
        ),
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
    if not SOURCE.value or not PREPROCESSING.value:
        raise ValueError(
            "Pass --source=FILE and --preprocessing (see --help), or --download for the official Keras file."
        )
    return Path(SOURCE.value)


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
