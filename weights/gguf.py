"""The GGUF format of llama.cpp: a whole model in one file, often with few bits a number.

    | GGUF | version, counts | key-values | table of tensors | gap | numbers of the tensors ... |

A key-value is a name, a type and a value: sizes of the model, and its whole tokenizer. A row of the
table is a name, the sides (the fastest first: torch's shape backwards), a type and a place.
Two of the four types known here are quantised: 32 neighbours in a row share a scale.

    Q8_0, 34 bytes:  | d f16 | q 32 x int8 |                           w = d * q
    Q4_1, 20 bytes:  | d f16 | m f16 | 16 bytes, two q of 4 bits each |  w = d * q + m

Sources: docs/gguf.md, src/ggml-common.h and src/ggml-quants.c of ggml-org/ggml.
"""

import io
import math
import struct

import numpy as np
import torch

from lib.cli import UserError
from lib.files import open_file

MAX_HEADER = 32_000_000  # bytes; ours. A vocabulary of 128,000 tokens with its merges takes 8 MB
# Numbers in key-values: GGUF's code of the type -> numpy's; 8 is a string, 9 an array of others.
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
           10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
# Tensors: code of the type -> name, numbers in a block, bytes of a block.
TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}
OTHERS = {2: "Q4_0", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
          13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16", 39: "MXFP4"}


class Reader:
    """Takes numbers, strings and values from the start of a file; ValueError behind its end."""

    def __init__(self, raw):
        self.raw, self.at = raw, 0

    def take(self, n):
        if self.at + n > len(self.raw):
            raise ValueError(f"cut off inside its header, or a header over {MAX_HEADER:,} bytes")
        self.at += n
        return self.raw[self.at - n:self.at]

    def number(self, code):
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self):
        return self.take(self.number("Q")).decode("utf-8")

    def numbers(self, kind, n):
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.take(n * dtype.itemsize), dtype)

    def value(self, kind, inside=False):
        """A value of that type; arrays of numbers as numpy's, which take no more room than here."""
        if kind in NUMBERS:
            return self.numbers(kind, 1)[0].item()
        if kind == STRING:
            return self.string()
        if kind != ARRAY or inside:  # arrays of arrays exist, but in no file of a language model
            raise ValueError(f"a value of the type {kind}, which is not known here")
        kind, n = self.number("I"), self.number("Q")
        if kind in NUMBERS:
            return self.numbers(kind, n)
        return [self.value(kind, inside=True) for _ in range(n)]

    def pairs(self, n, read):
        """{name: what read() gives} for n names. ValueError where one occurs twice."""
        table = {}
        for _ in range(n):  # a false n ends at the end of the file
            name = self.string()
            if name in table:
                raise ValueError(f"{name!r} occurs twice")
            table[name] = read()
        return table


def parse_header(raw):
    """The first bytes of a file -> notes {key: value}, entries {name: (type, shape, place)} in
    bytes behind the header, and the header's length. ValueError for what cannot be."""
    reader = Reader(raw)
    reader.take(4)  # GGUF, as sniff in reading.py has seen
    version = reader.number("I")
    if version not in (2, 3):  # the first counted in 32 bits; big-endian files look like 50 million
        raise ValueError(f"version {version} of the format, only 2 and 3 are known here")
    n_tensors, n_notes = reader.number("Q"), reader.number("Q")
    notes = reader.pairs(n_notes, lambda: reader.value(reader.number("I")))
    entries = reader.pairs(n_tensors, lambda: read_entry(reader))
    align = notes.get("general.alignment", 32)
    if type(align) is not int or not 1 <= align <= 65536 or align & (align - 1):
        raise ValueError(f"general.alignment {align!r} is no power of two")
    return notes, entries, reader.at + -reader.at % align, align


def read_entry(reader):
    """A row of the table behind its name: type, shape as torch counts it, place."""
    n = reader.number("I")
    if n > 4:
        raise ValueError(f"a tensor of {n} dimensions, there are 4 at most")
    shape = [reader.number("Q") for _ in range(n)][::-1]
    return reader.number("I"), shape, reader.number("Q")


def lay_out(entries, room, align):
    """{name: (type, shape, place, bytes)} of tensors that fit room bytes. ValueError unless each
    begins where the one before ends, as llama.cpp demands: no overlap lets a file grow in memory.
    """
    tensors, end = {}, 0
    for name, (kind, shape, place) in entries.items():
        if kind not in TYPES:
            kind = OTHERS.get(kind, f"type {kind}")
            raise ValueError(f"{name} is stored as {kind}, and only {known()} are read here; "
                             "take a file with one of these")
        _, block, size = TYPES[kind]
        if math.prod(shape) == 0 or (shape or [1])[-1] % block:
            raise ValueError(f"{name} has the impossible shape {shape} for {TYPES[kind][0]}")
        if place != end + -end % align:
            raise ValueError(f"{name} begins at byte {place:,}, the one before ends at {end:,}")
        size = math.prod(shape) // block * size
        end = place + size
        tensors[name] = kind, shape, place, size
    if end > room:
        raise ValueError(f"cut off: {room:,} bytes of numbers, its header counts {end:,}")
    return tensors


def known():
    return ", ".join(name for name, *_ in TYPES.values())


def header(path):
    """Of a GGUF file: notes {key: value}, tensors as lay_out gives them, and where they begin.
    UserError for all that cannot be read later: a file that passes holds what it promises."""
    with open_file(path) as f:
        raw, length = f.read(MAX_HEADER), f.seek(0, io.SEEK_END)
    try:
        notes, entries, start, align = parse_header(raw)
        return notes, lay_out(entries, length - start, align), start
    except ValueError as e:
        raise UserError(f"{path}: not a GGUF file for this reader: {e}") from e


def dequantise(raw, kind, shape):
    """Bytes of a tensor (numpy, uint8) -> float32, or float16 as it is, of that shape."""
    name, _, size = TYPES[kind]
    if name in ("F32", "F16"):
        return torch.from_numpy(raw.view("<f4" if name == "F32" else "<f2").reshape(shape))
    blocks = raw.reshape(-1, size)
    halves = lambda i, j: blocks[:, i:j].copy().view("<f2").astype(np.float32)  # a column each
    if name == "Q8_0":
        w = halves(0, 2) * blocks[:, 2:].view(np.int8)
    else:
        q = blocks[:, 4:]
        # pitfall: the two numbers in a byte are no neighbours. The low halves of the 16 bytes are
        # the first 16 numbers, the high halves the others.
        w = np.concatenate([q & 15, q >> 4], 1) * halves(0, 2) + halves(2, 4)
    return torch.from_numpy(w.reshape(shape))


def read_gguf(path):
    """The tensors {name: tensor} of a GGUF file; what is quantised becomes float32."""
    _, tensors, start = header(path)
    result = {}
    with open_file(path) as f:
        for name, (kind, shape, place, size) in tensors.items():
            f.seek(start + place)
            raw = np.empty(size, np.uint8)
            if f.readinto(raw) != size:
                raise UserError(f"{path}: {name!r} changed while it was read; try again")
            result[name] = dequantise(raw, kind, shape)
    return result
