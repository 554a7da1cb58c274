"""Files read and written so that a mistake is one line, and progress in a line."""

import contextlib
import errno
import functools
import json
import os
import re
import stat
import sys
import tempfile
import time
from pathlib import Path

from lib.cli import UserError, note


def open_file(path):
    """A file opened to read its bytes. OSError if there is none, and for what is no regular file:
    pitfall: who opens a FIFO waits until somebody writes to it, and a device may never end."""
    wait_for_nobody = lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        file = open(path, "rb", opener=wait_for_nobody)
    except ValueError as e:  # a zero byte in the name, or half of a character
        raise OSError(errno.EINVAL, "no file can have this name") from e
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file")
    return file


def user_path(name):
    """A path as a user writes it: ~ is the home folder, unless there is no such user."""
    return Path(os.path.expanduser(name))


def read_json(path, hint, **more):
    """What a JSON file holds; more goes to json.loads. UserError ends in hint, which says where
    the file comes from ("fetch ..."), or of one's own file what is "expected ..." in it."""
    try:
        with open_file(path) as f:
            return json.loads(f.read(), **more)
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; {hint}") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e
    except (ValueError, RecursionError) as e:
        again = "" if hint.startswith("expected") else "delete it, then "
        raise UserError(f"{path}: not JSON, damaged or cut off ({e}); {again}{hint}") from e


@functools.cache  # once a folder: a process looks for what others left, not for its own
def clear_leftovers(folder):
    """Deletes what replacing was writing to in a process that was killed."""
    for path in Path(folder).glob("*.tmp"):
        number = re.search(r"\.(\d+)\.tmp$", path.name)
        # pitfall: over a network another computer may be writing now, and its numbers are not ours.
        if number and time.time() - path.stat().st_mtime > 60 and not is_alive(int(number[1])):
            path.unlink()


def is_alive(pid):
    """Whether a process may be there; on Windows nobody can ask."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)  # asks, and does nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def replacing(path, hint=""):
    """A binary file to write to that becomes path when all went well; else path stays as it was.
    UserError where it cannot be written; it ends in hint, which says what to do.

    A link stays a link, to the new file. What is no file, such as a FIFO, is written to as it is.
    """
    hint, temporary = f"; {hint}" if hint else "", None
    try:
        regular, place = is_replaceable(path), Path(os.path.realpath(path))
        if regular:
            place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # if they cannot be deleted, they do no harm
                clear_leftovers(place.parent)
            temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        with open(temporary or path, "wb" if regular else "ab") as f:
            yield f
        if regular:
            os.replace(temporary, place)
    except OSError as e:  # disk full, no permission, a file where the folder should be
        raise UserError(f"{path}: cannot be written ({e.strerror or e}){hint}") from e
    finally:
        if temporary:
            with contextlib.suppress(OSError):  # usually it has been moved away
                temporary.unlink()


def is_replaceable(path):
    """Whether path is a file or nothing yet. OSError where it cannot be.

    pitfall: `--json /dev/stdout > log`: a new file in place of log would lose what is printed.
    """
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return True
    except ValueError as e:  # a zero byte in the name, or half of a character
        raise OSError(errno.EINVAL, "no file can have this name") from e
    for printed_to in (1, 2):
        with contextlib.suppress(OSError):  # it may be closed
            if os.path.samestat(there, os.fstat(printed_to)):
                return False
    return stat.S_ISREG(there.st_mode)


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


def write_json(path, result, hint="", quiet=False):
    """Writes a file, unless path is "", and says so, unless quiet."""
    if path:
        with replacing(path, hint) as f:
            f.write(json.dumps(result, indent=1).encode() + b"\n")
        if not quiet:
            note(f"{path} is written")


def check_writable(path, name=None):
    """UserError if no file can be written to path (""): for the beginning of a command, whose work
    would else be lost at the end. name: what to call the path."""
    if not path:
        return
    try:
        place = Path(os.path.realpath(path))
        if place.is_dir():
            raise OSError(errno.EISDIR, "it is a folder")
        if is_replaceable(place):  # in its folder, or the one that this will be made in
            folder = next(p for p in place.parents if p.exists())
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise UserError(f"{name or path}: cannot be written ({e.strerror or e}); name another "
                        "place") from e


def repo_path(name):
    """A relative path as seen from the project's folder, where it means nothing in this one."""
    inside = Path(__file__).resolve().parent.parent / name
    return str(inside) if not os.path.exists(name) and os.path.exists(inside) else name


# What counts as an image file in a folder.
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def find_images(names):
    """Files as they are, folders as the image files directly inside, sorted. UserError if none."""
    if not names:
        raise UserError("which picture? python sample.py photo.jpg (--help lists all flags)")
    found = []
    for name in names:
        if "://" in name:
            raise UserError(f"{name}: a web address; save the picture and name its file")
        if os.path.isdir(name):  # a dot in front: another program's thumbnail or note
            with plain_errors(name):
                found += sorted(str(p) for p in Path(name).iterdir()
                                if p.suffix.lower() in IMAGES and not p.name.startswith("."))
        else:
            found.append(name)
    if not found:
        raise UserError(f"{', '.join(names)}: no image in there ({', '.join(IMAGES)})")
    return found
