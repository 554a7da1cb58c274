"""How a download survives bad servers, where public files are looked for, and the command.

No test leaves this computer: the downloads come from a small web server in a thread, which can also
do what bad servers do.
"""

import gzip
import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from test_weights import A, D, complaint, packed, saved

import weights.download
from lib.cli import UserError
from weights.__main__ import Config, main
from weights.download import download
from weights.public import FILES, Public, fault, locate
from weights.safetensors import write


class Handler(http.server.BaseHTTPRequestHandler):
    """Options: gone; ranges=False ignores Range; cut=n breaks the connection after n bytes, once;
    length=False does not tell the length, length="9" tells another one; kind="text/html"; shift=n
    answers another range; to="..." sends elsewhere; packed=True says so."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        wanted = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else None
        self.server.asked.append(wanted)
        data, options = self.server.goods[self.path]
        if options.get("gone"):
            return self.send_error(404)
        if "to" in options:
            self.send_response(302)
            self.send_header("Location", options["to"])
            return self.end_headers()
        begin, status, place = 0, 200, None
        if wanted and options.get("ranges", True):
            begin = wanted + options.get("shift", 0)
            status, place = (206, f"{begin}-{len(data) - 1}") if begin < len(data) else (416, "*")
        self.send_response(status)
        self.send_header("Content-Type", options.get("kind", "application/octet-stream"))
        if place:
            self.send_header("Content-Range", f"bytes {place}/{len(data)}")
        if options.get("packed"):
            self.send_header("Content-Encoding", "gzip")
        if length := options.get("length", len(data[begin:])):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data[begin:begin + options.pop("cut", len(data))])

    def log_message(self, *args):
        pass


class Shelf(http.server.ThreadingHTTPServer):
    """A web server on this computer. goods: {path: (bytes, options)}; asked: the first byte that
    each request asked for, None for all."""

    def put(self, path, data, **options):
        self.goods[path] = (data, options)
        return self.url + path


@pytest.fixture
def shelf(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Shelf(("127.0.0.1", 0), Handler) as server:
        server.goods, server.asked, server.url = {}, [], f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


DATA = bytes(range(256)) * 4000
N = len(DATA)  # 1,024,000
SHA, MD5 = hashlib.sha256(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()


def test_a_download_arrives_whole_and_only_once(shelf, tmp_path, capsys):
    url = shelf.put("/x.zip", DATA)
    path = tmp_path / "new" / "folder" / "x.zip"
    for _ in range(2):
        assert download(url, path, N, sha256=SHA.upper(), md5=MD5) == path
        assert path.read_bytes() == DATA and os.listdir(path.parent) == ["x.zip"]
    assert shelf.asked == [None]
    lines = capsys.readouterr().err.splitlines()  # not a terminal: a line for every tenth
    assert 2 <= len(lines) <= 12 and lines[-1].startswith("x.zip: 1.0 MB of 1.0, 0 s left, ")
    assert lines[-1].endswith(" MB/s")


@pytest.mark.parametrize("part, servers, size, asked", [
    # the first address is gone, the second breaks off, the third goes on
    (b"", [{"gone": True}, {"cut": 300_000}, {}], N, [None, None, 300_000]),
    # everything from the start, although asked for the rest: must not be appended
    (DATA[:1000], [{"ranges": False}], None, [1000]),
    (DATA[:1000], [{"ranges": False, "length": False}], None, [1000]),
    # too long, so not the beginning of this file
    (DATA + b"!", [{}], N, [None]), (DATA + b"!", [{}], None, [N + 1, None]),
    # complete: Ctrl-C came before the check. With the size known nobody is asked; without it the
    # server says 416, nothing comes after this byte.
    (DATA, [{}], N, []), (DATA, [{}], None, [N]),
])
def test_a_download_goes_on_where_one_broke_off(shelf, tmp_path, part, servers, size, asked):
    (tmp_path / "x.part").write_bytes(part)
    urls = [shelf.put(f"/{i}", DATA, **options) for i, options in enumerate(servers)]
    assert download(urls, tmp_path / "x", size, SHA).read_bytes() == DATA
    assert shelf.asked == asked and os.listdir(tmp_path) == ["x"]


LOGIN, WRONG = b"Please sign in", "wrong file, now deleted: "


@pytest.mark.parametrize("data, options, known, says, left", [
    (DATA, {"cut": 300_000}, {}, "broke off after 0.3 MB", DATA[:300_000]),
    # a wrong answer does not cost what has come already
    (DATA, {"shift": 7}, {}, "another range", DATA[:1000]),
    (LOGIN, {"ranges": False, "kind": "text/html; charset=utf-8"}, {}, "a web page", DATA[:1000]),
    (LOGIN, {"ranges": False}, {"size": N}, "offers 14 bytes where 1,024,000", DATA[:1000]),
    (DATA, {"length": "9" * 400}, {}, "more bytes than any disk", DATA[:1000]),
    (DATA, {"packed": True}, {}, "packed, which nobody asked for", DATA[:1000]),
    # nobody could tell a part from the whole
    (DATA, {"length": False, "ranges": False}, {}, "does not say how long", DATA[:1000]),
    *((DATA, {"to": to}, {}, "broke off after", DATA[:1000])
      for to in ("http://127.0.0.1:abc/x", "http://[::1/x", "http://127.0.0.1 x/", "file:///x",
                 "http://\u2603/", "http://127.0.0.1:99999/x", "")),
    # a wrong file does
    (DATA, {}, {"sha256": "0" * 64}, f"{WRONG}another sha256", None),
    (DATA, {}, {"md5": "0" * 32}, f"{WRONG}another md5", None),
    (DATA, {}, {"check": lambda part: "it smells"}, f"{WRONG}it smells", None),
    (DATA + b"!", {"length": False}, {"size": N}, f"{WRONG}1,024,001 bytes instead of", None),
])
def test_a_failed_download_says_why_and_the_next_one_works(shelf, tmp_path, data, options, known,
                                                           says, left):
    path, part = tmp_path / "x", tmp_path / "x.part"
    if left != DATA[:300_000]:
        part.write_bytes(DATA[:1000])
    text = complaint(download, shelf.put("/x", data, **options), path, **known)
    assert says in text and str(path) in text and not path.exists()
    assert (part.read_bytes() if part.exists() else None) == left
    assert left is None or "run the same command again" in text
    assert download(shelf.put("/y", DATA), path, N, SHA).read_bytes() == DATA


def test_a_file_of_another_size_under_the_final_name_is_left_alone(shelf, tmp_path):
    (tmp_path / "x").write_bytes(b"mine")
    text = complaint(download, shelf.put("/x", DATA), tmp_path / "x", N)
    assert "4 bytes instead of 1,024,000" in text and (tmp_path / "x").read_bytes() == b"mine"


@pytest.mark.parametrize("listens", [False, True])
def test_where_nobody_answers_one_line_says_what_to_put_where(tmp_path, monkeypatch, listens):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(weights.download, "TIMEOUT", 0.2)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        if listens:  # takes the call and says nothing
            s.listen()
        url = f"http://127.0.0.1:{s.getsockname()[1]}/x"
        text = complaint(download, url, tmp_path / "x")
    assert f"fetch {url} elsewhere and put it at {tmp_path / 'x'}" in text
    assert ("timed out" if listens else "refused") in text


@pytest.mark.parametrize("event, says", [
    (KeyboardInterrupt(), None),
    (OSError(28, "No space left on device"), "cannot be written (No space left on device)"),
])
def test_ctrl_c_and_a_full_disk_keep_what_has_come(shelf, tmp_path, monkeypatch, event, says):
    """And the disk is not blamed on the network: the second address is not tried."""
    def interrupted(*args, **kw):
        return lambda done: (_ for _ in ()).throw(event)

    monkeypatch.setattr(weights.download, "progress", interrupted)
    with pytest.raises(UserError if says else KeyboardInterrupt) as e:
        download([shelf.put("/x", DATA)] * 2, tmp_path / "x", N, SHA)
    part = (tmp_path / "x.part").read_bytes()
    assert 0 < len(part) <= N and DATA.startswith(part) and len(shelf.asked) == 1
    assert not says or says in str(e.value)


# ------------------------------------------------------------------------ the public files

def test_every_public_file_has_two_addresses_and_sound_numbers():
    assert {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "gpt2/vocab.json",
            "gpt2/merges.txt", "bert-base-uncased", "bert-base-uncased/vocab.txt", "t5-base",
            "t5-base/spiece.model", "smollm2", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px",
            "clip/bpe_simple_vocab_16e6.txt.gz"} == FILES.keys()
    for public in FILES.values():
        assert len({url for url in public.urls if url.startswith("https://")}) == 2
        assert public.sha256 is None or len(bytes.fromhex(public.sha256)) == 32
    assert FILES["ViT-L/14@336px"].file == "clip/ViT-L-14-336px.pt"


def test_gpt2s_size_is_the_sum_of_its_parts():
    """12 blocks of width 768, embeddings, the last norm: 124,439,808 parameters. 12 causal masks of
    1024 x 1024; 4 bytes each, behind a header of 14,283 bytes and its 8 bytes of length."""
    d = 768
    numbers = 12 * (12 * d * d + 13 * d) + (50257 + 1024) * d + 2 * d
    assert numbers == 124_439_808
    assert FILES["gpt2"].size == 8 + 14_283 + 4 * (numbers + 12 * 1024 * 1024)


SAFE = packed({"a": A}, D)  # a small safetensors file
ARCHIVE = saved({"a": torch.ones(2)})  # a small zip of torch
SMALL = {"gpt2": (SAFE, "gpt2/model.safetensors", "openai-community/gpt2"),
         "ViT-B/32": (ARCHIVE, "clip/ViT-B-32.pt", None)}


@pytest.fixture
def home(tmp_path, shelf, monkeypatch):
    """A home folder without caches, and two public files that are small and on our own server."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("SEEGPT_CACHE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, (data, file, repo) in SMALL.items():
        url, sha256 = shelf.put(f"/{file}", data), hashlib.sha256(data).hexdigest()
        monkeypatch.setitem(FILES, name, Public(file, [url, url + "2"], len(data), sha256, repo))
    return tmp_path


@pytest.fixture
def unknown(home, monkeypatch):
    """As for gpt2-large, whose size and sha256 are in no certain source."""
    monkeypatch.setitem(FILES, "gpt2", FILES["gpt2"]._replace(size=None, sha256=None))


def put(path, data):
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def test_a_public_file_is_downloaded_once_into_our_cache(home, shelf, monkeypatch):
    path = home / ".cache/seegpt/gpt2/model.safetensors"
    assert locate("gpt2") == locate("gpt2") == path and path.read_bytes() == SAFE
    assert len(shelf.asked) == 1
    monkeypatch.setenv("SEEGPT_CACHE", str(home / "elsewhere"))
    assert locate("gpt2") == home / "elsewhere/gpt2/model.safetensors"


@pytest.mark.parametrize("name, place, variables", [
    ("gpt2", ".cache/huggingface/hub/models--openai-community--gpt2/snapshots/607a", {}),
    # the repository's name before 2024
    ("gpt2", ".cache/huggingface/hub/models--gpt2/snapshots/e7da", {}),
    ("gpt2", "hf/hub/models--gpt2/snapshots/e7da", {"HF_HOME": "hf"}),
    ("gpt2", "hub2/models--gpt2/snapshots/e7da", {"HF_HUB_CACHE": "hub2", "HF_HOME": "hf"}),
    ("gpt2", "hub3/models--gpt2/snapshots/e7da", {"HUGGINGFACE_HUB_CACHE": "hub3"}),
    ("ViT-B/32", ".cache/clip", {}),
])
def test_what_others_have_downloaded_is_found(home, shelf, monkeypatch, name, place, variables):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, str(home / value))
    data, file, _ = SMALL[name]
    path = put(home / place / file.split("/")[1], data)
    assert locate(name) == path and shelf.asked == []
    path.write_bytes(data[:-1])  # a damaged file in another's cache is passed over
    assert locate(name) == home / ".cache/seegpt" / file


@pytest.mark.parametrize("data, says", [
    (SAFE[:-1], "bytes, the published one"),
    (b"\xff" * len(SAFE), "not a weight file known"),  # the right size, and yet
])
def test_a_damaged_file_in_our_own_cache_is_named(home, data, says):
    ours = put(home / ".cache/seegpt/gpt2/model.safetensors", data)
    text = complaint(locate, "gpt2")
    assert says in text and "delete it" in text and str(ours) in text and ours.exists()


def test_without_hash_and_size_the_structure_must_do(unknown, shelf):
    shelf.put("/gpt2/model.safetensors", SAFE[:-1])
    assert "wrong file, now deleted: not a sound safetensors" in complaint(locate, "gpt2")


@pytest.mark.parametrize("kind, good, bad", [
    ("vocab.json", b'{"!": 0}', b'{"!": '),
    ("merges.txt", b"#version: 0.2\n\xc4\xa0 t\n", b"\xff\xfe"),
    ("bpe.txt.gz", gzip.compress(b"a b"), gzip.compress(b"a b")[:-9]),
    ("x.pt", ARCHIVE, b"PK\x03\x04 and nothing more"),
    ("x.safetensors", SAFE, SAFE[:-1]),
    ("x.safetensors", SAFE, ARCHIVE),
], ids=["json", "txt", "gz", "pt", "safetensors", "another kind"])
def test_the_structure_of_every_kind_of_public_file_is_checked(tmp_path, kind, good, bad):
    for data in (good, bad):
        (tmp_path / "x").write_bytes(data)
        problem = fault(tmp_path / "x", Public(f"folder/{kind}", [], None, None))
        assert bool(problem) == (data == bad)


def test_a_file_is_itself_and_an_unknown_name_is_answered_with_the_nearest_one(home):
    assert locate(home) == locate(str(home)) == home
    assert "did you mean ViT-B/16?" in complaint(locate, "ViT-B-16")
    assert "gpt2-medium" in complaint(locate, "llama")


# ------------------------------------------------------------------------------ the command

def test_the_command_fetches_and_says_what_was_checked(home, capsys):
    main(Config(["gpt2", "ViT-B/32"]))
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and out[0].startswith(f"gpt2: {home}")
    assert out[0].endswith("checked: size, structure, sha256")


def test_the_command_says_where_no_hash_is_known(unknown, capsys):
    main(Config(["gpt2"]))
    assert "checked: structure (no sha256 is known)" in capsys.readouterr().out


def test_the_command_computes_the_hash_of_a_file_it_only_found(home):
    """locate goes by size and structure; the command, asked by a person, looks closer."""
    put(home / ".cache/seegpt/gpt2/model.safetensors", SAFE[:-1] + b"!")
    locate("gpt2")
    assert "sha256" in complaint(main, Config(["gpt2"]))


def test_the_command_prints_what_is_in_a_file(tmp_path, capsys):
    write(tmp_path / "x", {"wte.weight": torch.ones(3, 2).half(), "n": torch.tensor(1)}, {"k": "v"})
    main(Config([str(tmp_path / "x")]))
    out = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["wte.weight", "3", "x", "2", "float16"] in out and ["n", "scalar", "int64"] in out
    assert out[-2:] == ["metadata: k = v".split(), "2 tensors, 7 numbers, 20 bytes".split()]


def test_the_command_without_a_name_lists_the_public_files(capsys):
    main(Config([]))
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == list(FILES)
    assert "548.1 MB" in out[0] and out[0].endswith("/model.safetensors")


def test_from_the_shell_a_mistake_is_one_line_and_status_1():
    done = subprocess.run([sys.executable, "-m", "weights", "gtp2"], text=True,
                          capture_output=True, cwd=Path(weights.__file__).parent.parent)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: gtp2") and "did you mean gpt2?" in done.stderr
