"""Weight files: read by hand and safely, written, and fetched from where they are published.

A weight file is a table of named tensors. Three layouts are met in practice; read() tells them
apart by their first bytes, whatever the file is called:

    safetensors  | N, 8 bytes | N bytes of JSON: name -> dtype, shape, place | raw numbers ... |
    torch.save   | a zip with a pickle that rebuilds a dictionary (before torch 1.6: no zip)   |
    TorchScript  | a zip with a pickle of a whole tree of modules, and one member per storage  |

A pickle is a small program, and a hostile one runs commands on your computer while it is being
read. So none is read freely here: torch.load gets weights_only=True, and TorchScript archives go
through an unpickler that knows the few things a tensor is made of and refuses everything else.

    python weights.py                       the public files this module knows
    python weights.py gpt2 ViT-B/16         fetch them; say where they lie and what was checked
    python weights.py model.safetensors     print what is inside a file or a folder

The first half reads and writes, the second half (from "downloading" on) fetches and may be
skipped on a first reading. Sources: safetensors/src/tensor.rs for the checks, openai/CLIP
clip/clip.py for addresses and hashes.

Next: gpt2.py
"""

import collections
import contextlib
import dataclasses
import difflib
import gzip
import hashlib
import http.client
import io
import json
import os
import pickle
import re
import sys
import time
import typing
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from pathlib import Path

import torch

from lib.cli import UserError, opt, parse, run

# What a folder of weights may hold, the preferred one first.
NAMES = ("model.safetensors", "model.safetensors.index.json",
         "pytorch_model.bin", "pytorch_model.bin.index.json")

# ---------------------------------------------------------------------------------------------
# finding out what a file is

MAX_HEADER = 100_000_000  # bytes of safetensors header; the official reader's limit
OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # how torch.save began before 1.6


def find(path):
    """The file that is meant by path: itself, or the first of NAMES inside a folder."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: this folder holds none of {', '.join(NAMES)}")


@contextlib.contextmanager
def plain_errors(path):
    """Turns a complaint of the operating system (no such file, disk full) into a UserError."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}") from e


def sniff(path):
    """Tells "safetensors", "zip", "old" (torch before 1.6) or "index" by the first bytes.

    Endings lie: "pytorch_model.bin" may be a zip or not, and OpenAI's .pt is no torch.save file.
    UserError for everything else; the usual accidents are called by their names.
    """
    with open(path, "rb") as f:
        head = f.read(512)
    text = head.lstrip().lower()
    if not head:
        raise UserError(f"{path}: the file is empty; delete it and fetch it again")
    # pitfall: a clone made without git-lfs holds three lines of text in place of every big file.
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: only a Git LFS pointer, not the weights themselves; run "
                        "`git lfs pull` in that clone, or download the file itself")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: a web page, probably an error or login page saved under this "
                        "name; delete it and fetch the file again")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(OLD_TORCH):
        return "old"
    # Text never looks like so small a number: its 5th to 8th byte would have to be zero.
    if len(head) > 8 and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return "safetensors"
    if text.startswith(b"{"):
        return "index"
    raise UserError(f"{path}: not a weight file known here (safetensors, torch.save, TorchScript, "
                    f"index of shards); it begins with {head[:8]!r}; fetch it again")


# ---------------------------------------------------------------------------------------------
# safetensors

# The format's names for number types -> torch's. Older versions of torch lack the last few: a file
# that needs one is refused by name. So are F4 and F6, whose numbers are smaller than a byte.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
          "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
          "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
          "BOOL": "bool", "C64": "complex64", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
          "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E4M3FNUZ": "float8_e4m3fnuz",
          "F8_E8M0": "float8_e8m0fnu"}
DTYPES = {name: getattr(torch, ours) for name, ours in DTYPES.items() if hasattr(torch, ours)}


def no_twins(pairs):
    """For json: a dictionary in which a name that occurs twice is an error, not silently lost."""
    result = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name!r} occurs twice")
        result[name] = value
    return result


def parse_header(raw):
    """The JSON of a header as {name: {dtype, shape, data_offsets}} and {str: str} metadata:

        {"wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 154389504]}, ...

    Python's json is more generous than the format: it takes NaN, -0, True for 1, and the last of
    two equal names. ValueError or RecursionError for all that the official reader refuses.
    """
    def word(x):
        raise ValueError(f"{x} is not JSON")

    # No number here may be negative. As a float it falls through the test for integers below.
    table = json.loads(raw.decode("utf-8"), object_pairs_hook=no_twins, parse_constant=word,
                       parse_int=lambda s: float(s) if s[0] == "-" else int(s))
    json.dumps(table, ensure_ascii=False).encode()  # fails on one half of a surrogate pair
    if not raw.startswith(b"{"):
        raise ValueError("the header does not begin with {")
    notes = table.pop("__metadata__", None)
    notes = {} if notes is None else notes
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise ValueError("__metadata__ must map names to strings")
    for name, entry in table.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name!r} must have dtype, shape and data_offsets, nothing else")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
            raise ValueError(f"{name!r} needs a list as its shape and two data_offsets")
        if any(type(n) is not int for n in shape + offsets):  # isinstance would let True pass
            raise ValueError(f"{name!r} has a size or place that is no whole number from 0 up")
        if str(entry["dtype"]) not in DTYPES:
            raise ValueError(f"{name!r} has the dtype {entry['dtype']!r}, which torch "
                             f"{torch.__version__} or this reader does not know")
    return table, notes


def lay_out(table, room):
    """{name: (dtype, shape, bytes)} in the order of the data, which have room bytes.

    ValueError unless the tensors fill the room exactly: no hole, no overlap, nothing left over.
    """
    # In this order the offsets must form a chain, which rules out holes and overlaps in one pass. A
    # tensor without elements sorts before the one that begins at the same place.
    tensors, place = {}, 0
    for name in sorted(table, key=lambda name: table[name]["data_offsets"]):
        dtype, shape = DTYPES[table[name]["dtype"]], table[name]["shape"]
        begin, end = table[name]["data_offsets"]
        size = reach = dtype.itemsize
        for n in shape:
            # torch counts strides in 64 bits, and as if no side of the box were 0.
            size, reach = size * n, reach * max(n, 1)
        if reach >= 2**63:
            raise ValueError(f"{name!r} has the impossible shape {shape}")
        if begin != place:
            raise ValueError(f"{name!r} begins at byte {begin}, the one before ends at {place}")
        if end - begin != size:
            raise ValueError(f"{name!r} has {end - begin} bytes for {dtype} of shape {shape}")
        tensors[name], place = (dtype, shape, size), end
    if place > room:
        raise ValueError(f"cut off: {room:,} bytes of data, its header counts {place:,}")
    if place < room:
        raise ValueError(f"{room - place:,} bytes at its end belong to no tensor")
    return tensors


def header(path):
    """The header of a safetensors file: what lay_out gives, the metadata, and where the data begin.

    A file that passes here is as long as its tensors, so nothing that is read later can surprise.
    """
    # sniff has seen that length is at most MAX_HEADER: a lying file cannot make us read for long.
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        raw = f.read(length)
        room = f.seek(0, io.SEEK_END) - 8 - length
    try:
        if room < 0:
            raise ValueError(f"cut off inside its header of {length:,} bytes")
        table, notes = parse_header(raw)
        return lay_out(table, room), notes, 8 + length
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not a sound safetensors file: {e}; fetch or make it again") from e


def raw_bytes(x):
    """A CPU tensor as a flat numpy array of bytes, row by row. They are its own memory if it is
    contiguous, else a copy. Bytes, because numpy has no bfloat16."""
    return x.reshape(-1).view(torch.uint8).numpy()


def read_safetensors(path):
    """The tensors of one safetensors file, each read straight into memory of its own."""
    entries, _, start = header(path)
    tensors = {}
    with open(path, "rb") as f:
        f.seek(start)
        for name, (dtype, shape, size) in entries.items():
            # pitfall: views of a memory map would save this copy, but the header of gpt2's own file
            # has an odd length, and no float32 view may begin at an odd address.
            tensors[name] = torch.empty(shape, dtype=dtype)
            if f.readinto(raw_bytes(tensors[name])) != size:
                raise UserError(f"{path}: {name!r} changed while it was read; try again")
    return tensors


def write(path, tensors, metadata=None):
    """Writes {name: tensor} and {str: str} metadata as a safetensors file, whole or not at all.

    Tied tensors are written once under every name. UserError for what the format cannot hold and
    for a full or forbidden disk.
    """
    path, names = Path(path), {dtype: name for name, dtype in DTYPES.items()}
    table, place = {}, 0
    if metadata:
        if not all(isinstance(s, str) for pair in metadata.items() for s in pair):
            raise UserError(f"{path}: safetensors metadata can only map strings to strings")
        table["__metadata__"] = dict(metadata)
    # Wide numbers first, and the header padded to 8 bytes: so every tensor begins at a multiple of
    # its item size, and other readers can map the file into memory.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        x = tensors[name]
        if name == "__metadata__" or x.dtype not in names or x.layout != torch.strided:
            raise UserError(f"{path}: safetensors cannot hold {name!r} ({x.dtype}, {x.layout})")
        end = place + x.numel() * x.element_size()
        table[name] = {"dtype": names[x.dtype], "shape": list(x.shape),
                       "data_offsets": [place, end]}
        place = end
    raw = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    # Written beside its place and moved there when complete: otherwise a crash half-way would leave
    # half a checkpoint where the good one of an hour ago was.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with plain_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as f:
                f.write(len(raw).to_bytes(8, "little") + raw)
                for name in order:
                    f.write(raw_bytes(tensors[name].detach().cpu()))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------
# torch.save and TorchScript

# How a pickle calls the storage of each dtype.
STORAGES = {"DoubleStorage": torch.float64, "FloatStorage": torch.float32,
            "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
            "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
            "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}


def copies(tensors):
    """Contiguous copies that share no memory. The given dictionary is emptied on the way, so that
    no more than one tensor is held twice."""
    return {name: tensors.pop(name).detach().clone(memory_format=torch.contiguous_format)
            for name in list(tensors)}


def refused(path, e):
    """The one-line error for a pickle that did not pass, from the exception e that stopped it."""
    asks = re.search(r"GLOBAL (\S+)", str(e))  # how both unpicklers name what they refuse to call
    if asks:
        return UserError(f"{path}: refused, because reading it would call {asks[1]}, which is no "
                         "part of a tensor and may be hostile; ask for a safetensors file")
    first = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
    return UserError(f"{path}: damaged or cut off ({first}); delete it and fetch it again")


def read_torch(path):
    """The tensors of a state dict written by torch.save, in the zip format or the one before it."""
    try:
        # pitfall: given a name, torch.load goes by its ending; given an open file, by its content.
        with open(path, "rb") as f:
            tensors = torch.load(f, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged pickle can raise almost anything
        raise refused(path, e) from e
    if not isinstance(tensors, dict):
        raise UserError(f"{path}: holds a {type(tensors).__name__}, not a dictionary of tensors; "
                        "save model.state_dict()")
    for name, x in tensors.items():
        # Not plain: sparse or quantized tensors, and the meta device's shapes without numbers. A
        # dictionary inside is what training scripts save, with the optimizer beside the model.
        if not isinstance(name, str) or not isinstance(x, torch.Tensor) \
                or x.layout != torch.strided or x.device.type != "cpu" or x.is_quantized:
            raise UserError(f"{path}: {name!r} is a {type(x).__name__} that is no plain tensor; "
                            "save model.state_dict() and nothing beside it")
    return copies(tensors)


class Module:
    """Stands for any object in a TorchScript archive: remembers its attributes, runs nothing."""
    attributes = {}

    def __setstate__(self, state):
        self.attributes = state

    def tensors(self, prefix=""):
        """Yields (dotted name, tensor), depth first; numbers, flags and lists are passed over."""
        for name, value in self.attributes.items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.tensors(f"{prefix}{name}.")


class Unpickler(pickle.Unpickler):
    """Reads data.pkl of a TorchScript archive. Python's own unpickler imports and calls whatever
    the file names; this one answers with a few functions of its own or refuses. The little program
    for one tensor says

        _rebuild_tensor_v2(storage "7" of HalfStorage with 12 numbers, offset 0, size (3, 4), ...)

    and member data/7 of the zip holds those 24 bytes."""

    def __init__(self, archive, root):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root, self.storages = archive, root, {}

    def find_class(self, module, name):
        # The classes of the archive's own code, which we never load.
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # as_strided raises if the view would leave its storage.
            return lambda flat, offset, size, stride, *_: flat.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        # Lists with a type, and device names: kept as they come, nobody looks at them.
        if module == "torch.jit._pickle" or (module, name) == ("torch", "device"):
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid):
        """A storage as a flat tensor. Two tensors may name the same one: tied weights."""
        _, dtype, key, _, count = pid  # the device name is ignored: CLIP's files say cuda:0
        if (key, dtype) not in self.storages:
            member = self.archive.getinfo(f"{self.root}data/{key}")
            if member.file_size != count * dtype.itemsize:  # before memory is taken for it
                raise pickle.UnpicklingError(f"storage {key} does not hold {count} x {dtype}")
            flat = self.storages[key, dtype] = torch.empty(count, dtype=dtype)
            with self.archive.open(member) as f:
                f.readinto(raw_bytes(flat))
        return self.storages[key, dtype]


def read_script(path):
    """The parameters and buffers of a TorchScript archive, such as OpenAI's CLIP files.

    differs: openai/CLIP calls torch.jit.load, which torch has deprecated and means to drop, and
    which brings the archive's code to life where we only want its numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            root = next(n for n in members if n.rpartition("/")[2] == "data.pkl")[:-len("data.pkl")]
            # Archives from before this member existed have little-endian numbers.
            if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
                raise ValueError("written on a big-endian machine")
            top = Unpickler(archive, root).load()
        # Without this check a dictionary would come out as a model without any tensors.
        if not isinstance(top, Module):
            raise ValueError(f"a {type(top).__name__} instead of a TorchScript module")
        tensors = copies(dict(top.tensors()))
    except Exception as e:  # a damaged pickle can raise almost anything
        raise refused(path, e) from e
    if not tensors:
        raise UserError(f"{path}: a TorchScript module without any tensors; fetch another file")
    return tensors


# ---------------------------------------------------------------------------------------------
# reading any of them


def read_file(path):
    """The tensors of one file that is no index."""
    kind = sniff(path)
    if kind == "safetensors":
        return read_safetensors(path)
    if kind == "old":
        return read_torch(path)
    if kind == "index":
        raise UserError(f"{path}: JSON, where the index of shards promises a weight file; "
                        "fetch the model again")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name.rpartition("/")[2] for name in archive.namelist()]
    except zipfile.BadZipFile as e:
        raise UserError(f"{path}: a damaged zip archive, probably cut off ({e}); delete it and "
                        "fetch it again") from e
    if members.count("data.pkl") != 1:
        raise UserError(f"{path}: a zip archive, but none that torch wrote (no single data.pkl "
                        "in it); if the weights were zipped, unzip them first")
    # torch.load itself tells the two apart by this member.
    return read_script(path) if "constants.pkl" in members else read_torch(path)


def read_index(path):
    """The tensors of a model cut into shards: {"weight_map": {tensor name: file beside the index}}.

    UserError when a shard lacks a tensor that the index promises, or holds one it does not name.
    """
    try:
        index = json.loads(path.read_bytes(), object_pairs_hook=no_twins)
        where = index["weight_map"]
        shards = sorted(set(where.values()))
        # A shard lies beside its index: "../x", "/x" and "C:x" would reach into other folders.
        strange = [shard for shard in shards if not re.fullmatch(r"\w[\w.+-]*", shard)]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: JSON, but no index of shards (no sound weight_map); give the "
                        "weight file itself, or the folder it lies in") from e
    if strange or not shards:
        raise UserError(f"{path}: its weight_map must name files of this folder, not {strange}; "
                        "fetch the model again")
    tensors = {}
    for shard in shards:
        file = path.parent / shard
        if not file.is_file():
            raise UserError(f"{file}: missing; {path.name} needs {len(shards)} shards beside it")
        part, wanted = read_file(file), {name for name in where if where[name] == shard}
        # Half an old and half a new download would otherwise give a model that talks nonsense.
        if part.keys() != wanted:
            missing, extra = sorted(wanted - part.keys()), sorted(part.keys() - wanted)
            raise UserError(f"{file}: does not fit {path.name} (lacks {missing[:3]}, has besides "
                            f"{extra[:3]}); fetch the index and all shards again")
        tensors.update(part)
    return tensors


def read(path):
    """All tensors {name: tensor} of a weight file, of a sharded index, or of a folder with either.

    They are contiguous copies on the CPU in the dtype of the file, which is often a 16-bit one.
    UserError names the file, and the tensor where there is one, and says what to do.
    """
    path = find(path)
    with plain_errors(path):
        return read_index(path) if sniff(path) == "index" else read_file(path)


def metadata(path):
    """The {str: str} notes in the header of a safetensors file; {} for every other kind."""
    path = find(path)
    with plain_errors(path):
        return header(path)[1] if sniff(path) == "safetensors" else {}


# ---------------------------------------------------------------------------------------------
# into a model


def fill(build, tensors, path):
    """The frozen-ready model made by build() with exactly these tensors, in float32 and eval mode.

    UserError if a tensor is missing, unknown or of the wrong shape: nothing is skipped silently.
    """
    with torch.device("meta"):  # shapes only: random weights would be made just to be thrown away
        model = build()
    ours = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    theirs = {name: tuple(t.shape) for name, t in tensors.items()}
    wrong = [f"{n} is missing" for n in ours if n not in theirs]
    wrong += [f"{n} is unknown" for n in theirs if n not in ours]
    wrong += [f"{n} is {theirs[n]}, not {ours[n]}" for n in ours
              if n in theirs and ours[n] != theirs[n]]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{path} does not fit {type(model).__name__}: {'; '.join(wrong[:5])}{more}."
                        " HINT: is it a file of another model, or of another size than its "
                        "config.json says?")
    model.load_state_dict({n: t.float().contiguous() for n, t in tensors.items()}, assign=True)
    return model.eval()


def byte_symbols():
    """{symbol: byte} of GPT-2's and CLIP's vocabulary files, in the order of their first 256 ids.

    Bytes that do not print are shown as the characters chr(256), chr(257), ...
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


# ---------------------------------------------------------------------------------------------
# downloading

#     addresses, one after the other        checks: size, sha256, structure
#                    |                                     |
#                    +---> path.part, grows and resumes ---+---> path, complete and right
#
# So a file that has its final name can be trusted, and a broken download costs nothing twice.
TIMEOUT = 30  # seconds without a single byte


class Broken(Exception):
    """What is wrong with one address; the next one may still do."""


def progress(name, start, total):
    """Gives back show(bytes so far): on a terminal one line that renews itself, with MB/s and the
    time left; in a log file one line for every tenth. total in bytes, None if unknown."""
    terminal, began, due = sys.stderr.isatty(), time.monotonic(), 0

    def show(have):
        nonlocal due  # seconds on a terminal, bytes in a log file
        seconds = time.monotonic() - began
        if (seconds if terminal else have) < due and have != total:
            return
        due = seconds + 0.2 if terminal else have + (total or 10**9) / 10
        speed = (have - start) / max(seconds, 1e-9)
        text = f"{name}: {have / 1e6:,.1f} MB"
        if total:
            text += f" of {total / 1e6:,.1f}, {max(total - have, 0) / max(speed, 1):,.0f} s left"
        text += f", {speed / 1e6:,.1f} MB/s"
        end = "" if terminal and have != total else "\n"
        print("\r" * terminal + text.ljust(78 * terminal), end=end, file=sys.stderr, flush=True)

    return show


def pull(url, part, size):
    """Appends to the file part what is still missing of url. Raises Broken if it cannot be had, or
    not whole; what has come stays in part. size in bytes, None if unknown."""
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
            return pull(url, part, size)
        raise Broken(f"HTTP {e.code} {e.reason}") from e
    except (OSError, http.client.HTTPException) as e:
        raise Broken(getattr(e, "reason", e)) from e
    with reply:
        if reply.status == 206:
            if not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise Broken("it answered with another range than the one asked for")
        else:
            have = 0  # pitfall: a server may ignore Range and send everything from the start
        total = reply.headers.get("Content-Length") or ""
        total = have + int(total) if total.isdigit() else None
        # Both before the first byte is written: a good part must survive a network's login page.
        if reply.headers.get_content_type() == "text/html":
            raise Broken("it sent a web page instead of the file")
        if size and total not in (None, size):
            raise Broken(f"it offers {total:,} bytes where {size:,} are expected")
        receive(reply, part, have, total, size)


def receive(reply, part, have, total, size):
    """Writes what the open reply sends behind the have bytes of part."""
    show = progress(part.stem, have, total)
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


def download(urls, path, size=None, sha256=None, md5=None, check=None):
    """Fetches a file from the first of urls that works, and gives back its path. What is there
    already is not fetched again, and a broken download goes on where it stopped: path with .part
    behind it keeps the bytes. size in bytes, hashes in hex; check(part) gives back in words what
    is wrong with the file, if anything. A wrong file is deleted. UserError says how to go on.

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
                pull(url, part, size)
                verify(part, size, {"sha256": sha256, "md5": md5}, check)
                os.replace(part, path)
                return path
            except Broken as e:
                problems.append(f"{urllib.parse.urlsplit(url).netloc}: {e}")
        have = part.stat().st_size if part.exists() else 0
    except OSError as e:  # those of the network have become Broken: this one is the disk's
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); make room, or choose "
                        "another folder (SEEGPT_CACHE)") from e
    why = "; ".join(dict.fromkeys(problems))
    if have:
        raise UserError(f"{path}: broke off after {have / 1e6:,.1f} MB ({why}); run the same "
                        "command again to go on from there")
    raise UserError(f"{path}: could not be fetched ({why}); without a network, fetch {urls[0]} "
                    f"elsewhere and put it at {path}")


# ---------------------------------------------------------------------------------------------
# the public files


class Public(typing.NamedTuple):
    """A published file: its place under the cache folder, its addresses, and its bytes and sha256,
    None where we found no source for them; its Hugging Face repository, if it has one."""
    file: str
    urls: list
    size: int | None
    sha256: str | None
    repo: str | None = None


# name, bytes, sha256; a dash where we found no source that is certain. The two tokenizer files
# serve GPT-2 of every size.
TABLE = """
gpt2              548105171 248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707
gpt2-medium      1519984962 fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd
gpt2-large                - -
gpt2-xl                   - 0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a
distilgpt2        352824413 e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b
gpt2/vocab.json     1042301 196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783
gpt2/merges.txt      456318 1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5
ViT-B/32          353976522 40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af
ViT-B/16          350837078 5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f
ViT-L/14          932768134 b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836
ViT-L/14@336px    934088680 3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02
"""

# Pinned to a revision: a repository may change, and then the hashes above would no longer fit.
HUB = {"gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
       "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
       "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
       "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
       "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa")}
OPENAI = "https://openaipublic.blob.core.windows.net/"
BPE = "bpe_simple_vocab_16e6.txt.gz"


def public_files():
    """{name: Public} for TABLE, each with two addresses, and for the file of CLIP's tokenizer."""
    files = {}
    for line in TABLE.strip().splitlines():
        name, size, sha256 = (None if word == "-" else word for word in line.split())
        size = size and int(size)
        if name.startswith("ViT"):  # OpenAI's hash is a part of the address, and two hosts have it
            file = re.sub("[/@]", "-", name) + ".pt"
            urls = [f"{host}clip/models/{sha256}/{file}"
                    for host in ("https://openaipublic.azureedge.net/", OPENAI)]
            files[name] = Public(f"clip/{file}", urls, size, sha256)
            continue
        model, _, file = name.partition("/")
        (repo, revision), file = HUB[model], file or "model.safetensors"
        urls = [f"https://huggingface.co/{repo}/resolve/{r}/{file}" for r in (revision, "main")]
        # OpenAI has the very same tokenizer files under its own names.
        theirs = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}.get(file)
        if theirs:
            urls[1] = f"{OPENAI}gpt-2/encodings/main/{theirs}"
        files[name] = Public(f"{model}/{file}", urls, size, sha256, repo)
    urls = [f"https://github.com/{folder}/{BPE}" for folder in
            ("openai/CLIP/raw/main/clip", "mlfoundations/open_clip/raw/main/src/open_clip")]
    files[f"clip/{BPE}"] = Public(f"clip/{BPE}", urls, 1_356_917, "924691ac288e54409236115652ad4aa2"
                                  "50f48203de50a9e4722a6ecd48d6804a")
    return files


FILES = public_files()


def fault(path, public, full=False):
    """Says in words why path cannot be that public file; "" if nothing speaks against it.

    Size and structure take no time, and they catch what really happens: a file cut off, another
    one, a web page. A sha256 takes seconds per gigabyte: only after a download, or if full.
    """
    kind = public.file.rpartition(".")[2]
    try:
        size = path.stat().st_size
        if public.size not in (None, size):
            return f"it has {size:,} bytes, the published one {public.size:,}"
        if kind == "safetensors":
            if sniff(path) != kind:
                return "it is not a safetensors file"
            header(path)
        elif kind == "pt":
            zipfile.ZipFile(path).close()
        elif kind == "gz":
            with gzip.open(path) as f:
                f.read()
        elif kind == "json":
            json.loads(path.read_bytes())
        else:
            path.read_bytes().decode("utf-8")
    except (UserError, OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as e:
        return str(e).removeprefix(f"{path}: ")
    if full and public.sha256 and digest(path, "sha256") != public.sha256:
        return "its sha256 is not that of the published one"
    return ""


def places(public):
    """Where a public file may lie on this computer, our own place first."""
    def folder(variable, default):
        return Path(os.path.expanduser(os.environ.get(variable) or default))

    name = Path(public.file).name
    yield folder("SEEGPT_CACHE", "~/.cache/seegpt") / public.file
    yield Path(os.path.expanduser("~/.cache/clip")) / name  # where openai/CLIP puts its files
    if public.repo:
        snapshots = folder("HF_HOME", "~/.cache/huggingface") / "hub"
        snapshots = folder("HF_HUB_CACHE", folder("HUGGINGFACE_HUB_CACHE", snapshots))
        # gpt2 had no owner before its name in former years, and old caches still say so.
        for repo in (public.repo, public.repo.split("/")[1]):
            cached = snapshots / f"models--{repo.replace('/', '--')}" / "snapshots"
            # Any revision will do: the size tells whether it is the same file.
            yield from sorted(cached.glob(f"*/{name}"))


def fetch(name):
    """The path of a public file: where it lies already, in our cache or in that of CLIP or Hugging
    Face, else downloaded into $SEEGPT_CACHE (~/.cache/seegpt). The path of any other file or folder
    is given back as it is. UserError names the nearest name, or the address and the place for a
    file that has to be carried here by hand."""
    if name not in FILES:
        if Path(name).exists():
            return Path(name)
        near = difflib.get_close_matches(str(name), FILES, n=1, cutoff=0.4)
        raise UserError(f"{name}: neither a file nor a known name; " + "".join(
            f"did you mean {n}? " for n in near) + f"known: {', '.join(FILES)}")
    public = FILES[name]
    ours, *others = places(public)
    # os.path's isfile also says no where we may not look; pathlib's raises.
    if os.path.isfile(ours):
        # What we downloaded has passed every check. A file that does not pass was put here by
        # somebody else: say so and leave it to them.
        if problem := fault(ours, public):
            raise UserError(f"{ours}: not {name}: {problem}; delete it and run again")
        return ours
    for path in others:
        if os.path.isfile(path) and not fault(path, public):
            return path
    return download(public.urls, ours, public.size, public.sha256,
                    check=lambda part: fault(part, public))


def locate(name):
    """A file or folder as it is, else the local path of a public name, fetched if need be."""
    return Path(name) if Path(name).exists() else Path(fetch(str(name)))


# ---------------------------------------------------------------------------------------------
# the command


@dataclasses.dataclass
class Config:
    what: list = opt([], "names of public files to fetch, or files and folders to look into",
                     positional=True)


def describe(path):
    """Prints name, shape and dtype of every tensor, the metadata, and the sums."""
    tensors = read(path)
    width = max(map(len, tensors), default=0)
    for name, x in tensors.items():
        shape = " x ".join(map(str, x.shape)) or "scalar"
        print(f"{name:{width}}  {shape:20} {str(x.dtype).removeprefix('torch.')}")
    for key, value in metadata(path).items():
        print(f"metadata: {key} = {value}")
    print(f"{len(tensors)} tensors, {sum(x.numel() for x in tensors.values()):,} numbers, "
          f"{sum(x.numel() * x.element_size() for x in tensors.values()):,} bytes")


def main(config):
    if not config.what:
        for name, public in FILES.items():
            size = f"{public.size / 1e6:,.1f} MB" if public.size else "size unknown"
            print(f"{name:34} {size:>12}  {public.urls[0]}")
    for what in config.what:
        if what not in FILES and Path(what).exists():
            describe(what)
            continue
        path, public = fetch(what), FILES[what]
        if problem := fault(path, public, full=True):
            raise UserError(f"{path}: not {what}: {problem}; delete it and run again")
        checked = ["size"] * bool(public.size) + ["structure"] + ["sha256"] * bool(public.sha256)
        print(f"{what}: {path}, {path.stat().st_size:,} bytes, checked: {', '.join(checked)}"
              + ("" if public.sha256 else " (no sha256 is known)"))


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
