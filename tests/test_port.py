"""Ports: every format, both directions of the check, bad files, downloads, and the real weights."""

import hashlib
import http.server
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save_file

from scalecov_jax import checkpoints
from scalecov_jax.extraction import pooled_features
from scalecov_jax.imaging.decoding import decode_image, resize_image
from scalecov_jax.models import download, parity
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.folding import fold
from scalecov_jax.models.port import checksum, port
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.models.sources import source_name

ROOT = Path(__file__).parents[1]
WIDTH, CLASSES = 0.125, 5
REAL = {
    "inception_v3": ("inception_v3_imagenet2015_to_mixed8.h5", "tf", "mixed8"),
    "resnet50": ("resnet50_imagenet_int8pruned.h5", "torch", None),
}


def layout_of(name, family):
    return next(x for x in ARCHITECTURES[name].sources.layouts if x.family == family)


def tensors(name, family, **options) -> dict[str, np.ndarray]:
    """Random tensors with the source's names and shapes, in the order of its blocks."""
    architecture, layout = ARCHITECTURES[name], layout_of(name, family)
    options = {"width": WIDTH, "classes": CLASSES, **layout.options, **options}
    rng = np.random.default_rng(3)
    made = {}
    abstract = flatten_dict(abstract_variables(architecture.module(**options), architecture))
    for path, leaf in abstract.items():
        values = rng.uniform(0.1, 1.0, leaf.shape).astype(np.float32)
        if layout.family == "torch":
            values = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
        if source_name(layout, path):
            made[source_name(layout, path)] = np.ascontiguousarray(values)
    return made


def write_keras(path: Path, values: dict[str, np.ndarray], nested: bool = True, root: str = "") -> Path:
    with h5py.File(path, "w") as file:
        for name, tensor in values.items():
            layer, leaf = name.split("/")
            file[f"{root}{layer}/{layer}/{leaf}:0" if nested else f"{root}{layer}/{leaf}:0"] = tensor
    return path


@pytest.fixture
def inception(tmp_path):
    values = tensors("inception_v3", "keras")
    return write_keras(tmp_path / "inception.h5", values), values


def same(left, right) -> bool:
    left, right = flatten_dict(left.variables), flatten_dict(right.variables)
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def test_layouts_of_keras_hdf5(tmp_path):
    values = tensors("inception_v3", "keras")
    nested = port(write_keras(tmp_path / "a.h5", values), "inception_v3", "tf")
    assert nested.card.options == {"width": WIDTH, "classes": CLASSES}
    assert same(port(write_keras(tmp_path / "b.h5", values, nested=False), "inception_v3", "tf"), nested)
    whole = write_keras(tmp_path / "c.h5", values, root="model_weights/")
    assert same(port(whole, "inception_v3", "tf"), nested)


def test_resnet_of_before_2019(tmp_path):
    new = tensors("resnet50", "keras")
    keras_1 = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}

    def old_name(name):
        layer, leaf = name.split("/")
        if match := re.fullmatch(r"conv(\d)_block(\d)_(\d)_(conv|bn)", layer):
            stage, block, branch, kind = match.groups()
            branch = {"0": "1", "1": "2a", "2": "2b", "3": "2c"}[branch]
            layer = f"{'res' if kind == 'conv' else 'bn'}{stage}{'_abcdef'[int(block)]}_branch{branch}"
        layer = {"conv1_conv": "conv1", "conv1_bn": "bn_conv1", "predictions": "fc1000"}.get(layer, layer)
        return f"{layer}/{layer}_{keras_1.get(leaf, leaf)}_1"

    old = {old_name(name): values for name, values in new.items()}
    expected = port(write_keras(tmp_path / "new.h5", new), "resnet50", "caffe")
    found = port(write_keras(tmp_path / "old.h5", old, nested=False), "resnet50", "caffe", max_pool_padding=0)
    assert found.card.options == {"width": WIDTH, "classes": CLASSES, "max_pool_padding": 0}
    assert found.card.notes["layout"] == "Keras before 2019"
    found, expected = flatten_dict(found.variables), flatten_dict(expected.variables)
    for path, values in expected.items():
        # Its variances had another epsilon added to them.
        shift = 1e-3 - 1.001e-5 if path[-1] == "var" else 0
        np.testing.assert_allclose(found[path], values + shift, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("resnet50", "6487a6e40bc7989fd428df875229dae6990a235e6c34110c3ef8ff274d7e1214"),
        ("inception_v3", "3219087b3cf73148e7ac52388ea5c31b41bea21058518ce0f033fdd1639f70b5"),
    ],
)
def test_names_and_shapes_are_those_of_torchvision(name, digest):
    """Digests of state_dict() of torchvision 0.29.2 in its order, num_batches_tracked and AuxLogits left out."""
    layout = layout_of(name, "torch")
    values = tensors(name, "torch", width=1.0, classes=1000)

    def order(block):  # torchvision makes the shortcut of a block last.
        return [int(part) for part in re.findall(r"\d+", re.sub(r"_0$", "_4", block))]

    blocks = [path for path in layout.modules if f"{path}/norm" in layout.modules]
    if name == "resnet50":
        blocks.sort(key=order)
    leaves = {"": ["weight"], "/norm": ["weight", "bias", "running_mean", "running_var"]}
    keys = [
        f"{layout.modules[block + part]}.{leaf}"
        for block in blocks
        for part in leaves
        for leaf in leaves[part]
    ]
    keys += ["fc.weight", "fc.bias"]
    assert set(keys) == values.keys()
    lines = "\n".join(f"{key} {list(values[key].shape)}" for key in keys)
    assert hashlib.sha256(lines.encode()).hexdigest() == digest


@pytest.mark.parametrize("name", ["inception_v3", "resnet50"])
def test_safetensors_round_trip(name, tmp_path):
    layout = layout_of(name, "torch")
    values = tensors(name, "torch")
    norms = [source for path, source in layout.modules.items() if path.endswith("/norm")]
    extra = {f"{norm}.num_batches_tracked": np.asarray(1) for norm in norms}
    if name == "inception_v3":
        extra["AuxLogits.fc.weight"] = np.zeros((5, 3), np.float32)
    save_file({**values, **extra}, tmp_path / "model.safetensors")
    ported = port(tmp_path / "model.safetensors", name, "torch", class_names=list("abcde"))
    assert ported.card.options == {"width": WIDTH, "classes": CLASSES, **layout.options}
    assert ported.card.notes["ignored"]["num_batches_tracked"] == len(norms)
    assert ported.card.notes["ignored"].get("AuxLogits", 0) == (name == "inception_v3")
    assert ported.card.class_names == tuple("abcde")
    assert ported.card.origin == "model.safetensors"
    assert ported.card.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    used = set()
    for path, found in flatten_dict(ported.variables).items():
        source = source_name(layout, path)
        if source is None:
            assert path[-1] == "bias"
            assert not found.any()
            continue
        used.add(source)
        expected = values[source]
        expected = expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected.T
        if path[-1] == "var":
            # What matters is the sum with the epsilon: equal in both libraries.
            epsilons = (layout.epsilon, ported.architecture.epsilon)
            found, expected = found + epsilons[1], expected + epsilons[0]
            np.testing.assert_allclose(found, expected, rtol=2e-7)
        else:
            np.testing.assert_array_equal(found, expected)
    assert used == values.keys()


def test_pth_is_loaded_without_running_code(tmp_path, monkeypatch):
    values = tensors("resnet50", "torch")
    save_file(values, tmp_path / "a.safetensors")

    def parameter(values):
        """A tensor that NumPy has no precision for and that has a gradient, as far as it is looked at."""
        wide = SimpleNamespace(numpy=lambda: values)
        plain = SimpleNamespace(is_sparse=False, shape=values.shape, float=lambda: wide)
        plain.cpu, plain.is_floating_point, plain.element_size = lambda: plain, lambda: True, lambda: 2
        return SimpleNamespace(detach=lambda: plain, shape=values.shape)

    def load(path, map_location, weights_only):
        assert weights_only is True
        if path.name == "evil.pth":
            raise pickle.UnpicklingError("Re-running with weights_only=False will likely succeed")
        state = {f"module.{name}": parameter(tensor) for name, tensor in values.items()}
        return {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}}}

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=load))
    for name in ("a.pth", "evil.pth"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 stands for one")
    ported = port(tmp_path / "a.pth", "resnet50", "torch")
    assert same(ported, port(tmp_path / "a.safetensors", "resnet50", "torch"))
    with pytest.raises(ValueError, match=r"evil\.pth .*could run code") as caught:
        port(tmp_path / "evil.pth", "resnet50", "torch")
    assert "weights_only" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"a\.pth needs torch.*\[torch\]"):
        port(tmp_path / "a.pth", "resnet50", "torch")


def test_a_file_without_top_is_refused_for_the_whole_network(tmp_path):
    file = write_keras(tmp_path / "notop.h5", tensors("resnet50", "keras", last="add_16"))
    with pytest.raises(ValueError, match=r"2 tensors missing from pre_softmax .*--last=add_16\."):
        port(file, "resnet50", "caffe")
    ported = port(file, "resnet50", "caffe", "add_16")
    assert ported.card.options == {"last": "add_16", "width": WIDTH}
    cut = port(file, "resnet50", "caffe", "add_14")
    assert cut.card.notes["beyond_last"] == {"add_15": 18, "add_16": 18}


def test_all_mismatches_come_in_one_message(inception, tmp_path):
    _, values = inception
    del values["conv2d_90/kernel"]
    values["conv2d_7/kernel"] = values["conv2d_7/kernel"][..., :-1]
    values["extra/kernel"] = values["conv2d_1/kernel"]
    values["conv2d_8/kernel"][0, 0, 0, 0] = np.nan
    values["batch_normalization_9/moving_variance"][:] = -1
    values["batch_normalization_3/beta"] = np.arange(8)
    with pytest.raises(ValueError, match="does not fit") as caught:
        port(write_keras(tmp_path / "bad.h5", values), "inception_v3", "tf")
    message = str(caught.value)
    for part in (
        "bad.h5",
        "1 tensor missing from mixed10 (conv2d_90/kernel)",
        "1 tensor unexpected (extra/kernel)",
        "1 tensor of the wrong shape (conv2d_7/kernel [1, 1, 24, 5] instead of [1, 1, 24, 6])",
        "3 tensors with NaN, infinity, negative variances or no floating-point numbers",
        "conv2d_8/kernel",
        "It is not complete up to any layer",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_truncated_files_are_named(inception, tmp_path, share):
    save_file(tensors("resnet50", "torch"), tmp_path / "whole.safetensors")
    for whole, name, preprocessing, message in (
        (inception[0], "inception_v3", "tf", r"^cut\.h5 "),
        (
            tmp_path / "whole.safetensors",
            "resnet50",
            "torch",
            "^cut.safetensors cannot be read as a safetensors",
        ),
    ):
        content, cut = whole.read_bytes(), tmp_path / f"cut{whole.suffix}"
        cut.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=message):
            port(cut, name, preprocessing)


def test_files_in_other_formats(tmp_path):
    evil, kernel = pickle.dumps(SystemExit), np.zeros((3, 3, 3, 64), np.float32)
    unreadable = "no weight file that can be read"
    cases = {
        "empty.h5": (b"", "is empty"),
        "text.h5": (b"version https://git-lfs", "begins with b'version '"),
        "pickle.h5": (evil, unreadable),
        "pickle.npz": (evil, unreadable),
        "pickle.safetensors": (evil, "cannot be read as a safetensors file"),
        "absent.h5": (None, "is no file"),
        "folder": (None, "is a folder"),
        "hollow.h5": ((), "holds no weights"),
        "vgg.h5": (("block1_conv1",), "holds vgg16 .* and not inception_v3; pass --architecture=vgg16"),
        "xception.h5": (("block1_conv9",), "holds no inception_v3.*block1_conv9/kernel.*conv2d_1"),
        "twice.h5": (("net/conv2d_1", "net/conv2d_2", "conv2d_1"), "holds conv2d_1/kernel more than once"),
        "huge.h5": (None, "claims"),
    }
    (tmp_path / "folder").mkdir()
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("conv2d_1/kernel:0", (2**20, 2**20), np.float32, chunks=(1024, 1024))
    for name, (content, message) in cases.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            with h5py.File(tmp_path / name, "w") as file:
                for layer in content:
                    file[f"{layer}/kernel:0"] = kernel
        with pytest.raises(ValueError, match=f"{re.escape(name)} .*{message}"):
            port(tmp_path / name, "inception_v3", "tf")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {}, "holds inception_v3 .* and not resnet50; pass --architecture"),
        ("inception_v4", {}, "did you mean inception_v3"),
        ("inception_v3", {"last": "mixed11"}, "no layer 'mixed11'"),
        (
            "inception_v3",
            {"class_names": ["a", "b"]},
            "2 class names were given, and the network has 5 outputs",
        ),
        (
            "inception_v3",
            {"class_names": ["a"], "last": "mixed3"},
            "1 class names were .* the network has no head",
        ),
        ("inception_v3", {"max_pool_padding": 0}, "no max_pool_padding"),
    ],
)
def test_wrong_names_given(inception, name, options, message):
    with pytest.raises(ValueError, match=message):
        port(inception[0], name, "tf", **options)


class Handler(http.server.BaseHTTPRequestHandler):
    content = b"x" * 100_000

    def do_GET(self):
        self.send_response(200 if self.path != "/absent.h5" else 404)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[:50_000] if self.path == "/cut.h5" else self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_downloads_appear_only_when_complete_and_right(address, tmp_path):
    md5 = hashlib.md5(Handler.content).hexdigest()
    folder = tmp_path / "new"
    file = download.fetch(download.Official(f"{address}/a.h5", md5, True), folder / "a.h5")
    assert file.read_bytes() == Handler.content
    gone = download.Official(f"{address}/absent.h5", md5, True)
    assert download.fetch(gone, file) == file  # It is there already, and right.
    for path, digest, message in (
        ("/b.h5", "0" * 32, "does not match"),
        ("/cut.h5", md5, "50000"),
        ("/absent.h5", md5, "404"),
    ):
        with pytest.raises(ValueError, match=message):
            download.fetch(download.Official(address + path, digest, True), folder / "b.h5")
    with pytest.raises(ValueError, match="not the expected"):
        download.fetch(download.Official(gone.address, "0" * 32, True), file)
    assert [path.name for path in folder.iterdir()] == ["a.h5"]


def test_the_official_file_that_suits():
    assert download.choose("inception_v3").digest == "9a0d58056eeedaa3f26cb7ebd46da564"
    assert download.choose("inception_v3", "mixed8").address.endswith("_notop.h5")
    assert download.choose("resnet50", "pre_softmax").top
    assert "v0.2" in download.choose("resnet50", "add_15", max_pool_padding=0).address
    with pytest.raises(ValueError, match="add_15"):
        download.choose("resnet50", "add_151")


def script(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "port_weights.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)


def test_script_writes_a_checkpoint_or_one_line(inception, tmp_path):
    file, _ = inception
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    output = tmp_path / "checkpoint"
    flags = ("--architecture=inception_v3", f"--source={file}", "--preprocessing=tf", f"--output={output}")
    done = script(*flags, f"--class_names={tmp_path / 'names.txt'}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"sha256 +" + checksum(file), done.stdout)
    loaded = checkpoints.load(output)
    assert same(loaded, port(file, "inception_v3", "tf"))
    assert loaded.card.class_names == tuple("abcde")
    refused = script(*flags)
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "--overwrite" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "inception.h5", "names.txt"]


@pytest.mark.parametrize("name", list(REAL))
def test_real_weights_equal_the_reference(shared, name):
    """Pooled features of 16 photographs at every layer, as an independent implementation computed them."""
    file, preprocessing, last = REAL[name]
    ported = port(shared / "weights" / file, name, preprocessing, last)
    reference = np.load(shared / "reference" / "gap_features_16_cars.npz")
    folder = shared / "data" / "voc_single" / "JPEGImages"
    images = [resize_image(decode_image(folder / file), 299) for file in reference["files"]]
    ours = {"pool1": "max_pooling2d_1", "pool2": "max_pooling2d_2"}
    keys = [key.removeprefix(f"{name}/") for key in reference.files if key.startswith(f"{name}/")]
    expected = {ours.get(key, key): reference[f"{name}/{key}"] for key in keys}
    if "avg_pool" in expected:
        # It follows add_16, whose ReLU comes before the mean, so it is seen through the head.
        head, average = ported.variables["params"]["pre_softmax"], expected.pop("avg_pool")
        logits = average @ head["kernel"] + head["bias"][None]
        np.testing.assert_allclose(logits, expected["pre_softmax"], atol=1e-3)
    for module, variables in (
        (ported.module, ported.variables),
        fold(ported.module, ported.variables, ported.architecture.epsilon),
    ):
        found = jax.jit(lambda v, x, m=module: pooled_features(m, v, x, tuple(expected), preprocessing))(
            variables, jnp.asarray(images)
        )
        errors = {x: parity.relative_error(np.asarray(found[x]), values) for x, values in expected.items()}
        print(name, "worst", max(errors.items(), key=lambda item: item[1]))
        assert all(error <= 1e-4 for error in errors.values()), errors


def test_real_inception_stops_at_mixed8(shared):
    file = shared / "weights" / REAL["inception_v3"][0]
    message = r"74 tensors missing from mixed9, mixed10, pre_softmax .*--last=mixed8\."
    with pytest.raises(ValueError, match=message):
        port(file, "inception_v3", "tf")


@pytest.mark.large
def test_real_resnet_classifies_imagenet(shared):
    """Shorter side 256, centre crop 224, as torchvision documents for these weights."""
    ported = port(shared / "weights" / REAL["resnet50"][0], "resnet50", "torch", "pre_softmax")
    folder = shared / "data" / "imagenet_samples"
    table = pd.read_csv(folder / "index.csv")

    def crop(file):
        image = Image.fromarray(decode_image(folder / "images" / file))
        size = [round(side * 256 / min(image.size)) for side in image.size]
        left, top = ((side - 224) // 2 for side in size)
        scaled = image.resize(size, Image.Resampling.BILINEAR)
        return np.array(scaled.crop((left, top, left + 224, top + 224)))

    classify = jax.jit(
        lambda v, x: pooled_features(ported.module, v, x, ("pre_softmax",), "torch")["pre_softmax"].argmax(1)
    )
    batch = jnp.asarray([crop(file) for file in table["file"]])
    predicted = np.concatenate([classify(ported.variables, part) for part in np.split(batch, 2)])
    accuracy = float((predicted == table["class_index"]).mean())
    print("top-1", accuracy)
    assert accuracy >= 0.8
