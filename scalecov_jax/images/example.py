"""One image with what is known about it, and how stored pixels become an RGB array."""

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image, UnidentifiedImageError

# Named, because Pillow's own list runs Ghostscript on an EPS file.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
MAX_PIXELS = 80_000_000
MIN_IMAGES = 10
Filter = Literal["lanczos", "bilinear", "bicubic", "nearest"]
FILTERS: tuple[Filter, ...] = get_args(Filter)


class Box(NamedTuple):
    """Corners of a box in pixels, 1-based and inclusive as in PASCAL VOC: the width is x_max - x_min + 1."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


class Example(NamedTuple):
    """One image.

    Attributes:
        image: Stored pixels, RGB.
        label: Class of the image, if it has one.
        box: The object, in pixels of `image`.
        mask: Instance numbers (0 is background) or foreground, in pixels of `image`.
        group: What must not be split between training and test: slide, patient or source image.
        name: Names the image to a person.
        file_bytes: Size of the file that `image` was decoded from; None where there is none, or where the pixels were changed.
    """

    image: UInt8[np.ndarray, "H W 3"]
    label: str | None
    box: Box | None
    mask: Integer[np.ndarray, "H W"] | Bool[np.ndarray, "H W"] | None
    group: str
    name: str
    file_bytes: int | None = None


@runtime_checkable
class Source(Protocol):
    """A sequence of examples, read when asked for: a list, a folder, a tfds data source or a renderer."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


class Skipped(NamedTuple):
    """An image that is left out: `reason` can be counted, `detail` says what was given."""

    name: str
    reason: str
    detail: str


class ImageError(ValueError):
    """An image that cannot be decoded; holds its name and the problem."""

    def __init__(self, name: str, problem: str):
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


def count_reasons(skipped: Iterable[Skipped]) -> dict[str, int]:
    """Count skipped images by reason, most frequent first."""
    return dict(Counter(skip.reason for skip in skipped).most_common())


def image_size(source: str | Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Read width and height (pixels) from the header of an image, without decoding it.

    Args:
        source: A path, or the bytes of a file.
        name: Names the image in errors; the path when absent.

    Raises:
        ImageError: No image, an unknown format, or more than `MAX_PIXELS` pixels.
    """
    return _read(source, name, lambda image: image.size)


def file_size(source: str | Path | bytes) -> int:
    """Bytes of an image file that exists, given as in `decode_image`."""
    return len(source) if isinstance(source, bytes) else Path(source).stat().st_size


def decode_image(source: str | Path | bytes, name: str | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file to 8-bit RGB.

    Greyscale is repeated; palettes are looked up; transparency is laid over white; CMYK is converted without
    its colour profile; 16-bit greyscale is divided by 257, so that 65535 becomes 255; 16-bit colour keeps its
    upper byte. EXIF orientation is not applied: boxes and masks were drawn on the stored pixels. Of an
    animation the first frame is taken.

    Args:
        source: A path, or the bytes of a file.
        name: Names the image in errors; the path when absent.

    Raises:
        ImageError: A ValueError that names the image: missing, truncated, no image, an unknown format,
            floating-point or 32-bit pixels, or more than `MAX_PIXELS` pixels.
    """
    return _read(source, name, _to_rgb)


def decode_mask(source: str | Path | bytes, name: str | None = None) -> UInt8[np.ndarray, "H W"]:
    """Decode a foreground mask: the first channel of the image, 8 bit; arguments and errors as in `decode_image`."""
    return _read(source, name, lambda image: _to_rgb(image)[..., 0])


def decode_labels(source: str | Path | bytes, name: str | None = None) -> Integer[np.ndarray, "H W"]:
    """Decode instance numbers (0 is background) from a greyscale or palette image of up to 32 bits.

    Raises:
        ImageError: See `decode_image`; also an image with several channels.
    """
    return _read(source, name, _to_integers)


def resize_image(
    image: UInt8[np.ndarray, "H W 3"], size: int, filter: Filter = "lanczos"
) -> UInt8[np.ndarray, "size size 3"]:
    """Resize to a square of `size` pixels with a filter of Pillow; the aspect ratio is not kept.

    Where the image shrinks, all filters but nearest widen with the step and so average over every pixel (antialiasing); nearest
    takes single pixels.
    """
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling[filter.upper()]))


def central_square(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "side side 3"]:
    """The largest square around the centre; one row or column more is cut off at the end where that is odd."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def clip_to_square(box: Box, height: int, width: int) -> Box | None:
    """What `central_square` leaves of a box, in pixels of the square; None where nothing is left."""
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    clipped = Box(
        max(box.x_min - left, 1.0),
        max(box.y_min - top, 1.0),
        min(box.x_max - left, float(side)),
        min(box.y_max - top, float(side)),
    )
    return clipped if clipped.x_min <= clipped.x_max and clipped.y_min <= clipped.y_max else None


def _read(source, name, function):
    name = name or (f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source))
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than the {MAX_PIXELS} that are decoded")
            return function(image)
    except FileNotFoundError:
        problem = "no such file"
    except UnidentifiedImageError:
        problem = f"not an image in one of the formats {', '.join(FORMATS)}"
    # Pillow's plugins raise whatever their parsing runs into, from KeyError to struct.error.
    except Exception as error:
        problem = f"not a readable image ({error or type(error).__name__})"
    raise ImageError(name, problem)


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()}, expected at most 16 bits")
        return np.repeat(((values + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels, expected 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _to_integers(image: Image.Image) -> Integer[np.ndarray, "H W"]:
    values = np.asarray(image)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"a {image.mode} image, expected instance numbers in one channel of integers")
    return values.astype(np.int32)


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def encode_jpeg(image: UInt8[np.ndarray, "H W 3"], quality: int = 85) -> bytes:
    """The image as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
