"""What a weight file is, byte by byte; what may be wrong with one; how a download survives.

Read next to weights.py. No test leaves this computer: the downloads come from a small web server
in a thread, which can also do what bad servers do.
"""

import gzip
import hashlib
import http.server
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

import weights
from lib.cli import UserError
from weights.public import Public, fetch
from weights.download import download
from weights.reading import metadata, read
from weights.safetensors import write


def equal(ours, theirs):
    """The same names, shapes, dtypes and bits (NaN included)."""
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        y = ours[name]
        assert (y.dtype, y.shape) == (x.dtype, x.shape), name
        assert weights.raw_bytes(y).tobytes() == weights.raw_bytes(x.contiguous()).tobytes(), name
    return True


def complaint(call, *args, **kw):
    """The text of the UserError that a call must raise: always one line."""
    with pytest.raises(UserError) as e:
        call(*args, **kw)
    assert "\n" not in str(e.value)
    return str(e.value)


# --------------------------------------------------------------------------------- safetensors

def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(header, data=b"", length=None):
    """The bytes of a safetensors file; header as a dictionary or as raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def test_a_file_made_by_hand_reads_as_the_tensors_it_spells(tmp_path):
    """8 bytes of length, the header, 14 bytes of data. 0x3f800000 is 1.0 and 0xc0000000 is -2.0 in
    float32; 0x3c00 is 1.0 in float16 and 0x3f80 is 1.0 in bfloat16, all little-endian."""
    header = {"a": entry("F32", [2], 0, 8), "b": entry("F16", [1, 1], 8, 10),
              "c": entry("BF16", [], 10, 12), "d": entry("U8", [2], 12, 14),
              "none": entry("I64", [0, 3], 14, 14)}
    data = bytes.fromhex("0000803f 000000c0  003c  803f  07ff")
    (tmp_path / "x").write_bytes(packed(header, data))
    x = read(tmp_path / "x")
    assert x["a"].tolist() == [1.0, -2.0] and x["a"].dtype == torch.float32
    assert x["b"].tolist() == [[1.0]] and x["b"].dtype == torch.float16
    assert x["c"].item() == 1.0 and x["c"].dtype == torch.bfloat16 and x["c"].shape == ()
    assert x["d"].tolist() == [7, 255]
    assert x["none"].shape == (0, 3)


def test_an_odd_header_length_is_read_although_no_view_could_begin_there(tmp_path):
    """The header of gpt2's own file has 14,283 bytes."""
    raw = json.dumps({"a": entry("F32", [2], 1, 9), "b": entry("U8", [1], 0, 1)}).encode()
    raw += b" " * (1 - len(raw) % 2)
    assert len(raw) % 2 == 1
    (tmp_path / "x").write_bytes(packed(raw, b"\7" + struct.pack("<2f", 1.5, -3)))
    assert read(tmp_path / "x")["a"].tolist() == [1.5, -3.0]


def one_of_each():
    """A tensor of every dtype the format and this torch have, with odd bits; odd shapes too."""
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 256, (48,), dtype=torch.uint8, generator=g)
    tensors = {f"of.{name}": (bits % 2).bool() if name == "BOOL" else bits.clone().view(dtype)
               for name, dtype in weights.DTYPES.items()}
    return tensors | {"scalar": torch.tensor(2.5), "no elements": torch.empty(3, 0),
                      "Größe": torch.ones(1, 5, dtype=torch.float16),
                      "turned": torch.arange(6.0).view(2, 3).t()}


def test_writing_and_reading_gives_every_dtype_back(tmp_path):
    tensors = one_of_each()
    assert len(weights.DTYPES) >= 17
    write(tmp_path / "new folder" / "x.safetensors", tensors, {"steps": "300", "made by": "a test"})
    assert equal(read(tmp_path / "new folder" / "x.safetensors"), tensors)
    assert metadata(tmp_path / "new folder" / "x.safetensors") == {"steps": "300",
                                                                   "made by": "a test"}


def test_the_writer_aligns_every_tensor_to_its_item_size(tmp_path):
    write(tmp_path / "x", {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(5),
                           "c": torch.ones(1, dtype=torch.float16), "d": torch.ones(1).double()})
    raw = (tmp_path / "x").read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    assert n % 8 == 0 and raw[8:9] == b"{"
    assert list(header) == ["d", "b", "c", "a"]
    for e, item in zip(header.values(), (8, 4, 2, 1)):
        assert e["data_offsets"][0] % item == 0


def test_both_directions_agree_with_the_safetensors_library(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    tensors = {k: x.contiguous() for k, x in one_of_each().items()}
    write(tmp_path / "ours", tensors, {"k": "v"})
    library.save_file(tensors, tmp_path / "theirs", {"k": "v"})
    assert equal(library.load_file(tmp_path / "ours"), tensors)
    assert equal(read(tmp_path / "theirs"), tensors)
    assert metadata(tmp_path / "theirs") == {"k": "v"}


def test_what_is_read_is_contiguous_and_shares_no_memory(tmp_path):
    """A tied head is one tensor under two names in a torch.save file. Read, the two are copies:
    changing one does not change the other."""
    w = torch.arange(6.0).view(2, 3)
    write(tmp_path / "st", {"wte": w, "head": w, "turned": w.t()})
    torch.save({"wte": w, "head": w, "turned": w.t()}, tmp_path / "bin")
    for file in ("st", "bin"):
        x = read(tmp_path / file)
        assert all(t.is_contiguous() for t in x.values())
        x["wte"].zero_()
        assert torch.equal(x["head"], w) and torch.equal(x["turned"], w.t())


def test_a_failed_write_leaves_the_good_file_and_no_litter(tmp_path, monkeypatch):
    write(tmp_path / "x", {"a": torch.ones(2)})
    assert "'b'" in complaint(write, tmp_path / "x", {"b": torch.ones(2, 2).to_sparse()})
    assert "__metadata__" in complaint(write, tmp_path / "x", {"__metadata__": torch.ones(2)})
    assert "strings" in complaint(write, tmp_path / "x", {"a": torch.ones(2)}, {"steps": 3})

    def full_disk(x):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(weights, "raw_bytes", full_disk)
    assert "No space left" in complaint(write, tmp_path / "x", {"a": torch.zeros(2)})
    monkeypatch.undo()
    assert read(tmp_path / "x")["a"].tolist() == [1, 1]
    assert os.listdir(tmp_path) == ["x"]


# Every way in which a safetensors file may lie: an id, the bytes, what the message must say, and
# whether the official reader refuses it too ("too") or is more patient than this one ("ours only").
A, D = entry("F32", [2], 0, 8), bytes(8)
AJ = json.dumps(A).encode()
MALFORMED = [
    # the length of the header
    ("header longer than the file", packed({"a": A}, b"", 9999), "cut off inside its", "too"),
    ("header beyond the limit", packed({"a": A}, D, 100_000_001), "not a weight file known", "too"),
    ("fewer than 8 bytes", b"\x10\0\0\0", "not a weight file known", "too"),
    ("no header at all", packed(b"", D), "not JSON|Expecting value", "too"),
    # the JSON
    ("not UTF-8", packed(b'{"\xff": ' + AJ + b"}", D), "utf-8", "too"),
    ("UTF-16", packed(('{"a": %s}' % AJ.decode()).encode("utf-16"), D), "utf-8", "too"),
    ("a byte order mark", packed(b'\xef\xbb\xbf{"a": ' + AJ + b"}", D), "BOM|begin", "too"),
    ("JSON cut off", packed(b'{"a": ' + AJ, D), "delimiter", "too"),
    ("a second value behind it", packed(b'{"a": ' + AJ + b"} {}", D), "Extra data", "too"),
    ("zeros behind it", packed(b'{"a": ' + AJ + b"}\0\0", D), "Extra data", "too"),
    ("a list", packed(b"[]"), "begin with {", "too"),
    ("null", packed(b"null"), "begin with {", "too"),
    # the specification says it begins with {, but the official reader lets spaces pass
    ("a space in front", packed(b' {"a": ' + AJ + b"}", D), "begin with {", "ours only"),
    ("nested too deeply", packed(b'{"a": ' + b"[" * 200_000, D), "recursion", "too"),
    ("half a surrogate pair", packed(b'{"\\ud800": ' + AJ + b"}", D), "surrogates", "too"),
    # a name that occurs twice: Python's json and the official reader keep the last one silently
    ("a tensor twice", packed(b'{"a": ' + AJ + b', "a": ' + AJ + b"}", D), "'a' occurs twice",
     "ours only"),
    ("a field twice", packed(b'{"a": {"dtype": "F32", ' + AJ[1:] + b"}", D), "'dtype' occurs twice",
     "too"),
    # the metadata
    ("metadata with a number", packed({"__metadata__": {"n": 1}, "a": A}, D), "strings", "too"),
    ("metadata as a list", packed({"__metadata__": [], "a": A}, D), "strings", "too"),
    # the fields of an entry
    ("an entry that is a number", packed({"a": 5}, D), "'a' must have dtype", "too"),
    ("no dtype", packed({"a": {"shape": [2], "data_offsets": [0, 8]}}, D), "'a' must have", "too"),
    ("a field nobody knows", packed({"a": A | {"device": "cpu"}}, D), "nothing else", "ours only"),
    ("an unknown dtype", packed({"a": A | {"dtype": "F33"}}, D), "'F33'", "too"),
    ("a dtype in small letters", packed({"a": A | {"dtype": "f32"}}, D), "'f32'", "too"),
    # four bits a number: torch counts such tensors in pairs, and none of our models uses them
    ("numbers below a byte", packed({"a": entry("F4", [16], 0, 8)}, D), "'F4'", "ours only"),
    ("three offsets", packed({"a": A | {"data_offsets": [0, 8, 8]}}, D), "two data_offsets", "too"),
    ("a shape that is a number", packed({"a": A | {"shape": 2}}, D), "a list", "too"),
    # the numbers: JSON has one kind, Python makes several of it, and True == 1, 8.0 == 8, -0 == 0
    ("a float as offset", packed({"a": A | {"data_offsets": [0, 8.0]}}, D), "whole number", "too"),
    ("a bool as size", packed({"a": A | {"shape": [True, 2]}}, D), "whole number", "too"),
    ("a negative size", packed({"a": A | {"shape": [-2]}}, D), "whole number", "too"),
    ("two negative sizes", packed({"a": A | {"shape": [-1, -2]}}, D), "whole number", "too"),
    ("minus zero", packed(b'{"a": ' + AJ.replace(b"[0,", b"[-0,") + b"}", D), "whole", "too"),
    ("NaN", packed(b'{"a": ' + AJ.replace(b"[2]", b"[NaN]") + b"}", D), "NaN is not JSON", "too"),
    ("Infinity", packed({"a": A | {"shape": [float("inf")]}}, D), "Infinity is not JSON", "too"),
    ("a size beyond 64 bits", packed({"a": A | {"shape": [10**30]}}, D), "impossible shape", "too"),
    ("sizes that overflow", packed({"a": A | {"shape": [2**32, 2**32, 4]}}, D), "impossible",
     "too"),
    ("... to no elements", packed({"a": entry("F32", [2**32, 2**32, 0], 0, 0)}), "impossible",
     "too"),
    ("an endless number", packed(b'{"a": ' + AJ.replace(b"[2]", b"[%s]" % (b"9" * 5000)) + b"}", D),
     "digits|impossible", "too"),
    # the places
    ("a hole at the start", packed({"a": A | {"data_offsets": [4, 12]}}, bytes(12)), "begins",
     "too"),
    ("a hole", packed({"a": A, "b": entry("U8", [1], 9, 10)}, bytes(10)), "'b' begins", "too"),
    ("an overlap", packed({"a": A, "b": entry("F32", [2], 4, 12)}, bytes(12)), "'b' begins", "too"),
    ("the end before the start", packed({"a": A | {"data_offsets": [8, 0]}}, D), "begins", "too"),
    ("too few bytes for the shape", packed({"a": A | {"shape": [3]}}, D), "'a' has 8 bytes", "too"),
    ("data cut off", packed({"a": A}, D[:7]), "7 bytes of data, its header counts 8", "too"),
    ("bytes left over", packed({"a": A}, D + b"!"), "1 bytes at its end belong to no", "too"),
]


@pytest.mark.parametrize("data, says", [m[1:3] for m in MALFORMED], ids=[m[0] for m in MALFORMED])
def test_a_malformed_safetensors_file_is_refused(tmp_path, data, says):
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    text = complaint(read, file)
    assert text.startswith(f"{file}: ")
    assert any(s in text for s in says.split("|")), text
    assert len(text) < 400 + len(str(file))


@pytest.mark.parametrize("data, who", [(m[1], m[3]) for m in MALFORMED],
                         ids=[m[0] for m in MALFORMED])
def test_the_official_reader_is_no_stricter_than_the_table_says(tmp_path, data, who):
    library = pytest.importorskip("safetensors.torch")
    (tmp_path / "x").write_bytes(data)
    if who == "ours only":
        library.load_file(tmp_path / "x")
    else:
        with pytest.raises(Exception):
            library.load_file(tmp_path / "x")


def test_a_file_cut_off_at_any_byte_is_refused(tmp_path):
    write(tmp_path / "whole", {"a": torch.ones(2), "b": torch.ones(3, dtype=torch.uint8)})
    whole = (tmp_path / "whole").read_bytes()
    for n in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:n])
        complaint(read, tmp_path / "x")


def test_what_the_official_reader_lets_pass_and_harms_nobody_is_read(tmp_path):
    """Spaces behind the header (the padding), metadata null, a file without tensors, a tensor
    without elements between two others."""
    (tmp_path / "a").write_bytes(packed(b'{"__metadata__": null, "a": ' + AJ + b"}\n\t ", D))
    assert list(read(tmp_path / "a")) == ["a"] and metadata(tmp_path / "a") == {}
    (tmp_path / "b").write_bytes(packed({}))
    assert read(tmp_path / "b") == {}
    (tmp_path / "c").write_bytes(packed({"a": A, "z": entry("F32", [0], 8, 8),
                                         "b": entry("U8", [1], 8, 9)}, bytes(9)))
    assert read(tmp_path / "c").keys() == {"a", "b", "z"}


# -------------------------------------------------------------------- accidents of every day

ACCIDENTS = [
    # a clone made without git-lfs
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5481\n", "git lfs pull"),
    # the login page of a hotel's network, saved by a browser as model.safetensors
    (b"\n<!DOCTYPE html><html><body>Please sign in", "a web page"),
    (b"", "empty"),
    (b"\x89PNG\r\n\x1a\n0000000000", "not a weight file known"),
    # a model's config.json instead of its weights
    (b'{"n_layer": 12}', "no index of shards"),
    (b'{"weight_map": ', "no index of shards"),
]


@pytest.mark.parametrize("data, says", ACCIDENTS)
def test_a_file_that_is_no_weight_file_is_called_by_its_name(tmp_path, data, says):
    (tmp_path / "model.safetensors").write_bytes(data)
    assert says in complaint(read, tmp_path / "model.safetensors")


def test_a_missing_file_and_an_empty_folder_say_so(tmp_path):
    assert "No such file" in complaint(read, tmp_path / "x.safetensors")
    assert "model.safetensors, model.safetensors.index.json, pytorch_model.bin" \
        in complaint(read, tmp_path)


def test_a_folder_means_safetensors_before_bin(tmp_path):
    torch.save({"from": torch.tensor(2)}, tmp_path / "pytorch_model.bin")
    assert read(tmp_path)["from"].item() == 2
    write(tmp_path / "model.safetensors", {"from": torch.tensor(1)}, {"k": "v"})
    assert read(tmp_path)["from"].item() == 1 and metadata(tmp_path) == {"k": "v"}


# ------------------------------------------------------------------------------ torch.save

STATE = {"w": torch.arange(6.0).view(2, 3), "half": torch.ones(3).half(), "n": torch.tensor(7)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", ["x.bin", "x.safetensors", "x"])
def test_a_torch_save_file_is_known_by_its_content(tmp_path, zipped, name):
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert equal(read(tmp_path / name), STATE)
    assert metadata(tmp_path / name) == {}


def test_parameters_come_out_as_plain_tensors(tmp_path):
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x")
    w = read(tmp_path / "x")["w"]
    assert type(w) is torch.Tensor and not w.requires_grad


@pytest.mark.parametrize("content, says", [
    # a training checkpoint: the state dict is one of several things inside
    ({"model": STATE, "step": 3}, "'model' is a dict"),
    ({"w": torch.ones(2), "lr": 0.1}, "'lr' is a float"),
    ({3: torch.ones(2)}, "3 is a Tensor"),
    ([torch.ones(2)], "holds a list"),
    ({"w": torch.ones(2).to_sparse()}, "'w' is a Tensor that is no plain"),
    # the meta device has shapes but no numbers
    ({"w": torch.ones(2, device="meta")}, "'w' is a Tensor that is no plain"),
])
def test_a_value_that_is_no_tensor_is_named(tmp_path, content, says):
    torch.save(content, tmp_path / "x")
    assert says in complaint(read, tmp_path / "x")


class Hostile:
    """What an attacker puts into a pickle: to read it is to run a command."""
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"echo pwned > {self.file}",)


@pytest.mark.parametrize("kind", ["zip", "before torch 1.6", "TorchScript", "TorchScript, inside"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, kind):
    evil = Hostile(tmp_path / "pwned")
    if kind.startswith("TorchScript"):
        content = pickle.dumps({"module": evil} if "inside" in kind else evil, protocol=2)
        archive(tmp_path / "x", content)
    else:
        torch.save({"w": torch.ones(2), "evil": evil}, tmp_path / "x",
                   _use_new_zipfile_serialization=kind == "zip")
    text = complaint(read, tmp_path / "x")
    assert "system" in text and "hostile" in text and "weights_only=False" not in text
    assert not (tmp_path / "pwned").exists()
    # and this is what would have happened
    if kind == "TorchScript":
        pickle.loads(content)
        assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_save_file_cut_off_anywhere_is_refused(tmp_path, zipped):
    torch.save(STATE, tmp_path / "whole", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole").read_bytes()
    for n in [*range(0, len(whole), 37), len(whole) - 1]:
        (tmp_path / "x").write_bytes(whole[:n])
        complaint(read, tmp_path / "x")


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w") as z:
        z.writestr("model.safetensors", b"...")
    assert "unzip" in complaint(read, tmp_path / "x")


# ----------------------------------------------------------------------------- TorchScript

def archive(path, data_pkl, **members):
    """A TorchScript archive made by hand."""
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("x/data.pkl", data_pkl)
        z.writestr("x/constants.pkl", b"")
        for name, content in members.items():
            z.writestr(f"x/{name.replace('__', '/')}", content)


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ln = torch.nn.LayerNorm(4)
        self.lin = torch.nn.Linear(4, 3).half()
        self.device, self.sizes = torch.device("cpu"), [1, 2]

    def forward(self, x):
        return self.lin(self.ln(x).half())


class Outer(torch.nn.Module):
    """Everything that CLIP's archives have, and a little more: mixed dtypes, a list of blocks, a
    scalar, a matrix stored on its side, two names for one weight, attributes that are no tensor."""
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Inner(), Inner()])
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
        self.register_buffer("side", torch.arange(6).view(2, 3).t())
        self.register_buffer("none", torch.empty(0))
        self.blocks[1].lin.weight = self.blocks[0].lin.weight
        self.resolution, self.name, self.ratio, self.flag = 224, "clip", 1.5, True

    def forward(self, x):
        for block in self.blocks:
            x = torch.nn.functional.pad(block(x).float(), [0, 1])
        return x * self.logit_scale + self.side.sum()


@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_archive_gives_the_state_dict_of_its_model(tmp_path, how):
    torch.manual_seed(0)
    model = Outer().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, which is why we do not use it
        if how == "script":
            torch.jit.script(model).save(tmp_path / "x.pt")
        else:
            torch.jit.trace(model, torch.ones(2, 4)).save(tmp_path / "x.pt")
    x = read(tmp_path / "x.pt")
    assert equal(x, model.state_dict())
    assert "blocks.1.lin.weight" in x and x["side"].is_contiguous()
    x["blocks.0.lin.weight"].zero_()
    assert x["blocks.1.lin.weight"].abs().sum() > 0  # tied in the file, copies here


def module_pickle(storage_count=4, size=(2, 2), stride=(2, 1), offset=0, dtype="FloatStorage"):
    """data.pkl of a module with one tensor "w", opcode by opcode, as TorchScript writes it."""
    def ints(xs):
        return b"(" + b"".join(b"K" + bytes([x]) for x in xs) + b"t"

    tensor = (b"ctorch._utils\n_rebuild_tensor_v2\n"   # the function to call
              b"((X\x07\0\0\0storage"                  # its arguments: first a persistent id
              + b"ctorch\n" + dtype.encode() + b"\n"   # ... the class of the storage
              + b"X\x01\0\0\x000"                      # ... the key "0": member data/0
              + b"X\x06\0\0\0cuda:0"                   # ... the device, which must not matter
              + b"K" + bytes([storage_count]) + b"tQ"  # ... how many numbers; end of the id
              + b"K" + bytes([offset]) + ints(size) + ints(stride)
              + b"\x89ccollections\nOrderedDict\n)RtR")  # requires_grad, hooks; call it
    return (b"\x80\x02c__torch__\nNet\n)\x81}"         # an object of class __torch__.Net, with
            b"X\x01\0\0\0w" + tensor + b"sb.")         # {"w": tensor} as its attributes


FOUR = struct.pack("<4f", 1, 2, 3, 4)


def test_an_archive_made_by_hand_opcode_by_opcode(tmp_path):
    archive(tmp_path / "x", module_pickle(), data__0=FOUR)  # no byteorder member: an old file
    assert read(tmp_path / "x")["w"].tolist() == [[1, 2], [3, 4]]
    archive(tmp_path / "x", module_pickle(stride=(1, 2)), data__0=FOUR, byteorder=b"little")
    assert read(tmp_path / "x")["w"].tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("data_pkl, members, says", [
    # a view that reaches beyond its storage
    (module_pickle(size=(3, 2)), {"data__0": FOUR}, "out of bounds"),
    (module_pickle(offset=1), {"data__0": FOUR}, "out of bounds"),
    # a storage that is shorter or longer than the pickle says, or not there
    (module_pickle(storage_count=5), {"data__0": FOUR}, "storage 0"),
    (module_pickle(), {"data__0": FOUR + b"!"}, "storage 0"),
    (module_pickle(), {}, "no item named"),
    (module_pickle(), {"data__0": FOUR, "byteorder": b"big"}, "big-endian"),
    # classes on no list: torch's own code is not safer than anybody's
    (module_pickle(dtype="load"), {"data__0": FOUR}, "torch.load"),
    (b"c__torch__x\nNet\n)\x81.", {}, "__torch__x.Net"),
    # a plain dictionary: without a check it would read as a model without tensors
    (pickle.dumps({}, protocol=2), {}, "a dict instead of a TorchScript module"),
    # a module without tensors, and one that was never given its attributes
    (b"\x80\x02c__torch__\nNet\n)\x81}b.", {}, "without any tensors"),
    (b"\x80\x02c__torch__\nNet\n)\x81.", {}, "without any tensors"),
    # cut off, and empty
    (module_pickle()[:60], {"data__0": FOUR}, "damaged"),
    (b"", {}, "damaged"),
])
def test_a_wrong_torchscript_archive_is_refused(tmp_path, data_pkl, members, says):
    archive(tmp_path / "x.pt", data_pkl, **members)
    assert says in complaint(read, tmp_path / "x.pt")


def test_flipped_bits_in_a_storage_are_noticed(tmp_path):
    """The zip keeps a checksum of every member."""
    archive(tmp_path / "x", module_pickle(), data__0=FOUR)
    raw = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(raw.replace(FOUR, FOUR[:-1] + b"\x41"))
    assert "CRC" in complaint(read, tmp_path / "x")


# ---------------------------------------------------------------------------------- shards

def sharded(folder, where, shards, index="model.safetensors.index.json"):
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    for name, tensors in shards.items():
        if name.endswith("safetensors"):
            write(folder / name, tensors)
        else:
            torch.save(tensors, folder / name)


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_shards_are_read_as_one_model(tmp_path, end, monkeypatch):
    one, two = {"a": torch.ones(2), "b": torch.zeros(3)}, {"c": torch.tensor(5)}
    names = [f"model-0000{i}-of-00002.{end}" for i in (1, 2)]
    index = ("model" if end == "safetensors" else "pytorch_model") + f".{end}.index.json"
    sharded(tmp_path, {"a": names[0], "c": names[1], "b": names[0]},
            {names[0]: one, names[1]: two}, index)
    assert equal(read(tmp_path), one | two)
    opened, read_file = [], weights.read_file
    monkeypatch.setattr(weights, "read_file", lambda p: opened.append(p.name) or read_file(p))
    assert equal(read(tmp_path / index), one | two)
    assert opened == names  # each shard once


SHARD = {"s.safetensors": {"a": torch.ones(2), "b": torch.ones(1)}}


@pytest.mark.parametrize("where, says", [
    ({"a": "s.safetensors", "b": "s.safetensors", "c": "s.safetensors"}, "lacks ['c']"),
    # the index and the shards are of two different downloads
    ({"a": "s.safetensors"}, "has besides ['b']"),
    ({"a": "s.safetensors", "b": "t.safetensors"}, "t.safetensors: missing|lacks []"),
    # out of the folder: a download must not decide which files of yours are read
    ({"a": "../s.safetensors"}, "files of this folder"),
    ({"a": "/etc/passwd"}, "files of this folder"),
    ({"a": "C:\\s.safetensors"}, "files of this folder"),
    ({"a": "..\\s.safetensors"}, "files of this folder"),
    ({"a": ".."}, "files of this folder"),
    ({"a": ""}, "files of this folder"),
    ({}, "files of this folder"),
    # an index that names itself would be read for ever
    ({"a": "model.safetensors.index.json"}, "promises a weight file"),
    ({"a": 3}, "no sound weight_map"),
    ({"a": ["s.safetensors"]}, "no sound weight_map"),
    (["s.safetensors"], "no sound weight_map"),
    (None, "no sound weight_map"),
])
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, where, says):
    folder = tmp_path / "model"
    folder.mkdir()
    sharded(folder, where, SHARD)
    write(tmp_path / "s.safetensors", {"a": torch.ones(2)})
    text = complaint(read, folder)
    assert any(s in text for s in says.split("|")), text


# ------------------------------------------------------------------------------- downloads

class Shelf(http.server.ThreadingHTTPServer):
    """A web server on this computer. goods: {path: (bytes, options)}; asked: what was asked for."""
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.goods, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def put(self, path, data, **options):
        self.goods[path] = (data, options)
        return self.url + path


class Handler(http.server.BaseHTTPRequestHandler):
    """Options: ranges=False ignores Range; cut=n breaks the connection after n bytes, once;
    length=False does not tell the length; kind="text/html"; shift=n answers another range."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if self.path not in self.server.goods:
            return self.send_error(404)
        data, options = self.server.goods[self.path]
        begin = 0
        if wanted and options.get("ranges", True):
            begin = int(wanted.removeprefix("bytes=").removesuffix("-")) + options.get("shift", 0)
            if begin >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", options.get("kind", "application/octet-stream"))
        if options.get("length", True):
            self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.wfile.write(data[begin:begin + options.pop("cut", len(data))])

    def log_message(self, *args):
        pass


@pytest.fixture
def shelf(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Shelf()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


DATA = bytes(range(256)) * 4000  # 1,024,000 bytes
SHA, MD5 = hashlib.sha256(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()


def test_a_download_arrives_whole_and_only_once(shelf, tmp_path, capsys):
    url = shelf.put("/x.zip", DATA)
    path = tmp_path / "new" / "folder" / "x.zip"
    assert download(url, path, len(DATA), sha256=SHA.upper(), md5=MD5) == path
    assert path.read_bytes() == DATA and os.listdir(path.parent) == ["x.zip"]
    assert download(url, path, len(DATA), sha256=SHA) == path
    assert shelf.asked == [("/x.zip", None)]
    lines = capsys.readouterr().err.splitlines()  # not a terminal: a line for every tenth
    assert 2 <= len(lines) <= 12 and "x.zip: 1.0 MB of 1.0, 0 s left" in lines[-1]


def test_a_broken_download_goes_on_where_it_stopped(shelf, tmp_path):
    """The first connection ends after 300,000 bytes. The second asks for the rest and no more."""
    url, path = shelf.put("/x", DATA, cut=300_000), tmp_path / "x"
    text = complaint(download, url, path, sha256=SHA)
    assert "broke off after 0.3 MB" in text and "run the same command again" in text
    assert not path.exists() and (tmp_path / "x.part").read_bytes() == DATA[:300_000]
    download(url, path, sha256=SHA)
    assert path.read_bytes() == DATA and shelf.asked[1] == ("/x", "bytes=300000-")


def test_the_second_address_goes_on_where_the_first_broke_off(shelf, tmp_path):
    urls = [shelf.put("/a", DATA, cut=300_000), shelf.put("/b", DATA)]
    assert download(urls, tmp_path / "x", len(DATA), SHA).read_bytes() == DATA
    assert shelf.asked == [("/a", None), ("/b", "bytes=300000-")]


def test_the_second_address_serves_where_the_first_is_gone(shelf, tmp_path):
    urls = [shelf.url + "/gone", shelf.put("/b", DATA)]
    assert download(urls, tmp_path / "x", len(DATA), SHA).read_bytes() == DATA


@pytest.mark.parametrize("options", [
    {"ranges": False},                   # everything from the start: must not be appended
    {"ranges": False, "length": False},  # and without saying how much it will be
])
def test_a_server_that_ignores_range_is_followed_from_the_start(shelf, tmp_path, options):
    (tmp_path / "x.part").write_bytes(DATA[:1000])
    assert download(shelf.put("/x", DATA, **options), tmp_path / "x").read_bytes() == DATA


def test_a_server_that_answers_another_range_is_not_trusted(shelf, tmp_path):
    (tmp_path / "x.part").write_bytes(DATA[:1000])
    text = complaint(download, shelf.put("/x", DATA, shift=7), tmp_path / "x")
    assert "another range" in text and (tmp_path / "x.part").read_bytes() == DATA[:1000]


def test_a_part_that_is_complete_is_only_checked(shelf, tmp_path):
    """Ctrl-C came between the last byte and the check. With the size known nobody is asked; without
    it the server says 416, nothing comes after this byte."""
    url = shelf.put("/x", DATA)
    for size, asked in ((len(DATA), []), (None, [("/x", f"bytes={len(DATA)}-")])):
        (tmp_path / "x.part").write_bytes(DATA)
        assert download(url, tmp_path / "x", size, SHA).read_bytes() == DATA
        assert shelf.asked == asked
        (tmp_path / "x").unlink()


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_part_that_is_too_long_is_thrown_away(shelf, tmp_path, size):
    (tmp_path / "x.part").write_bytes(DATA + b"something else")
    assert download(shelf.put("/x", DATA), tmp_path / "x", size, SHA).read_bytes() == DATA


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"md5": "0" * 32},
                                   {"check": lambda part: "it smells"}])
def test_a_wrong_file_is_deleted_and_named(shelf, tmp_path, wrong):
    text = complaint(download, shelf.put("/x", DATA), tmp_path / "x", **wrong)
    assert "wrong file, now deleted" in text and str(tmp_path / "x") in text
    assert os.listdir(tmp_path) == []


def test_a_wrong_beginning_is_found_by_the_hash_and_the_next_run_is_clean(shelf, tmp_path):
    url = shelf.put("/x", DATA)
    (tmp_path / "x.part").write_bytes(b"something else")
    complaint(download, url, tmp_path / "x", len(DATA), SHA)
    assert download(url, tmp_path / "x", len(DATA), SHA).read_bytes() == DATA


@pytest.mark.parametrize("data, options, says", [
    (b"Please sign in", {}, "offers 14 bytes where 1,024,000"),
    # a login page answers every address with 200 and itself
    (DATA, {"kind": "text/html; charset=utf-8"}, "web page"),
    (b"Please sign in", {"length": False}, "ended early"),
])
def test_a_login_page_is_not_taken_for_the_file(shelf, tmp_path, data, options, says):
    text = complaint(download, shelf.put("/x", data, **options), tmp_path / "x", len(DATA))
    assert says in text and not (tmp_path / "x").exists()


def test_a_login_page_does_not_cost_what_has_come_already(shelf, tmp_path):
    url = shelf.put("/x", b"Please sign in", ranges=False, kind="text/html")
    (tmp_path / "x.part").write_bytes(DATA[:1000])
    assert "broke off" in complaint(download, url, tmp_path / "x")
    assert (tmp_path / "x.part").read_bytes() == DATA[:1000]


def test_more_bytes_than_expected_are_a_wrong_file(shelf, tmp_path):
    url = shelf.put("/x", DATA + b"!", length=False)
    assert "1,024,001 bytes instead of" in complaint(download, url, tmp_path / "x", len(DATA))
    assert os.listdir(tmp_path) == []


def test_a_file_of_another_size_under_the_final_name_is_left_alone(shelf, tmp_path):
    (tmp_path / "x").write_bytes(b"mine")
    text = complaint(download, shelf.put("/x", DATA), tmp_path / "x", len(DATA))
    assert "4 bytes instead of 1,024,000" in text and (tmp_path / "x").read_bytes() == b"mine"


def nowhere():
    """An address at which nobody listens: what a computer without a network sees."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/x"


def test_without_a_network_one_line_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = nowhere()
    text = complaint(download, url, tmp_path / "x")
    assert f"fetch {url} elsewhere and put it at {tmp_path / 'x'}" in text and "refused" in text


def test_a_silent_server_does_not_hold_us_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(weights, "TIMEOUT", 0.2)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()  # takes the call and says nothing
        url = f"http://127.0.0.1:{s.getsockname()[1]}/x"
        assert "timed out" in complaint(download, url, tmp_path / "x")


def test_ctrl_c_keeps_what_has_come(shelf, tmp_path, monkeypatch):
    def press(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(weights, "progress", lambda *args: press)
    with pytest.raises(KeyboardInterrupt):
        download(shelf.put("/x", DATA), tmp_path / "x", len(DATA), SHA)
    part = (tmp_path / "x.part").read_bytes()
    assert 0 < len(part) <= len(DATA) and DATA.startswith(part)


def test_a_full_disk_is_not_blamed_on_the_network(shelf, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(weights, "progress", lambda *args: full)
    text = complaint(download, [shelf.put("/x", DATA)] * 2, tmp_path / "x")
    assert "cannot be written (No space left on device)" in text and len(shelf.asked) == 1
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be written" in complaint(download, shelf.url + "/x", tmp_path / "file" / "x")


# ------------------------------------------------------------------------ the public files

def test_every_public_file_has_two_addresses_and_sound_numbers():
    assert {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "gpt2/vocab.json",
            "gpt2/merges.txt", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px",
            "clip/bpe_simple_vocab_16e6.txt.gz"} == weights.FILES.keys()
    for public in weights.FILES.values():
        assert len(public.urls) == 2 and len(set(public.urls)) == 2
        assert all(url.startswith("https://") for url in public.urls)
        assert public.sha256 is None or len(bytes.fromhex(public.sha256)) == 32
    assert len({p.file for p in weights.FILES.values()}) == len(weights.FILES)
    assert weights.FILES["ViT-L/14@336px"].file == "clip/ViT-L-14-336px.pt"


def test_gpt2s_size_is_the_sum_of_its_parts():
    """12 blocks of width 768: 124,439,808 parameters and 12 causal masks of 1024 x 1024, 4 bytes
    each, behind a header of 14,283 bytes and its 8 bytes of length."""
    d = 768
    block = 2 * 2 * d + (d * 3 * d + 3 * d) + (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d)
    numbers = 50257 * d + 1024 * d + 12 * block + 2 * d
    assert numbers == 124_439_808
    assert weights.FILES["gpt2"].size == 8 + 14_283 + 4 * (numbers + 12 * 1024 * 1024)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder and empty caches."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("SEEGPT_CACHE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def tiny(home, shelf, monkeypatch):
    """A table of two public files, small and on our own server: "gpt2" and "ViT-B/32"."""
    write(home / "g", {"wte.weight": torch.ones(3, 2)})
    archive(home / "v", module_pickle(), data__0=FOUR)
    for name, file, where, repo in (
            ("gpt2", "g", "gpt2/model.safetensors", "openai-community/gpt2"),
            ("ViT-B/32", "v", "clip/ViT-B-32.pt", None)):
        data = (home / file).read_bytes()
        url = shelf.put("/" + where, data)
        monkeypatch.setitem(weights.FILES, name, Public(
            where, [url, url + "2"], len(data), hashlib.sha256(data).hexdigest(), repo))
    return home


def test_fetch_downloads_once_into_our_cache(tiny, shelf, monkeypatch):
    path = fetch("gpt2")
    assert path == tiny / ".cache/seegpt/gpt2/model.safetensors" and "wte.weight" in read(path)
    assert fetch("gpt2") == path and len(shelf.asked) == 1
    monkeypatch.setenv("SEEGPT_CACHE", str(tiny / "elsewhere"))
    assert fetch("gpt2") == tiny / "elsewhere/gpt2/model.safetensors"


@pytest.mark.parametrize("place, variables", [
    (".cache/huggingface/hub/models--openai-community--gpt2/snapshots/607a", {}),
    # the repository's name before 2024
    (".cache/huggingface/hub/models--gpt2/snapshots/e7da", {}),
    ("hf/hub/models--gpt2/snapshots/e7da", {"HF_HOME": "hf"}),
    ("hub2/models--gpt2/snapshots/e7da", {"HF_HUB_CACHE": "hub2", "HF_HOME": "hf"}),
    ("hub3/models--gpt2/snapshots/e7da", {"HUGGINGFACE_HUB_CACHE": "hub3"}),
])
def test_fetch_finds_what_transformers_has_downloaded(tiny, shelf, monkeypatch, place, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tiny / value))
    (tiny / place).mkdir(parents=True)
    (tiny / place / "model.safetensors").write_bytes((tiny / "g").read_bytes())
    assert fetch("gpt2") == tiny / place / "model.safetensors"
    assert shelf.asked == []


def test_fetch_finds_what_openais_clip_has_downloaded(tiny, shelf):
    (tiny / ".cache/clip").mkdir(parents=True)
    (tiny / ".cache/clip/ViT-B-32.pt").write_bytes((tiny / "v").read_bytes())
    assert fetch("ViT-B/32") == tiny / ".cache/clip/ViT-B-32.pt" and shelf.asked == []


def test_a_damaged_file_in_anothers_cache_is_passed_over(tiny, shelf):
    (tiny / ".cache/clip").mkdir(parents=True)
    (tiny / ".cache/clip/ViT-B-32.pt").write_bytes((tiny / "v").read_bytes()[:-1])
    assert fetch("ViT-B/32") == tiny / ".cache/seegpt/clip/ViT-B-32.pt"


@pytest.mark.parametrize("damage, says", [
    (lambda b: b[:-1], "bytes, the published one"),
    (lambda b: b"\xff" * len(b), "not a weight file known"),  # the right size, and yet
])
def test_a_damaged_file_in_our_own_cache_is_named(tiny, shelf, damage, says):
    ours = tiny / ".cache/seegpt/gpt2/model.safetensors"
    ours.parent.mkdir(parents=True)
    ours.write_bytes(damage((tiny / "g").read_bytes()))
    text = complaint(fetch, "gpt2")
    assert says in text and "delete it" in text and str(ours) in text and ours.exists()


def test_without_hash_and_size_the_structure_must_do(tiny, shelf, monkeypatch):
    """As for gpt2-large, whose size and sha256 we could not find for certain."""
    public = weights.FILES["gpt2"]._replace(size=None, sha256=None)
    monkeypatch.setitem(weights.FILES, "gpt2", public)
    shelf.put("/gpt2/model.safetensors", (tiny / "g").read_bytes()[:-1])
    text = complaint(fetch, "gpt2")
    assert "wrong file, now deleted" in text and "cut off" in text
    shelf.put("/gpt2/model.safetensors", (tiny / "g").read_bytes())
    assert fetch("gpt2").is_file()


@pytest.mark.parametrize("kind, good, bad", [
    ("vocab.json", b'{"!": 0}', b'{"!": '),
    ("merges.txt", b"#version: 0.2\n\xc4\xa0 t\n", b"\xff\xfe"),
    ("bpe.txt.gz", gzip.compress(b"a b"), gzip.compress(b"a b")[:-9]),
    ("x.pt", None, b"PK\x03\x04 and nothing more"),
    ("x.safetensors", packed({"a": A}, D), packed({"a": A}, D[:-1])),
])
def test_the_structure_of_every_kind_of_public_file_is_checked(tmp_path, kind, good, bad):
    public = Public(f"folder/{kind}", [], None, None)
    if good is None:
        archive(tmp_path / "good", module_pickle(), data__0=FOUR)
    else:
        (tmp_path / "good").write_bytes(good)
    (tmp_path / "bad").write_bytes(bad)
    assert weights.fault(tmp_path / "good", public) == ""
    assert weights.fault(tmp_path / "bad", public)


def test_an_unknown_name_is_answered_with_the_nearest_one(home):
    assert "did you mean ViT-B/16?" in complaint(fetch, "ViT-B-16")
    assert "gpt2-medium" in complaint(fetch, "llama")
    (home / "mine").write_bytes(b"x")
    assert fetch(home / "mine") == home / "mine"


# ------------------------------------------------------------------------------ the command

def test_the_command_fetches_and_says_what_was_checked(tiny, capsys):
    weights.main(weights.Config(["gpt2", "ViT-B/32"]))
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"gpt2: {tiny}") and "checked: size, structure, sha256" in out[0]
    assert len(out) == 2


def test_the_command_computes_the_hash_of_a_file_it_only_found(tiny):
    """fetch goes by size and structure; the command, asked by a person, looks closer."""
    data = bytearray((tiny / "g").read_bytes())
    data[-1] ^= 1
    (tiny / ".cache/seegpt/gpt2").mkdir(parents=True)
    (tiny / ".cache/seegpt/gpt2/model.safetensors").write_bytes(data)
    fetch("gpt2")
    assert "sha256" in complaint(weights.main, weights.Config(["gpt2"]))


def test_the_command_says_where_no_hash_is_known(tiny, monkeypatch, capsys):
    public = weights.FILES["gpt2"]._replace(size=None, sha256=None)
    monkeypatch.setitem(weights.FILES, "gpt2", public)
    weights.main(weights.Config(["gpt2"]))
    assert "checked: structure (no sha256 is known)" in capsys.readouterr().out


def test_the_command_prints_what_is_in_a_file(tmp_path, capsys):
    write(tmp_path / "x", {"wte.weight": torch.ones(3, 2).half(), "n": torch.tensor(1)}, {"k": "v"})
    weights.main(weights.Config([str(tmp_path / "x")]))
    out = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["wte.weight", "3", "x", "2", "float16"] in out and ["n", "scalar", "int64"] in out
    assert out[-1] == "2 tensors, 7 numbers, 20 bytes".split()


def test_the_command_without_a_name_lists_the_public_files(capsys):
    weights.main(weights.Config([]))
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == list(weights.FILES)
    assert "548.1 MB" in out[0] and out[0].endswith("/model.safetensors")


def test_from_the_shell_a_mistake_is_one_line_and_status_1():
    script = Path(weights.__file__)
    done = subprocess.run([sys.executable, script, "gtp2"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: gtp2") and "did you mean gpt2?" in done.stderr


# ------------------------------------------------------------------------------ into a model

def test_fill_takes_exactly_the_tensors_of_the_model_as_float32():
    def build():
        return torch.nn.Linear(2, 3)
    good = {"weight": torch.arange(6).view(3, 2).half(), "bias": torch.ones(3).half()}
    model = weights.fill(build, good, "file")
    assert model.weight.dtype == torch.float32 and model.weight[2].tolist() == [4, 5]
    assert not model.training
    bad = {"weight": torch.ones(2, 3), "extra": torch.ones(1)}
    text = complaint(weights.fill, build, bad, "file")
    assert "bias is missing" in text and "extra is unknown" in text
    assert "weight is (2, 3), not (3, 2)" in text


def test_the_symbols_of_bytes_are_in_the_order_of_their_ids():
    """Id 0 is "!", the first printable byte; a space, byte 32, is written as chr(256 + 32)."""
    symbols = weights.byte_symbols()
    assert list(symbols)[0] == "!" and symbols[chr(288)] == 32
    assert sorted(symbols.values()) == list(range(256)) and len(symbols) == 256
