"""Features of many images, and the files that hold them: HDF5 of TRIDENT and CLAM, AnnData, parquet and NumPy's own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from scalecov_jax.atomic import MOST_INSIDE, load_arrays, replacing
from scalecov_jax.imaging.csv_file import NAMES
from scalecov_jax.imaging.image_set import Skipped, listed

_NAMES = ("names", *NAMES)


class Features(NamedTuple):
    """What was computed from a source, or read from a file.

    Attributes:
        values: Pooled features of each layer, float32; of a file as they are there.
        indices: Which examples of the source the rows come from.
        skipped: The examples that could not be decoded.
        origins: Of each layer the fingerprint of the network (`checkpoints.fingerprints`), so that what was fitted on other
            features is not used on these; empty if unknown.
        pooling: How maps became features; empty if unknown.
        names: Of the images; empty if unknown.
    """

    values: dict[str, Float[np.ndarray, "N D"]]
    indices: Int[np.ndarray, " N"]
    skipped: tuple[Skipped, ...]
    origins: Mapping[str, str] = {}
    pooling: str = ""
    names: tuple[str, ...] = ()

    def table(self) -> pd.DataFrame:
        """One row per image and one column per feature, called LAYER_NUMBER."""
        parts = [
            pd.DataFrame(values, columns=[f"{layer}_{d}" for d in range(values.shape[1])])
            for layer, values in self.values.items()
        ]
        rows = pd.Index(self.names or self.indices, name="image")
        return pd.concat(parts, axis=1).set_index(rows)

    def take(self, rows: Int[np.ndarray, " n"]) -> "Features":
        """Some of the rows, in the order given."""
        values = {layer: values[rows] for layer, values in self.values.items()}
        names = tuple(self.names[row] for row in rows) if self.names else ()
        return self._replace(values=values, indices=self.indices[rows], names=names)

    def save(self, path: str | Path) -> None:
        """Write one dataset [N, D] per layer, and `names`, to an `.h5` file that `read_features` reads.

        `indices` and `skipped`, which belong to the source, are left out.

        Raises:
            ValueError: Another suffix.
            OSError: See `atomic.replacing`.
        """
        path = Path(path).expanduser()
        if path.suffix not in (".h5", ".hdf5"):
            raise ValueError(f"{path}: features are written to files that end in .h5.")
        with replacing(path) as partial, h5py.File(partial, "w", track_order=True) as file:
            file.attrs["pooling"] = self.pooling
            for layer, values in self.values.items():
                dataset = file.create_dataset(layer, data=values)
                dataset.attrs["origin"] = self.origins.get(layer, "")
            if self.names:
                file.create_dataset("names", data=[*self.names], dtype=h5py.string_dtype())

    def _repr_html_(self) -> str:
        return self.table().to_html(max_rows=6, max_cols=8)


def read_features(path: str | Path) -> Features:
    """Read the features [N, D] of every layer that a file, or a folder with one file per layer, holds.

    Formats, by suffix:
    - `.h5`, `.hdf5` (TRIDENT, CLAM, `Features.save`): every dataset [N, D] is a layer, called by its path; `coords` are left out.
    - `.h5ad` (AnnData): X, dense or CSR, and the index of obs as names.
    - `.parquet`: the columns of numbers are the features; a column of text, or an index of text, has the names.
    - `.npz`, `.npy`: every array [N, D] is a layer.

    Texts [N] of HDF5 and `.npz` called names (or as in `csv_file.NAMES`) are the names of the rows. Of a folder, layers go by the
    names of the files.

    Raises:
        ValueError: No such file or another format; no features; anything but finite numbers [N, D]; layers of different N or of
            different names of rows; links to other files and virtual datasets. One message with all problems of the file.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return _read(path)
    read, problems = {}, []
    for one in sorted(one for one in path.iterdir() if one.suffix.lower() in _READERS):
        try:
            found = _read(one)
        except ValueError as error:
            problems.append(str(error))
            continue
        several = len(found.values) > 1
        read |= {f"{one.stem}/{name}" if several else one.stem: (found, name) for name in found.values}
    named = {found.names for found, _ in read.values() if found.names}
    if len(named) > 1:
        problems.append(f"{path}: the rows of its files have different names or another order.")
    if problems:
        raise ValueError(" ".join(problems))
    return _features(
        path,
        {layer: found.values[name] for layer, (found, name) in read.items()},
        next(iter(named), ()),
        {layer: found.origins[name] for layer, (found, name) in read.items() if name in found.origins},
        "/".join(sorted({found.pooling for found, _ in read.values()})),
    )


def _read(path: Path) -> Features:
    reader = _READERS.get(path.suffix.lower())
    if reader is None or not path.is_file():
        what = "not a format of features" if path.is_file() else "no such file"
        raise ValueError(f"{path}: {what}; expected {', '.join(_READERS)}, or a folder of such files.")
    try:
        found = reader(path)
    except Exception as error:  # h5py, pyarrow and numpy raise anything on a damaged file
        problem = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} holds no features that can be read: {problem}") from error
    return _features(path, *found)


def _features(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    names: tuple[str, ...] = (),
    origins: Mapping[str, str] | None = None,
    pooling: str = "",
) -> Features:
    """Arrays that are features of the same rows."""
    count, problems = max([len(names), *(one.shape[0] for one in arrays.values() if one.ndim == 2)]), []
    for layer, values in arrays.items():
        if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size or len(values) != count:
            problems.append(
                f"{layer} is {values.dtype} {list(values.shape)}; expected numbers [{count or 'N'}, D]"
            )
        elif bad := int((~np.isfinite(values)).sum()):
            problems.append(f"{layer} has {bad} values that are not finite")
    if names and len({*names}) < len(names):
        problems.append(f"{len(names) - len({*names})} names of rows come twice")
    if problems or not arrays:
        raise ValueError(f"{path}: {listed(problems) or 'no features [N, D]'}.")
    return Features(dict(arrays), np.arange(count), (), origins or {}, pooling, names)


def _text(values: Any) -> tuple[str, ...]:
    return tuple(one.decode() if isinstance(one, bytes) else str(one) for one in values)


def _whole(path: Path, name: str, size: int) -> None:
    """Refuse what would take far more memory than a file of this size can hold."""
    if size > max(MOST_INSIDE, 100 * path.stat().st_size):
        raise ValueError(f"{name} claims {size:,} bytes in a file of {path.stat().st_size:,}")


def _dataset(path: Path, item: Any) -> np.ndarray:
    if not isinstance(item, h5py.Dataset):
        raise ValueError("there is no dataset where one is expected")
    if item.is_virtual or item.external:
        raise ValueError(f"{item.name} lies in other files (virtual or external); copy it into this one")
    _whole(path, str(item.name), item.size * item.dtype.itemsize)
    return item[...]


def _read_hdf5(path: Path) -> tuple[Any, ...]:
    with h5py.File(path, "r") as opened:
        file: Any = opened
        if "X" in file and "obs" in file:
            return _anndata(path, file)
        links: list[str] = []
        file.visititems_links(
            lambda name, link: None if isinstance(link, h5py.HardLink) else links.append(name)
        )
        if links:
            raise ValueError(
                f"{', '.join(links)} are links, maybe to other files; copy the data into this one"
            )
        arrays, names, origins = {}, (), {}
        for name, item in _datasets(file):
            leaf = name.rpartition("/")[2]
            if leaf == "coords":
                continue
            values = _dataset(path, item)
            if leaf in _NAMES and h5py.check_string_dtype(item.dtype) and values.ndim == 1:
                names = _text(values)
                continue
            arrays[name] = values
            if origin := item.attrs.get("origin"):
                origins[name] = str(origin)
        return arrays, names, origins, str(file.attrs.get("pooling", ""))


def _datasets(group: h5py.Group, above: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """All datasets, in the order in which they were written where the file knows it."""
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from _datasets(item, f"{above}{name}/")
        elif isinstance(item, h5py.Dataset):
            yield f"{above}{name}", item


def _anndata(path: Path, file: Any) -> tuple[Any, ...]:
    """X and the names of the observations, as AnnData 0.7 and later write them."""
    given, obs = file["X"], file["obs"]
    parts: list[Any] = []
    if isinstance(given, h5py.Group):
        parts = [given[one] for one in ("data", "indices", "indptr")]
    if parts:
        kind = str(given.attrs.get("encoding-type", "of no known encoding"))
        if kind != "csr_matrix":
            raise ValueError(f"X is {kind}; expected a dense array or csr_matrix")
        shape: Any = given.attrs["shape"]
        rows, width = map(int, shape)
        _whole(path, "X", rows * width * parts[0].dtype.itemsize)
        sparse = csr_array(tuple(_dataset(path, one) for one in parts), shape=(rows, width))
        sparse.check_format(full_check=True)  # else numbers outside would be written outside the array
        values = sparse.toarray()
    else:
        values = _dataset(path, given)
    index = obs[str(obs.attrs.get("_index", "_index"))]
    return {"X": values}, _text(_dataset(path, index))


def _read_parquet(path: Path) -> tuple[Any, ...]:
    table = pd.read_parquet(path)
    texts = [name for name in table if pd.api.types.is_string_dtype(table[name])]
    known = [name for name in texts if str(name) in _NAMES] or texts
    if len(known) > 1:
        raise ValueError(
            f"{' and '.join(map(str, known))} are text; expected one column of names, such as name"
        )
    names = _text(table[known[0]]) if known else ()
    if not known and pd.api.types.is_string_dtype(table.index):
        names = _text(table.index)
    numbers = table.drop(columns=texts)
    if wrong := [str(name) for name in numbers if numbers[name].dtype.kind not in "fiu"]:
        raise ValueError(f"{listed(wrong)}: no columns of numbers")
    return {path.stem: numbers.to_numpy()}, names


def _read_numpy(path: Path) -> tuple[Any, ...]:
    stored = load_arrays(path)
    arrays = stored if isinstance(stored, dict) else {path.stem: stored}
    found = [
        one for one in _NAMES if one in arrays and arrays[one].ndim == 1 and arrays[one].dtype.kind == "U"
    ]
    return arrays, _text(arrays.pop(found[0])) if found else ()


_READERS: dict[str, Callable[[Path], tuple[Any, ...]]] = {
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".h5ad": _read_hdf5,
    ".parquet": _read_parquet,
    ".npz": _read_numpy,
    ".npy": _read_numpy,
}


def check_order(names: Sequence[str], measures: Any) -> None:
    """Refuse measures of the same images in another order than the features."""
    index = [*measures.index] if isinstance(measures, pd.DataFrame | pd.Series) else [*names]
    if index != [*names] and {*index} == {*names}:
        raise ValueError(
            f"The measures begin with {index[0]}, the features with {names[0]}: put both, and groups, into one order."
        )


def check_features(
    given: Mapping[str, Any], measures: Any, concept: str | Sequence[str]
) -> tuple[dict[str, np.ndarray], Float[np.ndarray, "N M"], list[str]]:
    """Features and measures as arrays that fit each other, and the names of the measures."""
    names = [concept] if isinstance(concept, str) else [*concept]
    if isinstance(measures, pd.DataFrame):
        names = names if any(names) else [*map(str, measures.columns)]
        measures = measures[names]
    elif isinstance(measures, pd.Series) and not any(names):
        names = [str(measures.name or "measure")]
    target = np.asarray(measures, np.float64)
    target = target[:, None] if target.ndim == 1 else target
    if target.ndim != 2:
        raise ValueError(f"The measures have the shape {target.shape}; expected [N] or [N, M].")
    if not any(names):
        names = ["measure"] if target.shape[1] == 1 else [f"measure_{m}" for m in range(target.shape[1])]
    values, problems = {}, []
    if len(names) != target.shape[1]:
        problems.append(f"{len(names)} names for {target.shape[1]} measures")
    for layer, one in given.items():
        array = np.asarray(one)
        if array.ndim != 2 or array.dtype.kind not in "fiu" or len(array) != len(target):
            problems.append(
                f"{layer} is {array.dtype} of shape {array.shape}; expected numbers [{len(target)}, D]"
            )
        elif not np.isfinite(array).all():
            problems.append(f"{layer} has {int((~np.isfinite(array)).sum())} values that are not finite")
        values[str(layer)] = array
    if problems or not values:
        raise ValueError(f"These features cannot be probed: {'; '.join(problems) or 'there is no layer'}.")
    return values, target, names
