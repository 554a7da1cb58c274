"""The safetensors format, read with all checks of the official reader, written whole or not at all.

    | N, 8 bytes, little-endian | N bytes of JSON, the header | the numbers of all tensors ... |

    {"wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 154389504]}, ...
     "__metadata__": {"n_head": "12"}}

data_offsets are bytes behind the header. Source: safetensors/src/tensor.rs of the official library.
"""

import io
import json

import torch

from lib.cli import UserError
from lib.files import open_file, replacing

MAX_HEADER = 100_000_000  # bytes of safetensors header; the official reader's limit
MAX_AXES = 64  # of a tensor; numpy's limit
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
    """The JSON of a header as {name: {dtype, shape, data_offsets}} and {str: str} metadata.

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
        # isinstance would let True pass. JSON's numbers may have thousands of digits.
        if any(type(n) is not int or n >= 2**63 for n in shape + offsets):
            raise ValueError(f"{name!r} has a size or place that is no whole number from 0 up")
        if str(entry["dtype"]) not in DTYPES:
            raise ValueError(f"{name!r} has the dtype {entry['dtype']!r}, which torch "
                             f"{torch.__version__} or this reader does not know")
    return table, notes


def byte_count(dtype, shape):
    """The bytes that a tensor takes. ValueError for a shape that torch cannot have: it counts
    strides in 64 bits, and as if no side of the box were 0."""
    size = reach = dtype.itemsize
    for n in shape:
        size, reach = size * n, reach * max(n, 1)
        if reach >= 2**63 or len(shape) > MAX_AXES:
            raise ValueError(f"the impossible shape {str(shape)[:60]}")
    return size


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
        size = byte_count(dtype, shape)
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
    # sniff in reading.py has seen that length is at most MAX_HEADER: no lie makes us read for long.
    with open_file(path) as f:
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
    with open_file(path) as f:
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
    names, table, place = {dtype: name for name, dtype in DTYPES.items()}, {}, 0
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
    with replacing(path) as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            f.write(raw_bytes(tensors[name].detach().cpu()))
