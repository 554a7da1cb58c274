"""Image files: damaged ones of every format and mode, tiny ones that claim to be huge, programs
that are called pictures, what is no file at all. Training must take what the check lets through.
"""

import functools
import io
import os
import struct
import zlib

import numpy as np
import torch
from PIL import Image

from clip_vit import preprocess
from lib.cli import UserError
from lib.images import check_image, open_image
from tests.attack.mutate import damage
from tests.attack.watch import TRACE

CASES = 5000
SIZE = 64
FORMATS = [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("PNG", {"save_all": True}),
           ("WEBP", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("GIF", {"save_all": True}),
           ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}),
           ("BMP", {}), ("JPEG2000", {}), ("PPM", {}), ("ICO", {}), ("AVIF", {}), ("DDS", {}),
           ("MPO", {}), ("TGA", {}), ("PCX", {})]
MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "I;16", "1", "I", "F")


@functools.cache
def sound(number, mode):
    """The bytes of a sound file of FORMATS[number], in mode if it can be."""
    form, more = FORMATS[number]
    ramp = np.linspace(0, 255, 48 * 40 * 3).reshape(40, 48, 3)
    photo = Image.fromarray((ramp * (1 + np.sin(ramp)) / 2).astype(np.uint8))
    grey = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    for image in (grey if mode == "I;16" else photo.convert(mode), photo):
        try:
            many = {"append_images": [image.rotate(90)] * 2} if "save_all" in more else {}
            image.save(file := io.BytesIO(), form, **more, **many)
            return file.getvalue()
        except (OSError, ValueError, KeyError, SystemError):  # the format has no such mode
            pass


@functools.cache
def zeros(megabytes):
    """So many MB of zeros, deflated."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rng, w, h, depth=8, colour=2, more=b"", megabytes=1):
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", zeros(megabytes))
            + chunk(b"IEND", b""))


def claims(rng):
    """A file of a few bytes with a header that claims far more, or of nothing at all."""
    w, h = rng.choice(((13000, 13000), (9400, 9400), (60000, 60000), (0, 0), (0, 5), (2**31, 1),
                       (1, 20000), (20000, 1), (2**32 - 1,) * 2))
    kind = rng.choice("png rgba grey16 text icc gif tiff ppm bmp webp".split())
    if kind in ("png", "rgba", "grey16"):
        depth, colour = {"png": (8, 2), "rgba": (8, 6), "grey16": (16, 0)}[kind]
        return png(rng, w, h, depth, colour, megabytes=rng.choice((1, 300)))
    if kind in ("text", "icc"):
        name = {"text": b"zTXt", "icc": b"iCCP"}[kind]
        return png(rng, 8, 8, more=chunk(name, b"a\0\0" + zeros(600)) * rng.choice((1, 9)))
    if kind == "gif":
        size = struct.pack("<HH", w & 65535, h & 65535)
        return (b"GIF89a" + size + b"\xf0\0\0" + bytes(6) + b"," + bytes(4) + size
                + b"\0\x02\x02L\x01\0;")
    if kind == "tiff":
        tags = [(256, w), (257, h), (258, 8), (259, rng.choice((1, 5, 8, 4))), (262, 1), (273, 8),
                (277, rng.choice((1, 3, 9999))), (278, 2**31), (279, rng.choice((10, 2**32 - 1)))]
        return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + bytes(4)
                + b"".join(struct.pack("<HHII", key, 4, 1, value) for key, value in tags))
    if kind == "ppm":
        start = rng.choice((f"P6 {w} {h} 255\n", f"P5 {w} {h} 65535\n", f"P3 {'9' * 10**5}",
                            f"P1 8 8 {'#' * 10**6}", f"Pf\n{w} {h}\n-1.0\n"))
        return start.encode() + bytes(99)
    if kind == "bmp":
        return b"BM" + struct.pack("<IIIIIIHHIIIIII", 99, 0, 54, 40, w, h & (2**31 - 1), 1, 24, 0,
                                   rng.choice((0, 2**31)), 0, 0, 0, 0)
    size = struct.pack("<I", (w - 1) & 0xffffff)[:3] + struct.pack("<I", (h - 1) & 0xffffff)[:3]
    return b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + size


def program(rng, folder):
    """What is no picture: PostScript that would write a file, and other beginnings Pillow knows."""
    trace = os.fsencode(folder / TRACE)
    return rng.choice((
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(" + trace
        + b") (w) file closefile\nshowpage\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(%pipe%touch " + trace
        + b") (w) file closefile\n", b"%PDF-1.4\n", b"<svg width='9' height='9'/>", b"8BPS\0\1",
        b"", b"icns\x7f\xff\xff\xffic09\x40\0\0\0",
        b"qoif" + struct.pack(">II", 90000, 90000) + b"\4\0",
        b"#define x_width 90000\n#define x_height 90000\nstatic char x[] = {",
        b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80))) + rng.randbytes(99)


def strange(rng, folder):
    """A path that is no regular file."""
    path, kind = folder / "x.jpg", rng.choice("fifo zero dir loop nul long surrogate none".split())
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "dir":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    return {"zero": "/dev/zero", "nul": f"{path}\0", "long": folder / ("x" * 5000),
            "surrogate": folder / "\ud800.jpg"}.get(kind, path)


def case(rng, folder):
    path, kind = folder / "x.jpg", rng.choice(["damaged"] * 7 + ["claims", "program", "strange"])
    if kind == "strange":
        path = strange(rng, folder)
    elif kind == "damaged":
        number, mode = rng.randrange(len(FORMATS)), rng.choice(MODES)
        content, kind = sound(number, mode), f"{FORMATS[number]} {mode}"
        for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
            content, how = damage(content, rng)
            kind += f" {how}"
        path.write_bytes(content)
    else:
        path.write_bytes(claims(rng) if kind == "claims" else program(rng, folder))
    return kind, lambda: look(path)


def look(path):
    said = check_image(path)
    try:
        image = open_image(path)
        for crop in (True, False):
            x = preprocess(image, SIZE, crop)
            assert image.mode == "RGB" and x.shape == (3, SIZE, SIZE) and torch.isfinite(x).all()
    except UserError:
        assert said, "the check lets through what training cannot read"
        raise
    assert not said, f"the check refuses what training can read: {said}"


case.patience = 100  # seconds: others may want the processor, too
