"""Image files, opened in one place: every command takes the same ones and refuses the same ones."""

import contextlib
import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from lib.cli import UserError
from lib.files import open_file

Image.init()  # fills Image.OPEN, all that this Pillow can read
# pitfall: that is more than pictures. For PostScript, whatever its name, Pillow starts Ghostscript,
# which runs the program in the file.
FORMATS = [kind for kind in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000",
                             "AVIF", "ICO", "DDS") if kind in Image.OPEN]
LARGEST = Image.MAX_IMAGE_PIXELS  # 89 million, in RGB 268 MB
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # open_image refuses


def to_rgb(image):
    """A PIL image of any mode in RGB, what is transparent on white.

    differs: OpenAI's code drops the alpha channel, and so shows the colours, often black, that lie
    under transparent pixels. White is what transformers 5 puts there.
    """
    # pitfall: Pillow does not scale 16 bits of grey down to 8 but cuts off at 255: all is white.
    # A PNG or PPM may come as "I", too. Elsewhere nobody knows how large such a number can be.
    if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM"):
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode in ("LA", "PA", "RGBA") or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def decode(file, largest=LARGEST):
    """An open image file as an upright RGB picture; of an animation the first. ValueError for too
    many pixels, before they are decoded. A damaged file can raise almost anything else."""
    with Image.open(file, formats=FORMATS) as image:
        w, h = image.size
        if w * h > largest:  # Pillow itself refuses twice as many as LARGEST
            raise ValueError(f"too large with {w:,} x {h:,} pixels")
        if image.mode == "F" or image.mode == "I" and image.format not in ("PNG", "PPM"):
            raise ValueError("which of its numbers is white? save it with 8 or 16 bits")
        # Phones store pictures lying on their side, with a note that says so.
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def check_image(file):
    """What is wrong with an image, a path or an open file, in words; "" if training can use it.
    Grey, CMYK, palette, 16-bit and animated ones can be used."""
    try:
        w, h = (decode(file) if hasattr(file, "read") else open_and_decode(file)).size
    except UnidentifiedImageError:
        return "not an image"
    except Exception as e:  # a damaged file can raise almost anything
        return str(e) or type(e).__name__
    # clip_vit.preprocess refuses it
    return f"too long and thin with {w:,} x {h:,} pixels" if max(w, h) > 100 * min(w, h) else ""


def open_and_decode(path):
    with open_file(path) as file:
        return decode(file)


@contextlib.contextmanager
def readable(name):
    """Turns what goes wrong with an image, called by this name, into a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{name}: no such image") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not a readable image (of {', '.join(FORMATS)})") from None
    except Exception as e:  # a damaged file can raise almost anything
        raise UserError(f"{name}: not a readable image ({e})") from None


def open_image(path):
    """An image file as an upright RGB picture. UserError where it is missing or broken."""
    with readable(path):
        return open_and_decode(path)


def image_of(data, largest):
    """As open_image, of the bytes of a file, with at most so many pixels."""
    with readable("the picture"):
        return decode(io.BytesIO(data), largest)
