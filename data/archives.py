"""Room on the disk, and zips that are fetched and unpacked."""

import shutil
import zipfile
from pathlib import Path

from lib.cli import UserError
from lib.files import open_file, progress, replacing
from weights.download import download

CHOOSE = "choose another folder (--help says with which flag)"


def check_disk(folder, size, hint=CHOOSE):
    """UserError now, if size bytes do not fit, rather than after hours of work; it ends in hint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as e:
        raise UserError(f"{folder}: cannot be used ({e.strerror or e}); {hint}") from e
    if free < size:
        raise UserError(f"{folder}: {size / 1e9:.3f} GB are needed, {free / 1e9:.3f} GB are free; "
                        f"make room: {hint}")


def escapes(name):
    """Whether a zip's member would be written outside of the folder that it is unpacked into."""
    # pitfall: a zip can name "../../.bashrc", "/etc/passwd", "C:x" or "..\\x".
    return name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name


def extract(archive, folder, wanted):
    """Unpacks those members of a zip whose names are in wanted. A file that is there already with
    the right size is kept, so a broken run goes on where it stopped. UserError for a damaged zip
    and for one with a member that would land outside of folder."""
    archive, folder = Path(archive), Path(folder)

    def is_there(member):
        path = folder / member.filename
        return path.is_file() and path.stat().st_size == member.file_size

    try:
        with open_file(archive) as opened, zipfile.ZipFile(opened) as z:
            for name in filter(escapes, z.namelist()):
                raise UserError(f"{archive}: refused, since its member {name!r} leads out of the "
                                "folder; this is not the published file")
            todo = [m for m in z.infolist() if m.filename in wanted and not is_there(m)]
            check_disk(folder, sum(m.file_size for m in todo))
            show = progress(f"unpacking {archive.name}", len(todo))
            for done, member in enumerate(todo, 1):
                with z.open(member) as source, replacing(folder / member.filename, CHOOSE) as f:
                    shutil.copyfileobj(source, f)  # raises if checksum or size is wrong
                show(done)
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"{archive}: cannot be unpacked ({e.strerror or e})") from e
    except Exception as e:  # each way of packing has its own errors for one flipped bit
        why = str(e) or type(e).__name__
        raise UserError(f"{archive}: damaged or cut off ({why}); delete it and run again") from e


def fetch_zip(path, wanted, urls, size=None, **hashes):
    """Downloads a zip to path, and unpacks beside it the members whose names are in wanted. size in
    bytes; where nobody states it, a full disk is noticed no earlier than it is full."""
    part = path.with_name(f"{path.name}.part")
    if not path.exists():  # room for the zip and for what is in it, which is hardly any smaller
        have = part.stat().st_size if part.exists() else 0
        check_disk(path.parent, 2 * (size or 0) - have)
    extract(download(urls, path, size, **hashes), path.parent, wanted)
    print(f"{path} is unpacked and may be deleted")
