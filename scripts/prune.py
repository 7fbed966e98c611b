"""Cut a network after a layer and save what remains.

Examples:
  python scripts/prune.py --weights=runs/weights/resnet50 --layer=add_15 --output=runs/weights/resnet50_add_15
  python scripts/prune.py --weights=runs/weights/resnet50 --scores=runs/resnet50_car --output=runs/weights/resnet50_cut
"""

from absl import flags
from command import run

from scalecov_jax.cutting import cut_checkpoint

WEIGHTS = flags.DEFINE_string("weights", None, "Checkpoint to cut.", required=True)
LAYER = flags.DEFINE_string("layer", None, "Last layer to keep, such as mixed8 or add_15.")
SCORES = flags.DEFINE_string("scores", None, "Results of probe.py: cut at the layer that it selected.")
ESTIMATOR = flags.DEFINE_enum("estimator", "ridge", ["ridge", "ols"], "Whose choice --scores follows.")
OUTPUT = flags.DEFINE_string("output", None, "New folder for the pruned network.", required=True)
TORCH = flags.DEFINE_string(
    "torch",
    None,
    "Also write a .safetensors file with torch's names, and beside it a CSV table of its tensors.",
)
flags.mark_flags_as_mutual_exclusive(["layer", "scores"], required=True)


def main() -> None:
    """Prune."""
    print(
        cut_checkpoint(WEIGHTS.value, OUTPUT.value, LAYER.value, SCORES.value, ESTIMATOR.value, TORCH.value)
    )


if __name__ == "__main__":
    run(main)
