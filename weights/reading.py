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
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from lib.cli import UserError
from lib.files import plain_errors
from weights import gguf
from weights.pickles import read_script, read_torch
from weights.safetensors import MAX_HEADER, header, no_twins, read_safetensors

# What a folder of weights may hold, the preferred one first.
NAMES = ("model.safetensors", "model.safetensors.index.json",
         "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # how torch.save began before 1.6


def sniff(path):
    """Tells "safetensors", "gguf", "torch" (torch.save), "script" (TorchScript) or "index" by the
    content.

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
    except zipfile.BadZipFile as e:
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
        where = json.loads(path.read_bytes(), object_pairs_hook=no_twins)["weight_map"]
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


def weight_file(path):
    """The file that is meant by path: itself, or inside a folder the first of NAMES, or its only
    GGUF file."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    for name in NAMES:
        if (path / name).is_file():
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
    with plain_errors(path):
        return read_index(path) if sniff(path) == "index" else read_file(path)


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
    if not path.exists():
        return {}
    try:
        config = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as e:
        raise UserError(f"{path}: not the config of a model ({e})") from None
    for key, values in (known or {}).items():
        if config.get(key, values[0]) not in values:
            raise UserError(f"{path}: {key} = {config[key]!r} is not known here, only "
                            f"{' or '.join(map(str, values))}")
    return config


def head_count(told, width, path):
    """The number of heads: as told, or as in all public sizes, where a head is 64 wide."""
    try:
        heads = int(told or width // 64)
    except (TypeError, ValueError, OverflowError):
        heads = 0
    if heads < 1 or width % heads:
        raise UserError(f"{path}: width {width} cannot be split into {told or heads} heads")
    return heads


def load_into(build, tensors, path):
    """The model made by build() with exactly these tensors, in float32 and eval mode. UserError if
    one is missing, unknown or of the wrong shape: nothing is skipped silently."""
    with torch.device("meta"):  # shapes only: random weights would be made just to be thrown away
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
    return model.eval()


def fingerprint(model):
    """sha256 over all tensors of a model, the same whatever kind of file they came from."""
    sha = hashlib.sha256()
    for name, p in sorted(model.state_dict().items()):
        sha.update(f"{name} {tuple(p.shape)}".encode())
        sha.update(p.detach().float().cpu().contiguous().numpy())
    return sha.hexdigest()
