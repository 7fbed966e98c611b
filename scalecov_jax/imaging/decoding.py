"""How stored pixels become an RGB array, a mask or an encoded file: the one reader of images and the one reader of masks."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import tifffile
from absl import logging
from jaxtyping import Bool, Int32, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from scalecov_jax.atomic import load_arrays
from scalecov_jax.imaging.image_set import Box, ImageError

# Named, because Pillow's own list runs Ghostscript on an EPS file.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
Image.init()
SUFFIXES = frozenset(
    suffix for suffix, of in Image.registered_extensions().items() if of in (*FORMATS, "MPO")
)
MAX_PIXELS = 80_000_000
MAX_SIDE = 65_535
Filter = Literal["lanczos", "bilinear", "bicubic", "nearest"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
Mask = Int32[np.ndarray, "H W"] | Bool[np.ndarray, "H W"]

_ORIENTATION = 0x0112  # EXIF
_TURNED = (5, 6, 7, 8)  # height and width change places
_COLOURS = 4096  # of a mask, at most
_Result = TypeVar("_Result")


def image_size(source: str | Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Read width and height (pixels, as `decode_image` gives them) from the header of an image, without decoding it.

    Args:
        source: A path, or the bytes of a file.
        name: Names the image in errors; the path when absent.

    Raises:
        ImageError: No image, an unknown format, or too many pixels.
    """
    width, height = stored_size(source, name)
    return (height, width) if orientation(source, name) in _TURNED else (width, height)


def stored_size(source: str | Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Likewise as the pixels are stored, before EXIF orientation is applied."""
    return _read(source, name, lambda image: image.size)


def orientation(source: str | Path | bytes, name: str | None = None) -> int:
    """EXIF orientation from 1 (as stored) to 8."""
    return _read(source, name, _turn)


def file_size(source: str | Path | bytes) -> int:
    """Bytes of an image file that exists, given as in `decode_image`."""
    return len(source) if isinstance(source, bytes) else Path(source).stat().st_size


def decode_image(source: str | Path | bytes, name: str | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file to 8-bit RGB, turned as its EXIF orientation says.

    Greyscale is repeated; palettes are looked up; transparency is laid over white; CMYK is converted without its colour profile;
    16-bit greyscale is divided by 257, so that 65535 becomes 255; 16-bit colour keeps its upper byte. Of several pages or frames
    the first is taken, with a warning. The checksums of PNG files are compared.

    Args:
        source: A path, or the bytes of a file.
        name: Names the image in errors; the path when absent.

    Raises:
        ImageError: A ValueError that names the image: missing, truncated, damaged, no image, an unknown format, floating-point or
            32-bit pixels, more than 80 million pixels, or a side of more than 65,535.
    """
    return _read(source, name, _to_rgb, checksums=True)


def thumbnail(
    source: str | Path | bytes, side: int, name: str | None = None
) -> UInt8[np.ndarray, "side side"]:
    """A small grey square of the whole image, the mean over what each pixel covers; see `decode_image`.

    JPEG files are decoded at a fraction of their size, which is several times as fast.
    """

    def shrunk(image: Image.Image) -> UInt8[np.ndarray, "side side"]:
        image.draft("RGB", (2 * side, 2 * side))
        grey = Image.fromarray(_to_rgb(image)).convert("L")
        return np.array(grey.resize((side, side), Image.Resampling.BOX))

    return _read(source, name, shrunk)


def decode_mask(source: str | Path | bytes, name: str | None = None, *, labels: bool = False) -> Mask:
    """Decode a mask: instance numbers (0 is background) where the file holds several, else the foreground.

    - One value beside 0, whatever it is (1, 100, 255, 65535): that is the foreground. So is what is bright in a greyscale mask
      with blurred edges or a JPEG, from half the largest value on.
    - Several values beside 0: instance numbers. 255 beside smaller ones without 254 is the void of PASCAL VOC, and background.
    - Transparent pixels are background, the others foreground.
    - Colours: black is background, every other colour an instance, and the foreground if there is just one. Palettes: the indices
      are numbers; background is black where black is used, else index 0.
    - `.npy` files, and floating-point or 64-bit TIFF files of whole numbers, are read as numbers.

    Args:
        source: A path, or the bytes of a file.
        name: Names the mask in errors; the path when absent.
        labels: Whether the file is known to hold instance numbers: then nothing is taken for a blurred edge.

    Raises:
        ImageError: See `decode_image`; also several pages, numbers that are negative or not whole, too many colours.
    """
    name = name or ("mask" if isinstance(source, bytes) else str(source))
    try:
        values, blurred = _mask_values(source, name)
        mask = _meaning(values, blurred, labels)
    except ImageError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        raise ImageError(name, str(error)) from None
    kind = "the foreground" if mask.dtype == bool else "instance numbers"
    logging.log_first_n(logging.INFO, "Masks are read as %s, such as %s.", 2, kind, name)
    return mask


def mask_size(path: Path) -> tuple[int, int]:
    """Width and height of a mask from its header, see `decode_mask`.

    Raises:
        ImageError: See `decode_mask`.
    """
    if path.suffix.casefold() == ".npy":
        height, width = decode_mask(path, path.name).shape
        return width, height
    shape = _tiff(path, path.name, lambda file: file.series[0].shape)
    if shape and len(shape) == 3 and shape[-1] > 4:
        raise ImageError(
            path.name, f"{shape[0]} planes of {shape[2]} x {shape[1]} pixels; expected a mask of one plane"
        )
    return (shape[1], shape[0]) if shape else image_size(path, path.name)


def _tiff(path: Path, name: str, function: Callable[[tifffile.TiffFile], _Result]) -> _Result | None:
    """What a function gives of a TIFF file of a single page; None of other files, and where tifffile cannot read it.

    Pillow knows no 64-bit pixels and wraps large numbers; tifffile does not know every compression.
    """
    if path.suffix.casefold() not in (".tif", ".tiff"):
        return None
    try:
        with tifffile.TiffFile(path) as file:
            pages, shape = len(file.pages), file.series[0].shape
            found = function(file) if pages == 1 and len(shape) < 4 and np.prod(shape) <= MAX_PIXELS else None
    except Exception:
        return None
    if found is None:
        raise ImageError(
            name,
            f"{pages} pages of shape {shape}; expected a mask of a single page, of at most {MAX_PIXELS} pixels",
        )
    return found


def _mask_values(source: str | Path | bytes, name: str) -> tuple[Shaped[np.ndarray, "..."], bool]:
    """Numbers of a mask, background 0; and whether edges may be blurred."""
    path = Path() if isinstance(source, bytes) else Path(source)
    if path.suffix.casefold() == ".npy":
        values = load_arrays(path)
        if isinstance(values, dict):
            raise ValueError("several arrays; expected one")
        return values, False
    values = _tiff(path, name, lambda file: file.asarray().squeeze())
    if values is not None and values.ndim == 2:
        return values, True
    return _read(source, name, _numbers, checksums=True)


def _numbers(image: Image.Image) -> tuple[Shaped[np.ndarray, "H W"], bool]:
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{image.n_frames} pages; expected a mask of a single page")  # pyright: ignore
    if image.format in ("JPEG", "MPO"):  # which keeps no number
        values = np.asarray(_upright(image).convert("L"))
        return values > max(values.max() / 2, 1), False
    image = _upright(image)
    if image.mode == "P" and not image.has_transparency_data:
        values, colours = np.asarray(image), np.array(image.getpalette()).reshape(-1, 3)
        used = np.unique(values)
        black = [one for one in used if one < len(colours) and not colours[one].any()]
        if black and 0 not in black:
            return np.where(np.isin(values, black), 0, values.astype(np.int32) + 1), False
        return np.where(np.isin(values, black), 0, values) if black else values, False
    if image.has_transparency_data or image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        pixels = np.asarray(image.convert("RGBA"))
        if np.ptp(pixels[..., 3]):
            return pixels[..., 3] > 127, False
        image = Image.fromarray(pixels).convert("RGB")
    if image.mode in ("RGB", "CMYK", "YCbCr", "LAB", "HSV"):
        pixels = np.asarray(image.convert("RGB")).astype(np.int32)
        if not np.ptp(pixels, axis=-1).any():
            return pixels.max(-1), True
        codes, inverse = np.unique(pixels @ np.array([1, 256, 65536]), return_inverse=True)
        if len(codes) > _COLOURS:
            raise ValueError(f"{len(codes)} colours; expected one per instance, at most {_COLOURS}")
        return inverse.reshape(pixels.shape[:2]) + (codes[0] != 0), False
    return np.asarray(image), True


def _meaning(values: Shaped[np.ndarray, "H W"], may_blur: bool, labels: bool) -> Mask:
    values = np.asarray(values).squeeze()
    if values.ndim != 2:
        raise ValueError(f"an array of shape {values.shape}; expected height and width")
    if values.dtype == bool:
        return values
    if not np.isfinite(values).all() or (values != np.round(values)).any() or values.min(initial=0) < 0:
        raise ValueError(
            "numbers that are negative, not whole or not finite; expected instance numbers from 0 on"
        )
    numbers, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(values.shape)
    present = numbers[numbers > 0]
    if len(present) <= 1:
        return values > 0
    largest = numbers[-1]
    # Blurred edges take many values, but most of what is not dark is bright; of instance numbers a third would be.
    high, middle = numbers >= 0.75 * largest, (numbers > 0.25 * largest) & (numbers < 0.75 * largest)
    blurred = largest >= 128 and middle.sum() > 8 and counts[high].sum() > 0.7 * counts[middle].sum()
    if may_blur and not labels and blurred:
        return values > largest / 2
    if values.dtype.itemsize == 1 and largest == 255 and 254 not in present:
        values = np.where(values == 255, 0, values)
        if len(present) == 2:
            return values > 0
    if largest > np.iinfo(np.int32).max:
        return (inverse + (numbers[0] > 0)).astype(np.int32)
    return values.astype(np.int32)


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


def turn_box(box: Box, width: int, height: int, exif: int) -> Box:
    """A box drawn on the stored pixels, in the frame of the image turned as its EXIF orientation says.

    Args:
        box: In stored pixels.
        width: Of the stored pixels.
        height: Likewise.
        exif: Orientation; 1 changes nothing.

    Source: CIPA DC-008 (EXIF 2.32), tag Orientation: 2 mirrors left and right, 3 turns by 180 degrees, 4 mirrors up and down; 5
        to 8 transpose, and then 6 mirrors left and right, 7 both, 8 up and down.
    """
    x_min, y_min, x_max, y_max = box
    if exif in _TURNED:
        x_min, y_min, x_max, y_max, width, height = y_min, x_min, y_max, x_max, height, width
    if exif in (2, 3, 6, 7):
        x_min, x_max = width + 1 - x_max, width + 1 - x_min
    if exif in (3, 4, 7, 8):
        y_min, y_max = height + 1 - y_max, height + 1 - y_min
    return Box(x_min, y_min, x_max, y_max)


def _read(
    source: str | Path | bytes,
    name: str | None,
    function: Callable[[Image.Image], _Result],
    *,
    checksums: bool = False,
) -> _Result:
    name = name or (f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source))

    def opened() -> Image.Image:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)

    try:
        with opened() as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise ValueError(
                    f"{width} x {height} pixels; expected at most {MAX_PIXELS} pixels and {MAX_SIDE} per side"
                )
            if not (checksums and image.format == "PNG"):
                return function(image)
            image.verify()  # the image cannot be read after it
        with opened() as image:
            return function(image)
    except FileNotFoundError:
        problem = "no such file"
    except UnidentifiedImageError:
        problem = f"not an image in one of the formats {', '.join(FORMATS)}"
    # Pillow's plugins raise whatever their parsing runs into, from KeyError to struct.error.
    except Exception as error:
        problem = f"not a readable image ({error or type(error).__name__})"
    raise ImageError(name, problem)


def _turn(image: Image.Image) -> int:
    # From the header: Pillow would decode a PNG for it. It turns TIFF files itself, and gives the turned size.
    exif = Image.Exif()
    exif.load(image.info.get("exif", b"") if image.format != "TIFF" else b"")
    return int(exif.get(_ORIENTATION, 1))


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _turn(image) != 1 else image


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    # An MPO file is one photograph with a preview or a second view.
    if (pages := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        where = getattr(image, "filename", "") or "an image"
        logging.log_first_n(
            logging.WARNING,
            "%s has %d pages or frames; the first is used, here and in others.",
            1,
            where,
            pages,
        )
    image = _upright(image)
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


def array_of(image: Any) -> UInt8[np.ndarray, "H W 3"]:
    """An image in memory as 8-bit RGB; greyscale and transparency as `decode_image` has them.

    Raises:
        ValueError: Another type or shape, such as floats, of which nobody knows what white is.
    """
    array = np.asarray(image)
    channels = array.shape[-1] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise ValueError(
            f"An image is {array.dtype} of shape {array.shape}; expected uint8 [height, width, 3], from 0 to 255."
        )
    return (
        array
        if channels == 3
        else _to_rgb(Image.fromarray(array.squeeze(-1) if array.ndim == 3 and channels == 1 else array))
    )
