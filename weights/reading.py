"""Reads any weight file into {name: tensor}, and such tensors into a model.

A weight file is a table of named tensors. Four layouts are met in practice; read() tells them
apart by their first bytes, whatever the file is called:

    safetensors  | N, 8 bytes | N bytes of JSON: name -> dtype, shape, place | raw numbers ... |
    GGUF         | key-values with the tokenizer, too | table of tensors | few bits a number ... |
    torch.save   | a zip with a pickle that rebuilds a dictionary (before torch 1.6: no zip)   |
    TorchScript  | a zip with a pickle of a whole tree of modules, and one member per storage  |

A big model is cut into shards: several such files, and an index in JSON beside them that says which
tensor is where.
"""

import hashlib
import json
import os
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

from lib.cli import UserError
from lib.files import open_file, plain_errors, user_path
from weights import gguf
from weights.pickles import read_script, read_torch
from weights.safetensors import MAX_HEADER, header, no_twins, read_safetensors

# What a folder of weights may hold, the preferred one first.
NAMES = ("model.safetensors", "model.safetensors.index.json",
         "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
MAX_LAYERS = 1000  # more than any model has; each takes time to build
# What the content of a damaged file raises: a wrong kind of value, a number too large, too deep.
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
           struct.error)
OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # how torch.save began before 1.6


def sniff(path):
    """Tells "safetensors", "gguf", "torch" (torch.save), "script" (TorchScript) or "index" by the
    content.

    Endings lie: "pytorch_model.bin" may be a zip or not, and OpenAI's .pt is no torch.save file.
    UserError for everything else; the usual accidents are called by their names.
    """
    with open_file(path) as f:
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
        return sniff_zip(path)
    if head.startswith(OLD_TORCH):
        return "torch"
    if head.startswith(b"GGUF"):
        return "gguf"
    # Text never looks like so small a number: its 5th to 8th byte would have to be zero.
    if len(head) > 8 and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return "safetensors"
    if text.startswith(b"{"):
        return "index"
    raise UserError(f"{path}: not a weight file known here (safetensors, GGUF, torch.save, "
                    f"TorchScript, index of shards); it begins with {head[:8]!r}; fetch it again")


def sniff_zip(path):
    """Tells "torch" or "script" of a zip archive. UserError if torch did not write it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name.rpartition("/")[2] for name in archive.namelist()]
    except Exception as e:  # one flipped bit can make it raise almost anything
        raise UserError(f"{path}: a damaged zip archive, probably cut off ({e}); delete it and "
                        "fetch it again") from e
    if members.count("data.pkl") != 1:
        raise UserError(f"{path}: a zip archive, but none that torch wrote (no single data.pkl "
                        "in it); if the weights were zipped, unzip them first")
    return "script" if "constants.pkl" in members else "torch"  # torch.load tells them apart so too


def read_file(path):
    """The tensors of one file that is no index."""
    kind = sniff(path)
    if kind == "index":
        raise UserError(f"{path}: JSON, where the index of shards promises a weight file; "
                        "fetch the model again")
    readers = {"safetensors": read_safetensors, "gguf": gguf.read_gguf, "torch": read_torch,
               "script": read_script}
    return readers[kind](path)


def read_index(path):
    """The tensors of a model cut into shards: {"weight_map": {tensor name: file beside the index}}.
    UserError when a shard lacks a tensor that the index promises, or holds one it does not name."""
    try:
        with open_file(path) as f:
            where = json.loads(f.read(), object_pairs_hook=no_twins)["weight_map"]
        shards = sorted(set(where.values()))
        # A shard lies beside its index: "../x", "/x" and "C:x" would reach into other folders.
        strange = [shard for shard in shards if not re.fullmatch(r"\w[\w.+-]*", shard)]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: JSON, but no index of shards (no sound weight_map); give the "
                        "weight file itself, or the folder it lies in") from e
    if strange or not shards:
        raise UserError(f"{path}: its weight_map must name files of this folder, not {strange}; "
                        "fetch the model again")
    names = {shard: set() for shard in shards}
    for name, shard in where.items():
        names[shard].add(name)
    tensors = {}
    for shard, wanted in names.items():
        file = path.parent / shard
        if not os.path.exists(file):
            raise UserError(f"{file}: missing; {path.name} needs {len(shards)} shards beside it")
        part = read_file(file)
        # Half an old and half a new download would otherwise give a model that talks nonsense.
        if part.keys() != wanted:
            missing, extra = sorted(wanted - part.keys()), sorted(part.keys() - wanted)
            raise UserError(f"{file}: does not fit {path.name} (lacks {missing[:3]}, has besides "
                            f"{extra[:3]}); fetch the index and all shards again")
        tensors.update(part)
    return tensors


def weight_file(path):
    """The file that is meant by path: itself, or inside a folder the first of NAMES, or its only
    GGUF file."""
    path = user_path(path)
    if not os.path.isdir(path):
        return path
    for name in NAMES:
        if os.path.exists(path / name):
            return path / name
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ggufs[0]
    raise UserError(f"{path}: this folder holds none of {', '.join(NAMES)}, and {len(ggufs)} GGUF "
                    "files: name the file itself")


def read(path):
    """All tensors {name: tensor} of a weight file, of a sharded index, or of a folder with either.

    They are contiguous copies on the CPU in the dtype of the file, which is often a 16-bit one.
    UserError names the file, and the tensor where there is one, and says what to do.
    """
    path = weight_file(path)
    try:
        with plain_errors(path):
            return read_index(path) if sniff(path) == "index" else read_file(path)
    except (MemoryError, RuntimeError) as e:  # torch's way to say that it got no memory
        raise UserError(f"{path}: too big for this computer's memory") from e


def metadata(path):
    """The {str: str} notes in the header of a safetensors file; the single values in that of a GGUF
    file; {} for every other kind."""
    path = weight_file(path)
    with plain_errors(path):
        kind = sniff(path)
        if kind == "gguf":
            return {k: str(v) for k, v in gguf.header(path)[0].items() if np.ndim(v) == 0}
        return header(path)[1] if kind == "safetensors" else {}


def read_config(folder, known=None):
    """A model's config.json as a dictionary, {} where there is none. UserError if it is no such
    thing, or says something else than the values {key: (...)} in known."""
    path = Path(folder) / "config.json"
    if not os.path.lexists(path):
        return {}
    try:
        with plain_errors(path), open_file(path) as f:
            config = json.loads(f.read())
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not the config of a model ({e})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not the config of a model, but a {type(config).__name__}")
    for key, values in (known or {}).items():
        if config.get(key, values[0]) not in values:
            raise UserError(f"{path}: {key} = {config[key]!r} is not known here, only "
                            f"{' or '.join(map(str, values))}")
    return config


def head_count(told, width, path):
    """The number of heads: as told, in digits or as an int, or if that is None as in all public
    sizes, where a head is 64 wide."""
    told = width // 64 if told is None else told
    heads = int(told) if re.fullmatch("[0-9]{1,9}", str(told)) else 0
    if not 1 <= heads <= width or width % heads:
        raise UserError(f"{path}: width {width} cannot be split into {told} heads")
    return heads


def layer_count(names, prefix, path):
    """How many layers there are if their tensors are called prefix0.x, prefix1.x, ... UserError
    unless all these are there: a file of a few tensors cannot have a layer 99999999."""
    found = {name.removeprefix(prefix).partition(".")[0] for name in names
             if name.startswith(prefix)}
    numbers = set(map(str, range(min(len(found), MAX_LAYERS))))
    if strange := found - numbers:
        raise UserError(f"{path}: {prefix}{min(strange)} does not fit {len(numbers)} layers, which "
                        "are numbered from 0")
    return len(found)


def join(tensors, names, path):
    """The tensors of these names in one, along their first axis. UserError if they differ."""
    kinds = {n: f"{tensors[n].dtype} {tuple(tensors[n].shape)}" if n in tensors else "missing"
             for n in names}
    if len({*kinds.values()}) > 1 or not tensors[names[0]].dim():
        raise UserError(f"{path}: these {len(names)} must have one shape: {kinds}")
    return torch.cat([tensors[n] for n in names])


def need_matrices(tensors, names, kind, path):
    """UserError unless there is a matrix of each of these names, whose shapes tell the sizes of a
    model of this kind."""
    for name in names:
        if name not in tensors or tensors[name].dim() != 2:
            raise UserError(f"{path}: no matrix {name}, so this is not a {kind}; it holds "
                            f"{', '.join(sorted(tensors)[:3])}, ...")


def drop_copy(tensors, copy, original, kind, path):
    """Takes out what some files hold a second time, under the name copy. UserError if it differs
    from the original."""
    t = tensors.pop(copy, None)
    if t is not None and not torch.equal(t, tensors.setdefault(original, t)):
        raise UserError(f"{path}: {copy} differs from {original}, but a {kind} shares the two")


class NoDice(TorchFunctionMode):
    """Within it nothing is drawn from a normal distribution: on the meta device torch imports 800
    modules to know which shape that has, for half a second to a second."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **(kwargs or {}))


def load_into(build, tensors, path):
    """The model made by build() with exactly these tensors, in float32 and eval mode. UserError if
    one is missing, unknown, empty or of the wrong shape: nothing is skipped silently. build may
    rely on sizes from 1 up, but is not called before that is known. The folder that the file is in
    becomes model.folder: other files of the model, as its tokenizer's, lie beside it."""
    if strange := [n for n, t in tensors.items() if not t.numel() or t.is_complex()]:
        raise UserError(f"{path}: {strange[0]} has no numbers or complex ones, so this is no model "
                        "known here")
    with torch.device("meta"), NoDice():  # shapes only: what is made now is thrown away
        model = build()
    ours = model.state_dict()
    wrong = [f"{n} is missing" for n in ours if n not in tensors]
    wrong += [f"{n} is unknown" for n in tensors if n not in ours]
    wrong += [f"{n} is {tuple(tensors[n].shape)}, not {tuple(p.shape)}" for n, p in ours.items()
              if n in tensors and tensors[n].shape != p.shape]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{path} does not fit {type(model).__name__}: {'; '.join(wrong[:5])}{more}."
                        " HINT: is it a file of another model, or of another size than its "
                        "config.json says?")
    model.load_state_dict({n: t.float().contiguous() for n, t in tensors.items()}, assign=True)
    model.folder = path if os.path.isdir(path) else Path(path).parent
    return model.eval()


def fingerprint(model):
    """sha256 over all tensors of a model, the same whatever kind of file they came from."""
    sha = hashlib.sha256()
    for name, p in sorted(model.state_dict().items()):
        sha.update(f"{name} {tuple(p.shape)}".encode())
        sha.update(p.detach().float().cpu().contiguous().numpy())
    return sha.hexdigest()
