"""The published figures of Graziani et al. 2021 (MAKE 3, 374-391, doi 10.3390/make3020019), as numbers.

Curves were read off the authors' figures performance0.png and performance1.png (repository medgift/scale_covariant_pruning) to
0.005 in exp(R2 - 1); the tables are as printed.
"""

from scalecov_jax.scores import Condition

N_TRAIN = {"albatross": 308, "kite": 284, "racing car": 255}  # 70 % of 441, 406 and 365 images
RUNS = 25  # of Table A1 and Figures 8 and 9
REPETITIONS = 10  # of each of the three classes in Figure A2

PEAK = {"inception_v3": ("mixed8", 0.85), "resnet50": ("add_15", 0.76)}
"""Figure A2: the layer of the largest R2 and the R2 printed there, ln(mean of exp(R2 - 1)) + 1."""

TABLE_A1: dict[str, dict[Condition, tuple[float, float]]] = {
    layer: {"trained": trained, "random_weights": random_weights, "shuffled_measure": shuffled}
    for layer, trained, random_weights, shuffled in (
        ("mixed0", (-0.72, 0.47), (-283.0, 1365.0), (-5.75, 1.38)),
        ("mixed1", (-2.39, 1.21), (-331.0, 1082.0), (-20.1, 6.96)),
        ("mixed2", (-3.12, 0.88), (-14.4, 26.1), (-20.6, 11.0)),
        ("mixed3", (0.59, 0.06), (-0.47, 0.30), (-1.81, 0.48)),
        ("mixed4", (0.69, 0.04), (-0.41, 0.31), (-1.66, 0.42)),
        ("mixed5", (0.70, 0.04), (-0.53, 0.26), (-1.68, 0.52)),
        ("mixed6", (0.79, 0.03), (-0.54, 0.29), (-1.62, 0.41)),
        ("mixed7", (0.73, 0.03), (-0.66, 0.29), (-1.45, 0.43)),
        ("mixed8", (0.84, 0.01), (-0.06, 0.19), (-0.98, 0.27)),
        ("mixed9", (0.77, 0.02), (0.06, 0.16), (-0.73, 0.24)),
        ("mixed10", (0.54, 0.05), (0.08, 0.13), (-1.24, 0.45)),
        ("pre_softmax", (-0.12, 0.20), (-0.13, 0.15), (-3.90, 0.86)),
        ("softmax", (-3861.0, 5729.0), (-0.13, 0.15), (-11077.0, 26421.0)),
    )
}
"""Table A1: R2 of the scale ratio in InceptionV3, albatross, least squares, mean and sd over 25 runs."""

CURVES: dict[str, dict[str, dict[Condition, float]]] = {
    architecture: {
        layer: {"trained": trained, "random_weights": random_weights, "shuffled_measure": shuffled}
        for layer, trained, random_weights, shuffled in rows
    }
    for architecture, rows in {
        "inception_v3": (
            ("mixed0", 0.075, 0.008, 0.0),
            ("mixed1", 0.127, 0.0, 0.0),
            ("mixed2", 0.145, 0.0, 0.0),
            ("mixed3", 0.67, 0.297, 0.097),
            ("mixed4", 0.735, 0.321, 0.095),
            ("mixed5", 0.740, 0.287, 0.096),
            ("mixed6", 0.827, 0.275, 0.091),
            ("mixed7", 0.799, 0.284, 0.108),
            ("mixed8", 0.860, 0.404, 0.176),
            ("mixed9", 0.833, 0.446, 0.206),
            ("mixed10", 0.690, 0.446, 0.125),
            ("pre_softmax", 0.460, 0.390, 0.021),
            ("softmax", 0.0, 0.390, 0.0),
        ),
        # The shuffled curve was read as a range from add_5 to add_8 and from add_9 to add_13: its middle stands here.
        "resnet50": (
            ("add_1", 0.007, 0.0, 0.0),
            ("add_2", 0.030, 0.0, 0.0),
            ("add_3", 0.035, 0.01, 0.0),
            ("add_4", 0.135, 0.056, 0.0),
            ("add_5", 0.45, 0.162, 0.023),
            ("add_6", 0.468, 0.172, 0.023),
            ("add_7", 0.502, 0.188, 0.023),
            ("add_8", 0.489, 0.241, 0.023),
            ("add_9", 0.667, 0.343, 0.09),
            ("add_10", 0.687, 0.361, 0.09),
            ("add_11", 0.724, 0.369, 0.09),
            ("add_12", 0.734, 0.377, 0.09),
            ("add_13", 0.751, 0.384, 0.09),
            ("add_14", 0.746, 0.366, 0.072),
            ("add_15", 0.788, 0.426, 0.120),
            ("add_16", 0.747, 0.438, 0.109),
            ("pre_softmax", 0.63, 0.36, 0.05),
            ("softmax", 0.0, 0.0, 0.0),
        ),
    }.items()
}
"""Figure A2: mean of exp(R2 - 1) over 3 classes x 10 repetitions, least squares; 0 where it cannot be told from 0."""
