"""Files written whole or not at all, JSON that names its mistakes, and progress in a line."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from lib.cli import UserError


def read_json(path, hint, **more):
    """What a JSON file holds; more goes to json.loads. UserError ends in hint, which says where
    the file comes from ("fetch ..."), or of one's own file what is "expected ..." in it."""
    try:
        return json.loads(path.read_bytes(), **more)
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; {hint}") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e
    except (ValueError, RecursionError) as e:
        again = "" if hint.startswith("expected") else "delete it, then "
        raise UserError(f"{path}: not JSON, damaged or cut off ({e}); {again}{hint}") from e


@contextlib.contextmanager
def replacing(path):
    """A binary file to write to that becomes path when all went well; else path stays as it was."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            yield f
        os.replace(temporary, path)
    except OSError as e:  # disk full, no permission, a file where the folder should be
        raise UserError(f"{path}: cannot be written ({e.strerror or e})") from e
    finally:
        with contextlib.suppress(OSError):  # usually it has been moved away
            temporary.unlink()


def progress(label, total, start=0, megabytes=False):
    """Gives back show(done), which says how many of total are done and the time left: on a
    terminal in one line that renews itself, in a log file in one line for every tenth.

    total: None if unknown. start: what was done before. megabytes: bytes are counted.
    """
    terminal, began = sys.stderr.isatty(), time.monotonic()
    step = max(1, (total or 10**9) // (1000 if terminal else 10))
    due = start + step

    def count(n):
        return f"{n / 1e6:,.1f}" if megabytes else f"{n:,}"

    def show(done):
        nonlocal due
        if done < due and done != total:
            return
        due = done + step
        speed = max(done - start, 1) / max(time.monotonic() - began, 1e-9)
        text = f"{label}: {count(done)}{' MB' * megabytes}"
        if total is not None:
            left = (total - done) / speed
            left = f"{left / 60:.0f} min" if left > 100 else f"{left:.0f} s"
            text += f" of {count(total)}, {left} left"
        text += f", {count(speed)} MB/s" * megabytes
        end = "" if terminal and done != total else "\n"
        print("\r" * terminal + text.ljust(78 * terminal), end=end, file=sys.stderr, flush=True)

    return show


@contextlib.contextmanager
def plain_errors(path):
    """Turns a complaint of the operating system (no such file, disk full) into a UserError."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}") from e


def write_json(path, result):
    if path:
        with replacing(path) as f:
            f.write(json.dumps(result, indent=1).encode() + b"\n")


def repo_path(name):
    """A relative path as seen from the project's folder, where it means nothing in this one."""
    inside = Path(__file__).resolve().parent.parent / name
    return str(inside) if not Path(name).exists() and inside.exists() else name


# What counts as an image file in a folder.
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def find_images(names):
    """Files as they are, folders as the image files directly inside, sorted. UserError if none."""
    if not names:
        raise UserError("which picture? python sample.py photo.jpg (--help lists all flags)")
    found = []
    for name in names:
        if Path(name).is_dir():  # a dot in front: another program's thumbnail or note
            found += sorted(str(p) for p in Path(name).iterdir()
                            if p.suffix.lower() in IMAGES and not p.name.startswith("."))
        else:
            found.append(name)
    if not found:
        raise UserError(f"{', '.join(names)}: no image in there ({', '.join(IMAGES)})")
    return found
