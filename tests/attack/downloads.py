"""Downloads from a server on this computer that does what bad servers, networks and malice do.

A case is a script of faults, one for each request, and what lies on the disk already; the download
is called up to four times, as a user runs a command again. Where it gets its final name, the file
must be right; for what has neither size nor hash, never a part of the file.
"""

import contextlib
import functools
import gzip
import hashlib
import http.server
import json
import os
import random
import socket
import struct
import threading
import time
import zipfile

import weights.download
from data.archives import extract
from data.nocaps import prepare as nocaps
from lib.cli import UserError
from tests.dataset_trees import jpeg
from weights.download import download
from weights.public import Public, fault

CASES = 600
weights.download.TIMEOUT, nocaps.PAUSE = 1, 0
os.environ["no_proxy"] = "127.0.0.1"
HEAD = b"HTTP/1.1 200 OK\r\n"
REDIRECTS = ("file:///etc/passwd", "ftp://127.0.0.1:1/x", "data:text/plain,hello", "/again", "",
             "http://127.0.0.1:abc/x", "http://127.0.0.1:99999/x", "http://[::1/x", "gopher://a/b",
             "http://127.0.0.1 x/", "http://127.0.0.1/\x0bx", "http://127.0.0.1:1/\u00e9\u4e00",
             "http://" + "a" * 300 + "/x", "http://\u2603.\u2603/", "//", "?", "http:///x", "///")
# {fault: what is sent in place of the file}; {n} is its length.
RAW = {"garbage": random.Random(1).randbytes(300), "nothing": b"",
       "no status": b"HTTP/1.1 xyz\r\n\r\n",
       "long header": HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
       "many headers": HEAD + b"X: y\r\n" * 500 + b"\r\n", "none": b"HTTP/1.1 204 No\r\n\r\n",
       "codes": b"HTTP/1.1 503 \x1b[31mred\x07\r\nContent-Length: 0\r\n\r\n",
       "huge length": HEAD + b"Content-Length: " + b"9" * 400 + b"\r\n\r\nabc",
       "large length": HEAD + b"Content-Length: 99999999999999\r\n\r\nabc",
       "odd length": HEAD + "Content-Length: \u00b2\r\n\r\nabc".encode("latin1"),
       "negative": HEAD + b"Content-Length: -5\r\n\r\nabc",
       "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
       "odd header": HEAD + b"\xff\xfe: x\r\nnocolon\r\n\r\nabc", "empty": HEAD + b"\r\n",
       "bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
       "page": HEAD + b"Content-Type: text/html\r\nContent-Length: 5\r\n\r\n<html",
       "416": b"HTTP/1.1 416 no\r\nContent-Range: bytes */{n}\r\nContent-Length: 0\r\n\r\n",
       "416 odd": b"HTTP/1.1 416 no\r\nContent-Range: bytes */x\r\nContent-Length: 0\r\n\r\n",
       "shifted": b"HTTP/1.1 206 P\r\nContent-Range: bytes 7-9/{n}\r\nContent-Length: 3\r\n\r\nabc",
       "no range": b"HTTP/1.1 206 P\r\nContent-Length: 3\r\n\r\nabc",
       **{f"HTTP {code}": b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % code
          for code in (301, 401, 404, 429, 500, 503)}}
SENT = ("good", "good", "cut", "no length, cut", "no length, cut", "no length", "ignores the range",
        "wrong byte", "chunks, cut", "chunks", "packed", "rubbish behind", "reset", "slow",
        "silent")


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, raw = self.server, self.wfile.write
        what = server.script.pop(0) if server.script else "good"
        data, asked = server.data, self.headers.get("Range")
        have = int(asked.split("=")[1].rstrip("-")) if asked and what != "ignores the range" else 0
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            if what in RAW:
                return raw(RAW[what].replace(b"{n}", str(len(data)).encode()))
            if what.startswith("to "):
                return raw(b"HTTP/1.1 302 F\r\nContent-Length: 0\r\nLocation: "
                           + what[3:].encode("utf-8") + b"\r\n\r\n")
            if have >= len(data):
                return raw(RAW["416"].replace(b"{n}", str(len(data)).encode()))
            self.send(what, bytearray(data), have, raw)

    def send(self, what, data, have, raw):
        """The file, or what is missing of it, in some way."""
        if what == "wrong byte":
            data[len(data) // 2] ^= 1
        if what == "packed":
            data, have = gzip.compress(data), 0
        status = (b"HTTP/1.1 206 P\r\nContent-Range: bytes %d-%d/%d\r\n"
                  % (have, len(data) - 1, len(data)) if have else HEAD)
        body = bytes(data[have:])
        length = b"Content-Length: %d\r\n" % len(body)
        if what == "packed":
            length += b"Content-Encoding: gzip\r\n"
        elif what.startswith("chunks"):
            length = b"Transfer-Encoding: chunked\r\n"
            body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        elif what.startswith("no length"):
            length = b""
        raw(status + length + b"\r\n")
        if what == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if what == "silent":
            time.sleep(1.5)
        if what == "slow":
            for i in range(5):
                raw(body[i:i + 1])
                time.sleep(0.05)
            body = body[5:]
        raw(body[:len(body) // 2] if "cut" in what or what in ("reset", "silent") else body)
        raw(b"rubbish" if what == "rubbish behind" else b"")


@functools.cache
def started():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@functools.cache
def goods():
    """{name of a file: its bytes}, one for each way in which structure is checked."""
    text = {str(i): i for i in range(3000)}
    header = json.dumps({"a": {"dtype": "U8", "shape": [9000], "data_offsets": [0, 9000]}}).encode()
    archive = gzip.io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("in/a.txt", random.Random(3).randbytes(5000))
    return {"x.gz": gzip.compress(random.Random(2).randbytes(9000)),
            "vocab.json": json.dumps(text).encode(), "merges.txt": b"#version\n" + b"a b\n" * 3000,
            "x.safetensors": len(header).to_bytes(8, "little") + header + bytes(9000),
            "x.zip": archive.getvalue(), "x.jpg": jpeg()}


def case(rng, folder):
    name = rng.choice([*goods()])
    known = rng.choice(("nothing", "nothing", "size", "sha256", "both"))
    known = "nothing" if name == "x.jpg" else known  # of nocaps' images nobody knows more
    faults = [*RAW, *SENT, *SENT, *(f"to {place}" for place in REDIRECTS)]
    script = [rng.choice(faults) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
    there = rng.choice((None, None, None, "half", "whole", "longer", "other", "dir"))
    data, path = goods()[name], folder / "cache" / name
    part = path.with_name(f"{name}.part")
    part.parent.mkdir()
    if there == "dir":
        part.mkdir()
    elif there:
        half = data[:len(data) // 2]
        part.write_bytes({"half": half, "whole": data, "longer": data + b"more",
                          "other": bytes(len(half))}[there])
    return f"{name} {known} {script} {there}", lambda: again_and_again(path, data, known, script)


def again_and_again(path, data, known, script):
    server = started()
    server.data, server.script = data, list(script)
    url = f"http://127.0.0.1:{server.server_port}/{path.name}"
    size = len(data) if known in ("size", "both") else None
    sha256 = hashlib.sha256(data).hexdigest() if known in ("sha256", "both") else None
    public, said = Public(path.name, [url], size, sha256), None
    check = None if path.suffix == ".zip" else lambda part: fault(part, public)
    for _ in range(4):
        try:
            if path.suffix == ".jpg":
                said = nocaps.fetch_image((path, url))
            else:
                download([url] * (1 + len(script) % 2), path, size, sha256, check=check)
                if path.suffix == ".zip":
                    extract(path, path.parent, {"in/a.txt"})
                said = None
            break
        except UserError as e:
            said = str(e)
    if path.exists() and (got := path.read_bytes()) != data:
        # Without size and hash nobody can tell a wrong byte, or what came before from another file.
        assert not sha256 and not data.startswith(got), f"{len(got)} bytes in place of {len(data)}"
    assert {p.name for p in path.parent.parent.iterdir()} == {"cache"}
    if said:
        raise UserError(said)


case.patience = 100  # seconds: others may want the processor, too
