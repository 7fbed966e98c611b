"""The same nuclei in a folder of every format; a module of tests, and of the tests of the documents."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import scipy.io
import tifffile
from PIL import Image
from skimage.measure import find_contours

from scalecov_jax.imaging.decoding import encode_png

HEIGHT, WIDTH = 80, 112
MPP = 0.5


def nuclei(seed, count=6, height=HEIGHT, width=WIDTH):
    """An image and its label map: ellipses that do not touch, some at the border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    labels, taken = np.zeros((height, width), np.int32), np.zeros((height, width), bool)
    middle = rng.uniform(6, 9)
    while labels.max() < count:
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        a, b = rng.uniform(0.6, 1.3, 2) * middle
        near = ((y - cy) / (a + 2)) ** 2 + ((x - cx) / (b + 2)) ** 2 < 1
        inside = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1
        if inside.sum() > 20 and not (near & taken).any():
            labels[inside], taken = labels.max() + 1, taken | inside
    image = np.where(labels[..., None] > 0, (90, 50, 130), (230, 190, 215))
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8), labels


def numbers(labels):
    return [one for one in np.unique(labels) if one]


def outline(inside):
    """x, y along the edges of pixels: the middle of each edge, so that rasterising gives the pixels back."""
    (contour,) = find_contours(np.pad(inside.astype(float), 1), 0.5)
    return contour[:, ::-1] - 0.5


def centres(inside):
    """x, y of the centres of the outermost pixels, as findContours of OpenCV."""
    (contour,) = find_contours(np.pad(inside.astype(float), 1), 0.999)
    return np.round(contour[:, ::-1] - 1)


def runs(inside):
    flat = inside.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *([0] if flat[0] else []), *ends, flat.size]).tolist()


def text(counts):
    """Runs as text: differences to the last but one, groups of five bits with a sign in the last."""
    out = ""
    for at, count in enumerate(counts):
        value = count - (counts[at - 2] if at > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            out += chr(48 + bits + 32 * more)
            if not more:
                break
    return out


def polygon(points):
    return {"type": "Polygon", "coordinates": [points.tolist()]}


def qupath(labels, kind="detection"):
    features = [
        {"type": "Feature", "geometry": polygon(outline(labels == one)), "properties": {"objectType": kind}}
        for one in numbers(labels)
    ]
    return {"type": "FeatureCollection", "features": features}


def cellvit(labels):
    every = [[centres(labels == one).tolist()] for one in numbers(labels)]
    feature = {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": every}}
    return [feature | {"properties": {"objectType": "annotation", "classification": {"name": "x"}}}]


def regions(labels):
    inside = "".join(
        "<Region><Vertices>"
        + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in outline(labels == one))
        + "</Vertices></Region>"
        for one in numbers(labels)
    )
    return f'<Annotations MicronsPerPixel="{MPP}"><Annotation><Regions>{inside}</Regions></Annotation></Annotations>'


def coco(every, segmentation):
    images = [{"id": 7 + at, "file_name": f"{name}.png"} for at, name in enumerate(every)]
    objects = [
        {"id": 0, "image_id": 7 + at, "iscrowd": 0, "segmentation": segmentation(labels == one)}
        for at, (_, labels) in enumerate(every.values())
        for one in numbers(labels)
    ]
    return {"images": images, "annotations": objects}


def write_images(folder, every, ending=".png"):
    folder.mkdir(parents=True)
    for name, (image, _) in every.items():
        if ending == ".tif":
            per_cm = 1e4 / MPP
            tifffile.imwrite(
                folder / f"{name}.tif",
                image,
                photometric="rgb",
                resolution=(per_cm, per_cm),
                resolutionunit=3,
            )
        else:
            Image.fromarray(image).save(folder / f"{name}{ending}")


def write_table(folder, every):
    lines = "".join(f"{name}.png,{MPP}\n" for name in every)
    (folder / "index.csv").write_text(f"image,mpp\n{lines}")


def each(folder, every, function, ending):
    for name, (_, labels) in every.items():
        (folder / f"{name}{ending}").write_text(function(labels))


def write(folder, kind, every):
    """Write the images {name: (image, labels)} in one of `FORMATS`."""
    if kind == "arrays":
        height, width = next(iter(every.values()))[1].shape
        folder.mkdir(parents=True)
        images, masks = (folder / "Fold 1" / one / "fold1" for one in ("images", "masks"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        np.save(images / "images.npy", np.stack([image for image, _ in every.values()]).astype(np.float64))
        channels = np.zeros((len(every), height, width, 6))
        for channel in range(5):
            for at, (_, labels) in enumerate(every.values()):
                channels[at, ..., channel] = np.where(labels % 5 == channel, labels, 0)
        channels[..., 5] = channels[..., :5].sum(-1) == 0
        np.save(masks / "masks.npy", channels)
    elif kind.startswith("parquet"):
        folder.mkdir(parents=True)
        rows = []
        for image, labels in every.values():
            row = {"image": {"bytes": encode_png(image), "path": None}}
            if kind == "parquet":
                masks = [png(np.uint8(255) * (labels == one)) for one in numbers(labels)]
                row |= {"instances": [{"bytes": one, "path": None} for one in masks]}
            else:
                row |= {"inst_map": {"bytes": png(labels.astype(np.uint16)), "path": None}}
            rows.append(row)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), folder / "fold1.parquet", row_group_size=4
        )
    elif kind == "xml":
        write_images(folder / "Tissue Images", every, ".tif")
        (folder / "Annotations").mkdir()
        each(folder / "Annotations", every, regions, ".xml")
    elif kind == "mat":
        write_images(folder / "Images", every)
        write_table(folder, every)
        (folder / "Labels").mkdir()
        for name, (_, labels) in every.items():
            scipy.io.savemat(
                folder / "Labels" / f"{name}.mat", {"inst_map": labels.astype(float), "type": [[1]]}
            )
    else:
        write_images(folder, every, ".tif" if kind == "label tif" else ".png")
        if kind != "label tif":
            write_table(folder, every)
        if kind == "geojson":
            each(folder, every, lambda labels: json.dumps(qupath(labels)), ".geojson")
        elif kind == "cellvit":
            each(folder, every, lambda labels: json.dumps(cellvit(labels)), ".geojson")
        elif kind.startswith("coco"):
            how = {
                "coco": lambda inside: [outline(inside).ravel().tolist()],
                "coco runs": lambda inside: {"size": [*inside.shape], "counts": runs(inside)},
                "coco text": lambda inside: {"size": [*inside.shape], "counts": text(runs(inside))},
            }
            (folder / "annotations.json").write_text(json.dumps(coco(every, how[kind])))
        for name, (_, labels) in every.items():
            if kind == "label tif":
                tifffile.imwrite(folder / f"{name}_labels.tif", labels.astype(np.uint16))
            elif kind == "label png":
                Image.fromarray(labels.astype(np.uint16)).save(folder / f"{name}_labels.png")
            elif kind == "mask":
                Image.fromarray(np.uint8(255) * (labels > 0)).save(folder / f"{name}_mask.png")
    return folder


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


FORMATS = (
    "label png", "label tif", "mask", "mat", "arrays", "parquet", "parquet map", "xml", "coco", "coco runs", "coco text",
    "geojson", "cellvit",
)  # fmt: skip
