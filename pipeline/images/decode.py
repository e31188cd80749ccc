"""Decodes image files under limits on size, frames and format; every failure has a reject reason."""

import io
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from PIL import Image, ImageOps, UnidentifiedImageError, features

from pipeline.config.ingest import IngestConfig
from pipeline.errors import DataError
from pipeline.images.boxes import JPEG_XL, jpeg_2000_profile, jpeg_xl_size
from pipeline.images.file_types import HEAD_BYTES, describe_head, kind_of
from pipeline.images.reject_reasons import Reason, Reject

_PLAIN: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_FORMATS: Final = (*_PLAIN, "AVIF", "JPEG2000", "JXL")
"""Accepted raster formats, all decoded inside this process; for EPS, Pillow would start Ghostscript."""

_JPEG_XL: Final = "pillow_jxl"
"""Package of the optional codec of JPEG XL."""

_ANIMATED: Final = ("PNG", "WEBP", "GIF", "TIFF", "AVIF")  # not JPEG: its further frames are previews and gain maps
_CODECS: Final = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""Codecs that some builds of Pillow lack."""
_ORIENTED: Final = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # image.info keys of an orientation
_CONTAINERS: Final = ("zip", "tar", "gzip", "archive", "parquet")


class BadImage(DataError):
    """An image that cannot be used: `reason` is one of `reject_reasons.REASONS`, `message` gives the details."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["BadImage"], tuple[Reason, str]]:
        return type(self), (self.reason, self.message)

    @property
    def reject(self) -> Reject:
        return Reject(self.reason, self.message)


@cache
def readable_formats() -> tuple[str, ...]:
    """The accepted formats that this installation can decode. The first call loads the codecs, which are files.

    A codec gets one thread, because further threads would use up the limited address space of a decoding process.
    """
    Image.init()
    if features.check("avif"):
        avif: Any = import_module("PIL.AvifImagePlugin")
        avif.DEFAULT_MAX_THREADS = 1
    if find_spec(_JPEG_XL) is not None:
        jpeg_xl: Any = import_module(f"{_JPEG_XL}.JpegXLImagePlugin")
        jpeg_xl.DECODE_THREADS = 0
    missing = {name for name, codec in _CODECS.items() if not features.check(codec)}
    return tuple(name for name in _FORMATS if name in Image.OPEN and name not in missing)


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """The first frame of a stored image in its own mode, rotated upright by its EXIF orientation.

    Only for files of ours: without the codecs that the decoding process of ingest has in addition.

    The pixel count is checked before pixels are decompressed. Raises BadImage, MemoryError.
    """
    return _decoded(data, max_pixels, None)


def decode_checked(data: bytes, config: IngestConfig) -> Image.Image:
    """`decode` for ingest: also checks the configured limits on bytes, sides and frames before decompression."""
    if len(data) > config.max_image_bytes:
        raise BadImage("too-many-bytes", f"{len(data)} bytes are more than {config.max_image_bytes}")
    return _decoded(data, config.max_image_pixels, config)


def _decoded(data: bytes, max_pixels: int, config: IngestConfig | None) -> Image.Image:
    if not data:
        raise BadImage("empty", "the file has no bytes")
    try:
        size = jpeg_xl_size(data)  # its codec decompresses the image on opening
        if size is not None and size[0] * size[1] > max_pixels:
            raise BadImage("too-large", f"{size[0]}x{size[1]} is more than {max_pixels} pixels")
        image: Image.Image = Image.open(io.BytesIO(data), formats=_PLAIN if config is None else readable_formats())
        if not image.width * image.height:
            raise BadImage("decode-error", f"{image.width}x{image.height} has no pixels")
        if image.width * image.height > max_pixels:
            raise BadImage("too-large", f"{image.width}x{image.height} is more than {max_pixels} pixels")
        if config is not None:
            _check(image, config)
        image.load()
        if image.format == "JPEG2000" and (profile := jpeg_2000_profile(data)) is not None:
            image.info["icc_profile"] = profile
        return _upright(image)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # on damaged input, decoders raise exceptions of any type
        raise _bad_image(error, data) from error


def _check(image: Image.Image, config: IngestConfig) -> None:
    if min(image.size) < config.min_size:
        raise BadImage("too-small", f"{image.width}x{image.height} has a side under {config.min_size} pixels")
    frames = _frames(image)
    if frames > config.max_frames:
        raise BadImage("too-many-frames", f"{frames} frames are more than {config.max_frames}")
    if frames > 1 and config.animation == "reject":
        raise BadImage("animated", f"{frames} frames, and ingest.animation is 'reject'")


def _frames(image: Image.Image) -> int:
    if image.format not in _ANIMATED:
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except MemoryError:
        raise
    except Exception:  # a later frame is damaged; only the first frame is used, and its decoding reports its own damage
        return 1


def _bad_image(error: Exception, data: bytes) -> BadImage:
    if isinstance(error, Image.DecompressionBombError):
        return BadImage("too-large", str(error))
    if isinstance(error, UnidentifiedImageError):
        head = data[:HEAD_BYTES]
        kind = kind_of(head)
        if kind in _CONTAINERS:
            return BadImage("nested-archive", f"{describe_head(head)} in place of an image")
        if kind == "image" or _is_cut(head):
            return BadImage("truncated", f"the header is cut or damaged ({len(data)} bytes in all)")
        return BadImage("not-an-image", f"{describe_head(head)}, none of {', '.join(readable_formats())}")
    if data.startswith(JPEG_XL):
        return BadImage(
            "decode-error", "the codec of JPEG XL refuses the data: cut, damaged, or of a kind it cannot read"
        )
    cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return BadImage("truncated" if cut else "decode-error", str(error))


def _is_cut(head: bytes) -> bool:
    """True if `head` is the incomplete signature of a PNG, JPEG or GIF."""
    return any(signature.startswith(head) for signature in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"))


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return image  # the codec has turned the pixels; Exif does not count in this format
    if image.format != "TIFF" and not any(name in image.info for name in _ORIENTED):
        return image  # skips exif_transpose, which reads the file again and copies the pixels
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # only the EXIF block is damaged: keep the pixels without rotation
        return image
