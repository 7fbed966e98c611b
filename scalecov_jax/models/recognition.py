"""Which network a weight file holds, by the names of its tensors, and under which prefix."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging

from scalecov_jax.models.architecture import ARCHITECTURES, Architecture
from scalecov_jax.models.sources import Layout, possible_names
from scalecov_jax.models.weight_files import WeightFile

SHOWN = 4
# Networks that have names of a supported one and are none, by a tensor that it has not.
_RELATIVES = {
    r"conv1\.0\.weight": "a ResNet-D, with three convolutions first",
    r"layer1\.0\.se\.": "an SE-ResNet",
    r"conv2_block1_preact_bn/": "a ResNet V2",
    r"features\.1\.running_mean": "a VGG with batch normalisation, such as vgg16_bn",
    r"features\.18\.weight": "VGG11",
    r"features\.15\.weight": "VGG13",
    r"features\.34\.weight|block3_conv4/": "VGG19",
    r"features\.denseblock3\.denselayer25\.|conv4_block25_0_bn/": "DenseNet169 or a larger one",
    r"blocks\.0\.1\.|features\.1\.1\.block\.1\.fc1\.|block1b_": "EfficientNetB1 or a larger one",
    r"stages\.2\.blocks\.9\.|features\.5\.9\.|convnext_\w+_stage_2_block_9_": "ConvNeXt-Small or a larger one",
}
# Those with its names and shapes, which only the name of the file or timm's configuration tells: other padding, blurred steps.
_TWINS = re.compile(r"tf_efficientnet\w*|resnet(?:aa|blur)\w*|densenetblur\w*")


class Match(NamedTuple):
    """Where a network lies in a file.

    Attributes:
        family: Its architecture.
        layout: How it is named.
        prefix: What comes before each name.
        counts: Number of its tensors by module of the source.
        tensors: All that have the prefix, by their names without it.
        beside: How many others there are, by what they are.
    """

    family: Architecture
    layout: Layout
    prefix: str
    counts: Mapping[str, int] = {}
    tensors: Mapping[str, np.ndarray] = {}
    beside: Mapping[str, int] = {}

    @property
    def known(self) -> int:
        """How many tensors are named as in the layout."""
        return sum(self.counts.values())

    @property
    def ignored(self) -> dict[str, str]:
        """Tensors known to have no counterpart, and what they are."""
        rules = self.layout.ignored.items()
        return {name: kind for name in self.tensors for kind, rule in rules if re.search(rule, name)}


def recognise(name: str, file: WeightFile, family: Architecture, prefix: str = "", called: str = "") -> Match:
    """The layout and the prefix that explain most of the file's tensors.

    Of equals one of which the file holds all from the input to somewhere (a ResNet50 lacks the middle of a ResNet101), and of
    these one of the wanted architecture. Of several prefixes with one network, such as an average of the weights (EMA) beside
    the weights, the one that is no EMA. Names must begin with the prefix; `called` is the name of the architecture in the
    source's configuration.

    Raises:
        ValueError: It holds no network that is known, another one, or several that cannot be told apart.
    """
    ours = [layout for layout in family.sources.layouts if layout.family == file.family]
    if not ours:
        titles = ", ".join(layout.title for layout in family.sources.layouts) or "none at all"
        raise ValueError(
            f"{name} cannot be read as {family.name}, of which these layouts are known: {titles}."
        )

    def rank(match: Match) -> tuple[int, bool, bool]:
        held = [module in match.counts for module in dict.fromkeys(match.layout.modules.values())]
        return match.known, held == sorted(held, reverse=True), match.family is family

    found = [match for match in _matches(file) if match.prefix.startswith(prefix)]
    best = max(found, key=rank, default=Match(family, ours[0], prefix))
    several = [one for one in found if one.layout is best.layout and 2 * one.known > best.known]
    prefixes = [one.prefix for one in several]
    if len(several) > 1:
        where = (
            f"{name} holds {best.family.name} under {' and '.join(one or 'no prefix' for one in prefixes)}"
        )
        current = [one for one in several if "ema" not in re.split("[^a-z]+", one.prefix.lower())]
        if len(current) != 1:
            raise ValueError(f"{where}; choose one, such as --prefix={max(prefixes).rstrip('.')}.")
        (best,) = current
        logging.warning("%s; %s is taken, --prefix chooses another.", where, best.prefix or "the one without")
    elif best.prefix:
        logging.info("%s: the names begin with %s, which is removed.", name, best.prefix)
    others = tuple(one for one in prefixes if one != best.prefix and one.startswith(best.prefix))
    tensors = {
        key.removeprefix(best.prefix): values
        for key, values in file.tensors.items()
        if key.startswith(best.prefix) and not (others and key.startswith(others))
    }
    count = len(file.tensors) - len(tensors)
    best = best._replace(tensors=tensors, beside={"beside the network": count} if count else {})
    _refuse_others(name, file, best, family, prefix, called)
    return best


def _matches(file: WeightFile) -> Iterator[Match]:
    """Every architecture, layout and prefix that explains a tensor."""
    ends = [(name, [0, *(dot.end() for dot in re.finditer(r"\.", name))]) for name in file.tensors]
    for family in ARCHITECTURES.values():
        for layout in family.sources.layouts:
            if layout.family != file.family:
                continue
            # One module of Keras's may stand for several of ours.
            owners = {name: one for one in layout.modules.values() for name in possible_names(layout, one)}
            found: defaultdict[str, Counter[str]] = defaultdict(Counter)
            for name, starts in ends:
                for start in starts:
                    if owner := owners.get(name[start:]):
                        found[name[:start]][owner] += 1
            yield from (Match(family, layout, prefix, counts) for prefix, counts in found.items())


def _refuse_others(
    name: str, file: WeightFile, best: Match, family: Architecture, prefix: str, called: str
) -> None:
    if relative := _relative(f"{name} {called}", best.tensors):
        supported = ", ".join(one.name for one in ARCHITECTURES.values() if one.sources.layouts)
        raise ValueError(f"{name} seems to hold {relative}, which is not supported; {supported} are.")
    count = len(file.tensors)
    if best.known <= (len(best.tensors) - len(best.ignored)) / 2:
        ours = (layout for layout in family.sources.layouts if layout.family == file.family)
        examples = " or ".join(dict.fromkeys(next(iter(layout.modules.values())) for layout in ours))
        under = f" under the prefix {prefix}" if prefix else ""
        known = {part for module in best.counts for part in possible_names(best.layout, module)}
        unknown = [tensor for tensor in best.tensors if tensor not in known] or list(file.tensors)
        nearest = (
            f"nearest is {best.family.name} ({best.layout.title}), with the names of {best.known}; "
            * bool(best.known)
        )
        raise ValueError(
            f"{name} holds no {family.name} that is known{under}: of its {count} tensors {nearest}not known are "
            f"{some(unknown, 10)}, and the first convolution would be called {examples}."
        )
    if best.family is not family:
        raise ValueError(
            f"{name} holds {best.family.name} ({best.layout.title}: {best.known} of its {count} tensors are named so) "
            f"and not {family.name}; pass --architecture={best.family.name}."
        )


def _relative(called: str, tensors: Mapping[str, np.ndarray]) -> str:
    """What a file holds that has the names of a known network and is none; empty if nothing speaks for it."""
    if twin := _TWINS.search(called.lower()):
        return f"timm's {twin[0]}, which has the names and shapes of a supported network and computes something else"
    for pattern, relative in _RELATIVES.items():
        if any(re.match(pattern, tensor) for tensor in tensors):
            return relative
    stem = tensors.get("conv1.weight")
    first, second, third = (tensors.get(f"layer1.0.conv{number}.weight") for number in (1, 2, 3))
    if stem is None or first is None or second is None:
        return ""
    if third is None:
        return "ResNet34" if any(tensor.startswith("layer1.2.") for tensor in tensors) else "ResNet18"
    if second.ndim == 4 and second.shape[1] < second.shape[0]:
        return "a ResNeXt, with grouped convolutions"
    return "a wide ResNet" if len(first) > len(stem) else ""


def some(found: list[str], shown: int = SHOWN) -> str:
    """The first few, and how many more."""
    more = len(found) - shown
    return ", ".join(found[:shown]) + (f" and {more} more" if more > 0 else "")
