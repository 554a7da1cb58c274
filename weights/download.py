"""Downloads that go on where they stopped and are checked before they get their final name.

    addresses, one after the other        checks: size, hash, structure
                   |                                     |
                   +---> path.part, grows and resumes ---+---> path, complete and right

So a file that has its final name can be trusted, and a broken download costs nothing twice. What
has neither a size nor a hash, here or from the server, is refused: nobody could tell a part of it.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from lib.cli import UserError
from lib.files import progress

TIMEOUT = 30  # seconds without a single byte
LARGEST = 10**15  # bytes; who offers more is mistaken


class Broken(Exception):
    """What is wrong with one address; the next one may still do."""


def pull(url, part, size, provable=True):
    """Appends to the file part what is still missing of url. Raises Broken if it cannot be had, or
    not whole; what has come stays in part. size in bytes, None if unknown. provable: whether a size
    or a hash will show that all has come; else the server has to say how much there is."""
    have = part.stat().st_size if part.exists() else 0
    if have and have == size:
        return
    if size and have > size:
        have = 0  # not the beginning of this file
    # Some servers turn Python's own name away.
    headers = {"User-Agent": "seegpt"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        # 416: nothing comes after byte `have`. Either part is complete or it is something else.
        if e.code == 416 and have and size is None:
            if e.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            return pull(url, part, size, provable)
        raise Broken(f"HTTP {e.code} {e.reason}") from e
    except (OSError, http.client.HTTPException, ValueError) as e:  # the last: a strange redirect
        raise Broken(getattr(e, "reason", None) or e or type(e).__name__) from e
    with reply:
        if reply.status == 206:
            if not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise Broken("it answered with another range than the one asked for")
        else:
            have = 0  # pitfall: a server may ignore Range and send everything from the start
        total = content_length(reply)
        total = total if total is None else have + total
        # Both before the first byte is written: a good part must survive a network's login page.
        if reply.headers.get_content_type() == "text/html":
            raise Broken("it sent a web page instead of the file")
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise Broken("it sent the file packed, which nobody asked for")
        if size and total not in (None, size):
            raise Broken(f"it offers {total:,} bytes where {size:,} are expected")
        if total is None and not provable and not getattr(reply, "chunked", False):
            raise Broken("it does not say how long the file is, so a part would pass for the whole")
        receive(reply, part, have, total, size)


def content_length(reply):
    """How many bytes an open reply says that it sends, or None. Raises Broken for nonsense."""
    told = reply.headers.get("Content-Length") or ""
    if not (told.isascii() and told.isdigit()):
        return None
    if len(told) > len(str(LARGEST)) or int(told) > LARGEST:
        raise Broken("it says that it sends more bytes than any disk can hold")
    return int(told)


def receive(reply, part, have, total, size):
    """Writes what the open reply sends behind the have bytes of part."""
    show = progress(part.stem, total, have, megabytes=True)
    with open(part, "ab" if have else "wb") as f:
        while total is None or have < total:
            # Only this call is the network's; an OSError from the write below is the disk's.
            try:
                block = reply.read1(1 << 18)
            except (OSError, http.client.HTTPException) as e:
                raise Broken(str(e) or type(e).__name__) from e
            if not block:
                break
            f.write(block)
            have += len(block)
            show(have)
    # pitfall: a connection that breaks off looks like the end of the file; nothing raises.
    if have < (size or total or 0):
        raise Broken("the connection ended early")


def digest(path, kind):
    """The hash of a file as hex; kind is "sha256" or another name that hashlib knows."""
    h = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def verify(part, size, hashes, check):
    """Deletes a complete download and raises Broken if it is not the file that was asked for."""
    have = part.stat().st_size
    wrong = f"{have:,} bytes instead of {size:,}" if size not in (None, have) else ""
    for kind, wanted in hashes.items():
        # Read again from the disk: that covers the bytes of an earlier run and the disk itself.
        if wanted and not wrong and digest(part, kind) != wanted.lower():
            wrong = f"another {kind} than the published one"
    wrong = wrong or (check(part) if check else "")
    if wrong:
        part.unlink()
        raise Broken(f"it sent a wrong file, now deleted: {wrong}")


def download(urls, path, size=None, sha256=None, md5=None, check=None,
             choice="--help says with which flag"):
    """Fetches a file from the first of urls that works, and gives back its path. What is there
    already is not fetched again, and a broken download goes on where it stopped: path with .part
    behind it keeps the bytes. size in bytes, hashes in hex; check(part) gives back in words what
    is wrong with the file, if anything. A wrong file is deleted. UserError says how to go on;
    choice is how a user chooses another folder.

    pitfall: two processes must not fetch the same file at the same time. Let rank 0 go first.
    """
    urls, path = [urls] if isinstance(urls, str) else urls, Path(path)
    part, problems = path.with_name(path.name + ".part"), []
    try:
        # Nothing gets its final name before it has passed every check, so no hash is needed here.
        if path.is_file():
            if size not in (None, path.stat().st_size):
                raise UserError(f"{path}: has {path.stat().st_size:,} bytes instead of {size:,}; "
                                "delete it and run again")
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        for url in urls:
            try:
                pull(url, part, size, provable=size is not None or bool(sha256 or md5))
                verify(part, size, {"sha256": sha256, "md5": md5}, check)
                os.replace(part, path)
                return path
            except Broken as e:
                problems.append(f"{urllib.parse.urlsplit(url).netloc}: {str(e)[:200]}")
        have = part.stat().st_size if part.exists() else 0
    except OSError as e:  # those of the network have become Broken: this one is the disk's
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); make room, or choose "
                        f"another folder ({choice})") from e
    why = "; ".join(dict.fromkeys(problems))
    if have:
        raise UserError(f"{path}: broke off after {have / 1e6:,.1f} MB ({why}); run the same "
                        "command again to go on from there")
    raise UserError(f"{path}: could not be fetched ({why}); without a network, fetch {urls[0]} "
                    f"elsewhere and put it at {path}")
