"""Features that are there already: every format gives what arrays give, by function and by command, and bad files are refused."""

import h5py
import numpy as np
import pandas as pd
import pytest
from probe_runs import run, summary_of, table
from scipy.sparse import csr_array

import scalecov_jax as sc
from scalecov_jax.feature_files import Features, read_features

pytestmark = pytest.mark.usefixtures("quick_compilation")
COUNT = 48
RNG = np.random.default_rng(0)
AGE = RNG.normal(size=COUNT)
PATIENTS = [f"p{number // 3}" for number in range(COUNT)]
NAMES = tuple(f"tile_{number:02d}" for number in range(COUNT))
FEATURES = {
    "late": (RNG.normal(size=(COUNT, 7)) + 1.5 * AGE[:, None]).astype(np.float32),
    "early": RNG.normal(size=(COUNT, 5)) * (RNG.random((COUNT, 5)) > 0.4) + 0.2 * AGE[:, None],
}
ONE = {"splits": 4, "groups": PATIENTS}


def write_anndata(path, values, *, encoding="csr_matrix", width=None):
    with h5py.File(path, "w") as file:
        if encoding == "array":
            file["X"] = values
        else:
            sparse = csr_array(values)
            group = file.create_group("X")
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(sparse, name)
            group.attrs["encoding-type"] = encoding
            group.attrs["shape"] = (len(values), width or values.shape[1])
        obs = file.create_group("obs")
        obs.attrs["_index"] = "barcode"
        obs["barcode"] = [*NAMES]


def write(folder, kind):
    """The features in one format; what it cannot hold is missing."""
    path = folder / f"late.{kind}"
    if kind == "h5":
        with h5py.File(path, "w", track_order=True) as file:
            for layer, values in FEATURES.items():
                file.create_dataset(
                    layer, data=values, chunks=True, compression="gzip", maxshape=(None, None)
                )
            file["coords"] = np.arange(2 * COUNT).reshape(-1, 2)
            file["late"].attrs["name"] = "uni_v1"
            file["names"] = [*NAMES]
    elif kind == "npz":
        np.savez(path, **FEATURES, names=np.array(NAMES))
    elif kind == "npy":
        np.save(path, FEATURES["late"])
    elif kind.endswith("h5ad"):
        path = folder / "late.h5ad"
        write_anndata(path, FEATURES["late"], encoding="array" if kind == "dense.h5ad" else "csr_matrix")
    elif kind == "parquet":
        frame = pd.DataFrame(FEATURES["late"], columns=[f"f{d}" for d in range(7)])
        frame.assign(slide=NAMES).to_parquet(path, index=False)
    else:
        path = folder / "layers"
        path.mkdir()
        np.save(path / "late.npy", FEATURES["late"])
        with h5py.File(path / "early.h5", "w") as file:
            file["features"], file["names"] = FEATURES["early"], [*NAMES]
    return path


@pytest.fixture(scope="module")
def expected():
    return sc.probe(FEATURES, AGE, permutations=19, **ONE).table()


@pytest.mark.parametrize("kind", ["h5", "npz", "npy", "h5ad", "dense.h5ad", "parquet", "folder"])
def test_a_file_is_read_as_its_arrays_are(tmp_path, expected, kind):
    path = write(tmp_path, kind)
    read = read_features(path)
    assert read.names == (() if kind == "npy" else NAMES)
    if kind in ("h5", "npz"):
        assert [*read.values] == [*FEATURES]
    found = sc.probe(path, AGE, permutations=0, **ONE).table().set_index("layer")
    for layer in found.index:
        of = "late" if layer == "X" else layer
        np.testing.assert_array_equal(read.values[layer], FEATURES[of])
        there = expected.set_index("layer").loc[of]
        for column in ("r2", "low", "high"):
            assert found[column][layer] == pytest.approx(there[column], abs=1e-9)


def test_what_is_saved_is_read_back(tmp_path):
    origins = {"late": "abc", "early": "def"}
    features = Features(FEATURES, np.arange(COUNT), (), origins, "max", NAMES)
    features.save(tmp_path / "x.h5")
    read = read_features(tmp_path / "x.h5")
    assert (read.names, read.origins, read.pooling) == (NAMES, origins, "max")
    assert [*read.values] == [*FEATURES]
    for layer, values in FEATURES.items():
        assert read.values[layer].dtype == values.dtype
        np.testing.assert_array_equal(read.values[layer], values)
    with pytest.raises(ValueError, match=r"end in \.h5"):
        features.save(tmp_path / "x.csv")


def settings_of(path, csv):
    return {
        "weights": "",
        "images": "",
        "features": str(path),
        "concept": f"csv:{csv}:age",
        "groups": f"csv:{csv}:patient",
        "splits": 4,
        "permutations": 19,
    }


@pytest.mark.parametrize("named", [True, False])
def test_the_command_gives_the_table_of_the_function(tmp_path, expected, named):
    path = tmp_path / "study.npz"
    arrays = {**FEATURES, "names": np.array(NAMES)}
    np.savez(path, **(arrays if named else FEATURES))  # pyright: ignore[reportArgumentType]
    rows = pd.DataFrame({"image": NAMES, "age": AGE, "patient": PATIENTS})
    csv = tmp_path / "table.csv"
    (rows.sample(frac=1, random_state=0) if named else rows.drop(columns="image")).to_csv(csv, index=False)
    text = run(settings_of(path, csv), tmp_path / "run")
    found = table(tmp_path / "run", "layers")
    names = ["weights", "concept", "image_class"]
    pd.testing.assert_frame_equal(
        found.drop(columns=names), expected.drop(columns=names), rtol=1e-9, atol=1e-9, check_dtype=False
    )
    assert {*found["weights"]} == {"study"}
    written = {one.name for one in (tmp_path / "run").iterdir()}
    assert {"report.html", "rcvs.npz", "contrasts.csv", "choices.csv", "cases.csv"} <= written
    assert {*table(tmp_path / "run", "contrasts")["against"]} == {"peak", "shuffled_measure"}
    assert summary_of(tmp_path / "run")["pruning"] is None
    assert "late" in text
    assert "nan" not in text.lower()
    read = sc.rcv(tmp_path / "run" / "rcvs.npz", layer="late").predict(FEATURES["late"])
    assert np.corrcoef(read, AGE)[0, 1] > 0.9


def test_lines_of_a_table_find_their_rows_by_name(tmp_path):
    """Whatever their order; rows without a line are left out."""
    rng = np.random.default_rng(0)
    names, age = tuple(f"{at}.png" for at in range(40)), rng.normal(size=40)
    values = {"a": np.c_[age, rng.normal(size=(40, 3))]}
    Features(values, np.arange(40), (), names=names).save(tmp_path / "f.h5")
    lines = [f"{name},{one},p{at // 2}\n" for at, (name, one) in enumerate(zip(names, age, strict=True))]
    (tmp_path / "t.csv").write_text("image,age,patient\n" + "".join(lines[:1:-1]))
    options = {"splits": 5, "permutations": 0}
    found = sc.probe(tmp_path / "f.h5", tmp_path / "t.csv", "age", groups="patient", **options)
    patients = [f"p{at // 2}" for at in range(2, 40)]
    expected = sc.probe({"a": values["a"][2:]}, age[2:], "age", groups=patients, **options)
    pd.testing.assert_frame_equal(found.table(), expected.table())
    assert found.evidence.groups == 19
    with pytest.raises(ValueError, match="have no names"):
        sc.probe(Features(values, np.arange(40), ()), tmp_path / "t.csv", "age")


def test_rows_without_a_cell_are_left_out(tmp_path):
    path = tmp_path / "study.npz"
    np.savez(path, **FEATURES)
    csv = tmp_path / "table.csv"
    ages = pd.Series(AGE).mask(np.arange(COUNT) < 3)
    patients = np.unique(PATIENTS, return_inverse=True)[1]  # so that no column has text
    pd.DataFrame({"age": ages, "patient": patients}).to_csv(csv, index=False)
    run({**settings_of(path, csv), "permutations": 0}, tmp_path / "run")
    some = sc.probe(
        {layer: values[3:] for layer, values in FEATURES.items()},
        AGE[3:],
        groups=patients[3:],
        splits=4,
        permutations=0,
    )
    np.testing.assert_allclose(table(tmp_path / "run", "layers")["r2"], some.table()["r2"], atol=1e-9)
    assert [*table(tmp_path / "run", "skipped")["image"]] == ["row 1", "row 2", "row 3"]


def test_tables_that_do_not_fit_the_rows(tmp_path):
    path, csv = tmp_path / "study.npz", tmp_path / "table.csv"
    np.savez(path, **FEATURES)
    rows = pd.DataFrame({"image": NAMES, "age": AGE, "patient": PATIENTS})
    settings = settings_of(path, csv)
    rows[1:].to_csv(csv, index=False)
    for changed, message in (
        ({}, "47 lines for 48 rows of features without names"),
        ({"weights": "somewhere"}, "config.weights is 'somewhere' beside features"),
        ({"concept": "scale"}, "concept: scale of features; expected csv:PATH:COLUMN"),
        ({"route": "streamed"}, "config.route is 'streamed'; features"),
        ({"layers": "middle"}, "has no middle; it has late, early"),
    ):
        with pytest.raises(ValueError, match=message):
            run({**settings, **changed}, tmp_path / "run")
    rows.assign(age=["12 years", *AGE[1:]]).to_csv(csv, index=False)
    with pytest.raises(ValueError, match="row 1: age '12 years'; expected a number"):
        run(settings, tmp_path / "run")
    np.savez(path, **FEATURES, names=np.array(NAMES))
    rows.assign(image=[f"other_{name}" for name in NAMES]).to_csv(csv, index=False)
    with pytest.raises(ValueError, match="names none of the 48 images"):
        run(settings, tmp_path / "run")
    reversed_ = pd.Series(AGE, NAMES)[::-1]
    with pytest.raises(ValueError, match="measures begin with tile_47, the features with tile_00"):
        sc.probe(path, reversed_)


def hdf5(write_into):
    def make(folder):
        with h5py.File(folder / "bad.h5", "w") as file:
            write_into(file, folder)
        return folder / "bad.h5"

    return make


def external_link(file, folder):
    file["features"] = FEATURES["late"]
    file["secret"] = h5py.ExternalLink("other.h5", "/features")


def external_storage(file, folder):
    (folder / "raw").write_bytes(bytes(8 * COUNT))
    file.create_dataset("features", (COUNT, 1), "f8", external=[(str(folder / "raw"), 0, 8 * COUNT)])


def virtual(file, folder):
    layout = h5py.VirtualLayout((COUNT, 2), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "features", (COUNT, 2))
    file.create_virtual_dataset("features", layout)


def objects(file, folder):
    file.create_dataset("features", (4,), h5py.vlen_dtype(np.int32))


def arrays(**given):
    def make(folder):
        np.savez(folder / "bad.npz", **given)
        return folder / "bad.npz"

    return make


def parquet(frame):
    def make(folder):
        frame.to_parquet(folder / "bad.parquet")
        return folder / "bad.parquet"

    return make


def anndata(**given):
    def make(folder):
        write_anndata(folder / "bad.h5ad", FEATURES["late"], **given)
        return folder / "bad.h5ad"

    return make


def text_file(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def two_orders(folder):
    for name, names in (("a", NAMES), ("b", NAMES[::-1])):
        np.savez(folder / f"{name}.npz", features=FEATURES["late"], names=np.array(names))
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (hdf5(lambda file, _: None), "no features"),
        (hdf5(external_link), "secret are links"),
        (hdf5(external_storage), "/features lies in other files"),
        (hdf5(virtual), "/features lies in other files"),
        (hdf5(objects), r"features is object \[4\]; expected numbers \[N, D\]"),
        (
            hdf5(lambda file, _: file.create_dataset("x", (10**6, 10**6), "f4", chunks=True)),
            "claims 4,000,000,",
        ),
        (arrays(late=np.zeros((2, 3, 4))), r"late is float64 \[2, 3, 4\]; expected numbers"),
        (arrays(late=np.zeros((9, 0))), r"late is float64 \[9, 0\]"),
        (arrays(a=np.zeros((5, 2)), b=np.zeros((4, 2))), r"b is float64 \[4, 2\]; expected numbers \[5, D\]"),
        (arrays(a=np.array([[1, np.nan]])), "a has 1 values that are not finite"),
        (arrays(a=np.array([[{}]])), "allow_pickle"),
        (arrays(a=np.zeros((2, 2)), names=np.array(["x", "x"])), "1 names of rows come twice"),
        (
            parquet(pd.DataFrame({"f": [1.0], "a": ["x"], "b": ["y"]})),
            "a and b are text; expected one column",
        ),
        (parquet(pd.DataFrame({"f": [1.0], "when": [pd.Timestamp(0)]})), "when: no columns of numbers"),
        (parquet(pd.DataFrame({"f": [1.0, None]})), "bad has 1 values that are not finite"),
        (anndata(encoding="csc_matrix"), "X is csc_matrix; expected a dense array or csr_matrix"),
        (anndata(width=2), "holds no features that can be read"),
        (anndata(width=10**9), "X claims"),
        (text_file("bad.h5", b"no HDF5"), "holds no features that can be read"),
        (text_file("bad.csv", b"a,b"), "not a format of features; expected .h5"),
        (lambda folder: folder / "none.h5", "no such file; expected .h5"),
        (lambda folder: folder, "no features"),
        (two_orders, "different names or another order"),
    ],
)
def test_files_without_usable_features(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        read_features(path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
