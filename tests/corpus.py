"""A corpus of every kind of bad or odd image found in real data, made by code, with the expected result of each.

`images()` are encoded images. The expected results hold under the settings LIMITS.
"""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin
from pillow_jxl import JpegXLImagePlugin  # noqa: F401  registers JPEG XL

from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.images.reject_reasons import Reason, Reject
from pipeline.ingest.sources.open import open_source

LIMITS = {
    "image_size": 16,
    "channels": 3,
    "max_image_pixels": 10**6,
    "max_image_bytes": 2**20,
    "max_frames": 20,
    "max_decode_seconds": 0.75,
}
CONFIG = IngestConfig(**LIMITS)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Item(NamedTuple):
    """An encoded image. reason: expected reject, None for a good image. shade: expected mean level of each channel."""

    data: bytes
    reason: Reason | None = None
    shade: tuple[float, float, float] | None = None


def encoded(image, kind="PNG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_pixels(*shape, seed=0):
    """uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def photo(seed=0, width=24, height=20):
    """A smooth picture that JPEG compresses with little loss, different for each seed."""
    return Image.fromarray(random_pixels(3, 4, 3, seed=seed)).resize((width, height), Image.Resampling.BICUBIC)


def chunk(kind, body):
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, body=b"", more=b""):
    """A PNG file. body: uncompressed pixel data; more: chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG_SIGNATURE + header + more + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")


def scan_bomb(side=1000, scans=20_000):
    """A progressive JPEG of 200 KB that repeats its last scan: many seconds of decoding for one grey square."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True, quality=50)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def planted(fault):
    """A good PNG that triggers a fault (crash, endless loop, ...) in the codec of tests/planted."""
    info = PngImagePlugin.PngInfo()
    info.add_text("note", f"PLANTED-{fault};")
    return encoded(photo(99), pnginfo=info)


def with_orientation(image, orientation):
    """A JPEG with an Exif orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", exif=exif, quality=95)


def animation(kind, count=3):
    """An animation whose first frame alone is mid-grey."""
    first, *others = [Image.new("RGB", (16, 16), (100 if n == 0 else 150 + n % 50,) * 3) for n in range(count)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(first, kind, save_all=True, append_images=others, **options)


def damaged(data, place):
    """The data with one byte inverted."""
    copy = bytearray(data)
    copy[place] ^= 0xFF
    return bytes(copy)


def tar_block(name):
    """The header of an empty member, and the end of its archive."""
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + bytes(404))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def zip_of(members):
    """A zip archive by name and content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def no_images():
    """Files that are not images."""
    return {
        "zero.png": Item(b"", "empty"),
        "text.png": Item(b"this is no picture\n" * 9, "not-an-image"),
        "error-page.jpg": Item(b"<!DOCTYPE html><html><title>403 Forbidden</title></html>", "not-an-image"),
        "drawing.svg": Item(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not-an-image"),
        "page.eps": Item(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not-an-image"),
        "page.pdf": Item(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "not-an-image"),
        "nulls.png": Item(bytes(4096), "not-an-image"),
        "phone.heic": Item(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "not-an-image"),
        "zip.png": Item(zip_of({"a.png": encoded(photo())}), "nested-archive"),
        "gzip.png": Item(gzip.compress(encoded(photo())), "nested-archive"),
        "tar.png": Item(tar_block(b"a.png"), "nested-archive"),
        "bzip2.png": Item(b"BZh91AY&SY" + bytes(40), "nested-archive"),
        "parquet.png": Item(b"PAR1" + bytes(40) + b"PAR1", "nested-archive"),
    }


def damaged_images():
    """Damaged images, and files made to exhaust memory or time."""
    good, jpeg = encoded(Image.fromarray(random_pixels(20, 20, 3))), encoded(photo(), "JPEG")
    huge = bytearray(jpeg)
    size = huge.index(b"\xff\xc0") + 5
    huge[size : size + 4] = struct.pack(">HH", 65500, 65500)
    text_bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 * 2**20), 9))
    return {
        "cut.png": Item(good[: len(good) // 2], "truncated"),
        "cut.jp2": Item(encoded(photo(), "JPEG2000")[:40], "decode-error"),
        "cut.avif": Item(encoded(photo(), "AVIF")[:200], "truncated"),
        "cut.jxl": Item(encoded(photo(), "JXL")[:40], "decode-error"),
        "huge-header.jxl": Item(b"\xff\x0a" + (2**40 - 2).to_bytes(14, "little"), "too-large"),
        "cut.jpg": Item(jpeg[: len(jpeg) // 2], "truncated"),
        "header.png": Item(good[:30], "truncated"),
        "four-bytes.png": Item(good[:4], "truncated"),
        "flipped-bit.png": Item(damaged(good, 60), "decode-error"),
        "no-width.png": Item(png(0, 5, 8, 0), "truncated"),
        "huge-header.png": Item(png(100_000, 100_000, 8, 2), "too-large"),
        "huge-header.jpg": Item(bytes(huge), "too-large"),
        "bomb.png": Item(png(5000, 5000, 1, 0, bytes(626 * 5000)), "too-large"),
        "heavy.bmp": Item(encoded(Image.new("RGB", (700, 700)), "BMP"), "too-many-bytes"),
        "text-bomb.png": Item(png(1, 1, 8, 0, b"\0\0", text_bomb), "decode-error"),
        "slow.jpg": Item(scan_bomb(), "too-slow"),
        "frames.gif": Item(animation("GIF", 40), "too-many-frames"),
        "float.tiff": Item(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "unsupported-mode"),
        "negative.tiff": Item(encoded(Image.fromarray(np.full((8, 8), -5, np.int32)), "TIFF"), "unsupported-mode"),
    }


def planted_faults():
    """Images that crash the codec each time, for tests that run with tests/planted on PYTHONPATH."""
    return {
        "segfault.png": Item(planted("SEGV"), "decoder-crashed"),
        "abort.png": Item(planted("ABORT"), "decoder-crashed"),
        "exit.png": Item(planted("EXIT"), "decoder-crashed"),
        "endless.png": Item(planted("LOOP"), "too-slow"),
        "memory.png": Item(planted("MEMORY"), "too-much-memory"),
    }


def odd_modes():
    """Good images that are not plain RGB or grey of eight bits."""
    cyan = Image.new("CMYK", (20, 20), (255, 0, 0, 0))
    half = np.zeros((20, 20, 4), np.uint8)  # opaque green beside invisible red
    half[:, :10], half[:, 10:] = (0, 200, 0, 255), (255, 0, 0, 0)
    grey_alpha = np.full((20, 20, 2), 90, np.uint8)
    grey_alpha[:, :, 1] = 0
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([255, 0, 0, 0, 0, 240])
    levels = np.full((20, 20), 40 * 257, np.uint16)
    grey = Image.new("RGB", (20, 20), (90, 90, 90))
    deep = struct.pack(">HHH", 10 * 257, 20 * 257, 30 * 257) * 20
    return {
        "alpha.png": Item(encoded(Image.fromarray(half)), None, (127.5, 227.5, 127.5)),
        "grey-alpha.png": Item(encoded(Image.fromarray(grey_alpha)), None, (255, 255, 255)),
        "palette.png": Item(encoded(palette), None, (0, 0, 240)),
        "palette-transparency.png": Item(encoded(palette, transparency=1), None, (255, 255, 255)),
        "rgb-transparency.png": Item(encoded(Image.new("RGB", (9, 9)), transparency=(0, 0, 0)), None, (255, 255, 255)),
        "grey.png": Item(encoded(Image.new("L", (20, 20), 77)), None, (77, 77, 77)),
        "bilevel.png": Item(encoded(Image.new("1", (20, 20), 1)), None, (255, 255, 255)),
        "grey-16-bit.png": Item(encoded(Image.fromarray(levels)), None, (40, 40, 40)),
        "rgb-16-bit.png": Item(png(20, 20, 16, 2, (b"\0" + deep) * 20), None, (10, 20, 30)),
        "cmyk.jpg": Item(encoded(cyan, "JPEG", quality=100), None, (0, 255, 255)),
        "grey.webp": Item(encoded(Image.new("RGB", (20, 20), (9, 8, 7)), "WEBP", lossless=True), None, (9, 8, 7)),
        "picture.ppm": Item(encoded(Image.new("RGB", (20, 20), (1, 2, 3)), "PPM"), None, (1, 2, 3)),
        "picture.avif": Item(encoded(grey, "AVIF", quality=100), None, (90, 90, 90)),
        "picture.jp2": Item(encoded(Image.new("RGB", (20, 20), (1, 2, 3)), "JPEG2000"), None, (1, 2, 3)),
        "grey.j2k": Item(encoded(Image.new("L", (20, 20), 77), "JPEG2000", no_jp2=True), None, (77, 77, 77)),
        "picture.jxl": Item(encoded(Image.new("RGB", (20, 20), (1, 2, 3)), "JXL", lossless=True), None, (1, 2, 3)),
    }


def odd_files():
    """Good images in files of an odd size, shape or content."""
    dot = Image.new("RGB", (1, 1), (50, 60, 70))
    pages = {"save_all": True, "append_images": [Image.new("L", (16, 16), 200)]}
    two_pages = encoded(Image.new("L", (16, 16), 100), "TIFF", **pages)
    good = encoded(photo(1))
    exif = b"Exif\x00\x00MM\x00\x2a\x00\x00\xff\xff"
    return {
        "one-pixel.png": Item(encoded(dot), None, (50, 60, 70)),
        "20000x1.png": Item(encoded(dot.resize((20_000, 1))), None, (50, 60, 70)),
        "1x20000.png": Item(encoded(dot.resize((1, 20_000))), None, (50, 60, 70)),
        "animated.gif": Item(animation("GIF"), None, (100, 100, 100)),
        "animated.webp": Item(animation("WEBP"), None, (100, 100, 100)),
        "animated.avif": Item(animation("AVIF"), None, (100, 100, 100)),
        "animated.png": Item(animation("PNG"), None, (100, 100, 100)),
        "pages.tiff": Item(two_pages, None, (100, 100, 100)),
        "turned.jpg": Item(with_orientation(photo(2), 6)),
        "damaged-exif.jpg": Item(encoded(photo(3), "JPEG", exif=exif)),
        "damaged-later-frame.gif": Item(animation("GIF")[:-30] + bytes(30), None, (100, 100, 100)),
        "tail.png": Item(good + b"appended after the end"),
        "jpeg-named.png": Item(encoded(photo(4), "JPEG")),
        "no-extension": Item(encoded(photo(5))),
        "a b c.png": Item(encoded(photo(6))),
        "größe 猫 🐈.png": Item(encoded(photo(7))),
        "e\u0301.png": Item(encoded(photo(8))),
        "new\nline.png": Item(encoded(photo(9))),
        "right\u202eto-left.png": Item(encoded(photo(10))),
        "percent%2F..%2F.png": Item(encoded(photo(11))),
        "l" * 240 + ".png": Item(encoded(photo(12))),
        "twin-1.png": Item(encoded(photo(13))),
        "twin-2.png": Item(encoded(photo(13))),
    }


@cache
def images():
    """Every kind of encoded image by file name; some of the names are odd too."""
    return no_images() | damaged_images() | odd_modes() | odd_files()


def tar_of(members, mode="w"):
    """A tar archive of (name or TarInfo, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_begin(members):
    """An archive of (name, content) without its end mark, so that more can follow."""
    size = sum(512 + -(-len(data) // 512) * 512 for _, data in members)
    return tar_of(members)[:size]


def special(name, kind, target=""):
    """A tar member that is not a file: tarfile.SYMTYPE, LNKTYPE, CHRTYPE, FIFOTYPE, ..."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def read(uri, **settings):
    """Every row of a source, read as workers read it: source and partitions are pickled."""
    config = Config(ingest=IngestConfig(**{"max_image_bytes": LIMITS["max_image_bytes"], **settings}))
    source = pickle.loads(pickle.dumps(open_source(str(uri), config)))
    return [row for part in source.partitions() for row in source.rows(pickle.loads(pickle.dumps(part)))]


def outcome(row):
    """The reason of a reject, "image" for a row to be decoded."""
    return row.image.reason if isinstance(row.image, Reject) else "image"
