"""Settings: what they accept, and that every problem is listed at once."""

from dataclasses import FrozenInstanceError, asdict, dataclass
from typing import Literal

import pytest
from ml_collections import ConfigDict

from scalecov_jax.settings import Base, SettingsError, describe, flag_values, parse, setting


@dataclass(frozen=True)
class Some(Base):
    weights: tuple[str, ...] = setting(("a/b",), least=1, help="folders of checkpoints")
    sizes: tuple[int, ...] = setting(
        (24, 32, 40), low=1, high=99, least=2, distinct=True, help="widths in pixels"
    )
    ranges: tuple[tuple[int, int], ...] = setting(((24, 32),), help="smallest and largest width")
    rate: float = setting(0.5, low=0, help="learning rate")
    splits: int = setting(5, low=1, help="random splits")
    random: bool = setting(True, help="whether to draw")
    scaling: Literal["common", "each"] = setting("common", help="of the features")

    def problems(self):
        return ["splits is more than sizes"] if self.splits > 10 * len(self.sizes) else []


def test_text_as_flags_give_it():
    given = {"weights": "x, y/z,", "sizes": "8,16", "ranges": "8-16,16-32", "splits": "3", "rate": 1}
    some = parse(Some, given)
    assert (some.weights, some.sizes, some.ranges) == (("x", "y/z"), (8, 16), ((8, 16), (16, 32)))
    assert (some.splits, some.rate, some.scaling) == (3, 1, "common")
    with pytest.raises(FrozenInstanceError):
        some.splits = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_a_config_dict_and_json_hold_the_same_settings():
    some = Some(sizes=(8, 16), ranges=(), weights=("x", "y"))
    config = ConfigDict(flag_values(some))
    assert config.weights == "x,y"
    assert parse(Some, config.to_dict()) == some
    assert parse(Some, {"sizes": [8, 16], "ranges": [], "weights": ["x", "y"]}) == some
    assert parse(Some, asdict(some)) == some


def test_all_problems_at_once_with_prefix():
    given = {
        "weights": "",
        "sizes": "24,x",
        "ranges": "24",
        "rate": -1.0,
        "splits": 0,
        "random": "yes",
        "scaling": "comon",
        "wieghts": "a",
    }
    with pytest.raises(SettingsError) as error:
        parse(Some, given, "config.")
    assert len(error.value.problems) == 8
    for message in (
        "config.wieghts is no setting; did you mean weights?",
        "config.sizes is 'x'; expected an integer",
        "config.ranges has '24'; expected two integers such as 150-300",
        "config.weights is ''; expected at least 1 value",
        "config.rate is -1.0; expected at least 0",
        "config.splits is 0; expected at least 1",
        "config.random is 'yes'; expected True or False",
        "config.scaling is 'comon'; expected one of common, each (did you mean common?)",
    ):
        assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": (24,)}, "sizes is '24'; expected at least 2 values"),
        ({"sizes": (24, 24)}, "sizes is '24,24'; expected different values"),
        ({"sizes": (1, 100, 5)}, "sizes is '1,100,5'; expected 1 to 99"),
        ({"sizes": 24}, "sizes is 24; expected several values"),
        ({"sizes": (24, True)}, "sizes is True; expected an integer"),
        ({"splits": 2.5}, r"splits is 2.5; expected an integer"),
        ({"rate": float("nan")}, "rate is nan; expected a number"),
        ({"splits": 31}, "splits is more than sizes"),
        ({"ranges": ((1, 2, 3),)}, "ranges has '1-2-3'; expected two integers"),
        (
            {"scaling": 3, "random": 1},
            "random is 1; expected True or False; scaling is 3; expected one of common, each",
        ),
    ],
)
def test_the_constructor_refuses(values, message):
    with pytest.raises(SettingsError, match=message):
        Some(**values)


def test_describe_has_every_field_its_default_and_its_sentence():
    text = describe(Some)
    for part in (
        "--config.weights=a/b\n",
        "--config.ranges=24-32\n",
        "of the features (common or each)",
        "widths in pixels",
    ):
        assert part in text
