"""What a weight file is, byte by byte, and what may be wrong with one. Read next to weights/."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib

import pytest
import torch
from conftest import ROOT

import weights.reading
import weights.safetensors
from lib.cli import UserError
from weights.reading import fingerprint, head_count, layer_count, load_into, metadata, read
from weights.safetensors import DTYPES, raw_bytes, write

try:
    import safetensors.torch as official
except ImportError:  # then our reader is tested, only not beside the official one
    official = None


def equal(ours, theirs):
    """The same names, shapes, dtypes and bits (NaN included)."""
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        y = ours[name]
        assert (y.dtype, y.shape) == (x.dtype, x.shape), name
        assert raw_bytes(y).tobytes() == raw_bytes(x.contiguous()).tobytes(), name
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


@pytest.mark.parametrize("length", [400, 401])
def test_a_file_made_by_hand_reads_as_the_tensors_it_spells(length, tmp_path):
    """0x3f800000 is 1.0 and 0xc0000000 is -2.0 in float32; 0x3c00 is 1.0 in float16 and 0x3f80 is
    1.0 in bfloat16, all little-endian. With an odd length, such as the 14,283 bytes of gpt2's own
    header, no float begins at an even address. Spaces may follow the header."""
    header = {"__metadata__": None, "a": entry("F32", [2], 0, 8), "b": entry("F16", [1, 1], 8, 10),
              "none": entry("I64", [0, 3], 10, 10), "c": entry("BF16", [], 10, 12),
              "d": entry("U8", [2], 12, 14)}
    data = bytes.fromhex("0000803f 000000c0  003c  803f  07ff")
    (tmp_path / "x").write_bytes(packed(json.dumps(header).encode().ljust(length), data))
    assert equal(read(tmp_path / "x"), {
        "a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[1.0]]).half(),
        "none": torch.empty(0, 3, dtype=torch.int64), "c": torch.tensor(1.0).bfloat16(),
        "d": torch.tensor([7, 255], dtype=torch.uint8)})
    assert metadata(tmp_path / "x") == {}


def test_writing_and_reading_gives_every_dtype_back(tmp_path):
    """Every dtype the format and this torch have, with odd bits; odd shapes and names too."""
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 256, (48,), dtype=torch.uint8, generator=g)
    tensors = {f"of.{name}": (bits % 2).bool() if name == "BOOL" else bits.clone().view(dtype)
               for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "no elements": torch.empty(3, 0),
                "Größe": torch.ones(1, 5).half(), "turned": torch.arange(6.0).view(2, 3).t()}
    path, notes = tmp_path / "new folder" / "x.safetensors", {"steps": "300", "made by": "a test"}
    assert len(DTYPES) >= 17
    write(path, tensors, notes)
    assert equal(read(path), tensors) and metadata(path) == notes
    if official:
        assert equal(official.load_file(path), tensors)
        official.save_file({k: x.contiguous() for k, x in tensors.items()}, path, notes)
        assert equal(read(path), tensors) and metadata(path) == notes


def test_the_writer_aligns_every_tensor_to_its_item_size(tmp_path):
    write(tmp_path / "x", {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(5),
                           "c": torch.ones(1, dtype=torch.float16), "d": torch.ones(1).double()})
    data = (tmp_path / "x").read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    places = {name: e["data_offsets"][0] for name, e in json.loads(data[8:8 + n]).items()}
    assert n % 8 == 0 and places == {"d": 0, "b": 8, "c": 28, "a": 30}


@pytest.mark.parametrize("save", [write, lambda path, x: torch.save(x, path)], ids=["st", "bin"])
def test_what_is_read_is_contiguous_and_shares_no_memory(tmp_path, save):
    """A tied head is one tensor under two names in a torch.save file. Read, the two are copies:
    changing one does not change the other."""
    w = torch.arange(6.0).view(2, 3)
    save(tmp_path / "x", {"wte": w, "head": w, "turned": w.t()})
    x = read(tmp_path / "x")
    assert all(t.is_contiguous() for t in x.values())
    x["wte"].zero_()
    assert torch.equal(x["head"], w) and torch.equal(x["turned"], w.t())


def test_a_failed_write_leaves_the_good_file_and_no_litter(tmp_path, monkeypatch):
    write(tmp_path / "x", {"a": torch.ones(2)})
    for says, tensors, *notes in (("'b'", {"b": torch.ones(2, 2).to_sparse()}),
                                  ("__metadata__", {"__metadata__": torch.ones(2)}),
                                  ("strings", {"a": torch.ones(2)}, {"steps": 3})):
        assert says in complaint(write, tmp_path / "x", tensors, *notes)
    with monkeypatch.context() as patch:
        patch.setattr(weights.safetensors, "raw_bytes", full_disk)
        assert "No space left" in complaint(write, tmp_path / "x", {"a": torch.zeros(2)})
    assert read(tmp_path / "x")["a"].tolist() == [1, 1] and os.listdir(tmp_path) == ["x"]


def full_disk(*args):
    raise OSError(28, "No space left on device")


A, D = entry("F32", [2], 0, 8), bytes(8)
AJ = json.dumps(A).encode()


def lie(**change):
    return packed({"a": A | change}, D)


def raw(before=b"", after=b"", entry=AJ):
    """The file of one tensor with bytes before and behind its header."""
    return packed(before + b'{"a": ' + entry + b"}" + after, D)


# Every way in which a safetensors file may lie: the bytes, and what the message must say.
MALFORMED = {
    # the length of the header, and its JSON
    "header longer than the file": (packed({"a": A}, b"", 9999), "cut off inside its"),
    "header beyond the limit": (packed({"a": A}, D, 100_000_001), "not a weight file known"),
    "fewer than 8 bytes": (b"\x10\0\0\0", "not a weight file known"),
    "no header at all": (packed(b"", D), "Expecting value"),
    "not UTF-8": (packed(b'{"\xff": ' + AJ + b"}", D), "utf-8"),
    "JSON cut off": (packed(b'{"a": ' + AJ, D), "delimiter"),
    "a second value behind it": (raw(after=b" {}"), "Extra data"),
    "a list": (packed(b"[]"), "begin with {"),
    "a space in front": (raw(b" "), "begin with {"),
    "nested too deeply": (packed(b'{"a": ' + b"[" * 200_000, D), "recursion"),
    "half a surrogate pair": (packed(b'{"\\ud800": ' + AJ + b"}", D), "surrogates"),
    "a tensor twice": (raw(entry=AJ + b', "a": ' + AJ), "'a' occurs twice"),
    # the metadata and the fields of an entry
    "metadata with a number": (packed({"__metadata__": {"n": 1}, "a": A}, D), "strings"),
    "metadata as a list": (packed({"__metadata__": [], "a": A}, D), "strings"),
    "an entry that is a number": (packed({"a": 5}, D), "'a' must have dtype"),
    "a field nobody knows": (lie(device="cpu"), "nothing else"),
    "an unknown dtype": (lie(dtype="f32"), "'f32'"),
    "numbers below a byte": (packed({"a": entry("F4", [16], 0, 8)}, D), "'F4'"),
    "three offsets": (lie(data_offsets=[0, 8, 8]), "two data_offsets"),
    "a shape that is a number": (lie(shape=2), "a list"),
    # the numbers: JSON has one kind, Python makes several of it, and True == 1, 8.0 == 8, -0 == 0
    "a float as offset": (lie(data_offsets=[0, 8.0]), "whole number"),
    "a bool as size": (lie(shape=[True, 2]), "whole number"),
    "two negative sizes": (lie(shape=[-1, -2]), "whole number"),
    "minus zero": (raw(entry=AJ.replace(b"[0,", b"[-0,")), "whole number"),
    "NaN": (raw(entry=AJ.replace(b"[2]", b"[NaN]")), "NaN is not JSON"),
    "thousands of digits": (lie(shape=[10**4000] * 2), "whole number"),
    "65 axes": (lie(shape=[2] + [1] * 64), "impossible shape"),
    "sizes that overflow": (lie(shape=[2**32, 2**32, 4]), "impossible shape"),
    "... to no elements": (packed({"a": entry("F32", [2**32, 2**32, 0], 0, 0)}), "impossible"),
    # the places
    "a hole": (packed({"a": A, "b": entry("U8", [1], 9, 10)}, bytes(10)), "'b' begins"),
    "an overlap": (packed({"a": A, "b": entry("F32", [2], 4, 12)}, bytes(12)), "'b' begins"),
    "the end before the start": (lie(data_offsets=[8, 0]), "begins"),
    "too few bytes for the shape": (lie(shape=[3]), "'a' has 8 bytes"),
    "data cut off": (packed({"a": A}, D[:7]), "7 bytes of data, its header counts 8"),
    "bytes left over": (packed({"a": A}, D + b"!"), "1 bytes at its end belong to no"),
}
# ---------------------------------------------------------------- torch.save, everyday accidents

STATE = {"w": torch.nn.Parameter(torch.ones(2, 3)), "half": torch.ones(3).half(),
         "n": torch.tensor(7)}


def saved(content, zipped=True):
    """The bytes of torch.save."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def archive(data_pkl=None, method=zipfile.ZIP_STORED, **members):
    """The bytes of a TorchScript archive made by hand, or without data_pkl of any other zip."""
    if data_pkl is not None:
        members |= {"data.pkl": data_pkl, "constants.pkl": b""}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as z:
        for name, content in members.items():
            z.writestr(f"x/{name.replace('__', '/')}", content)
    return file.getvalue()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", ["x.bin", "x.safetensors"])
def test_a_torch_save_file_is_known_by_its_content(tmp_path, zipped, name):
    (tmp_path / name).write_bytes(saved(STATE, zipped))
    tensors = read(tmp_path / name)
    assert equal(tensors, STATE) and metadata(tmp_path / name) == {}
    assert type(tensors["w"]) is torch.Tensor and not tensors["w"].requires_grad


ACCIDENTS = {
    "a clone without git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "the login page of a hotel": (b"\n<!DOCTYPE html><html><body>Please sign in", "a web page"),
    "nothing": (b"", "empty"),
    "a picture": (b"\x89PNG\r\n\x1a\n0000000000", "not a weight file known"),
    "weights that were zipped": (archive(model__safetensors=b"..."), "unzip"),
    "config.json": (b'{"n_layer": 12}', "no index of shards"),
    "an index cut off": (b'{"weight_map": ', "no index of shards"),
    # a training checkpoint: the state dict is one of several things inside
    "a dictionary inside": (saved({"model": STATE, "step": 3}), "'model' is a dict"),
    "a number": (saved({"w": torch.ones(2), "lr": 0.1}), "'lr' is a float"),
    "a name that is none": (saved({3: torch.ones(2)}), "3 is a Tensor"),
    "a list": (saved([torch.ones(2)]), "holds a list"),
    "a sparse tensor": (saved({"w": torch.ones(2).to_sparse()}), "'w' is a Tensor that is no"),
    # the meta device has shapes but no numbers
    "no numbers": (saved({"w": torch.ones(2, device="meta")}), "'w' is a Tensor that is no plain"),
}


def test_a_missing_file_and_an_empty_folder_say_so(tmp_path):
    assert "No such file" in complaint(read, tmp_path / "x.safetensors")
    assert "model.safetensors, model.safetensors.index.json, pytorch_model.bin" \
        in complaint(read, tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are files on Unix only")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "pipe in a folder", "endless link"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    if kind.startswith("pipe"):
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    complaint(read, tmp_path if "folder" in kind else path)


@pytest.mark.parametrize("save", [write, lambda path, x: torch.save(x, path)], ids=["st", "bin"])
def test_a_file_that_fits_no_memory_is_not_called_damaged(tmp_path, monkeypatch, save):
    def no_memory(*args, **kw):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # torch's MemoryError

    save(tmp_path / "x", {"a": torch.ones(2)})
    monkeypatch.setattr(torch, "empty", no_memory)
    assert "too big for this computer's memory" in complaint(read, tmp_path / "x")


def test_a_folder_means_safetensors_before_bin(tmp_path):
    torch.save({"from": torch.tensor(2)}, tmp_path / "pytorch_model.bin")
    assert read(tmp_path)["from"].item() == 2
    write(tmp_path / "model.safetensors", {"from": torch.tensor(1)}, {"k": "v"})
    assert read(tmp_path)["from"].item() == 1 and metadata(tmp_path) == {"k": "v"}


@pytest.mark.parametrize("kind", ["safetensors", "zip", "before torch 1.6"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, kind):
    write(tmp_path / "whole", STATE)
    whole, step = (tmp_path / "whole").read_bytes(), 1
    if kind != "safetensors":
        whole, step = saved(STATE, kind == "zip"), 37
    for n in [*range(0, len(whole), step), len(whole) - 1]:
        (tmp_path / "x").write_bytes(whole[:n])
        complaint(read, tmp_path / "x")


class Hostile:
    """What an attacker puts into a pickle: to read it is to run a command."""
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"echo pwned > {self.file}",)


@pytest.mark.parametrize("kind", ["zip", "before torch 1.6", "TorchScript", "TorchScript, inside"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, kind):
    evil = Hostile(tmp_path / "pwned")
    content = pickle.dumps({"module": evil} if "inside" in kind else evil, protocol=2)
    (tmp_path / "x").write_bytes(archive(content) if kind.startswith("TorchScript")
                                 else saved({"w": torch.ones(2), "evil": evil}, kind == "zip"))
    text = complaint(read, tmp_path / "x")
    assert "system" in text and "hostile" in text and "weights_only=False" not in text
    assert not (tmp_path / "pwned").exists()
    pickle.loads(content)  # and this is what would have happened
    assert (tmp_path / "pwned").exists()


# ----------------------------------------------------------------------------- TorchScript

class Net(torch.nn.Module):
    """Everything that CLIP's archives have, and a little more: mixed dtypes, a list of blocks, a
    scalar, a matrix stored on its side, two names for one weight, attributes that are no tensor."""
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4).half() for _ in range(2)])
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
        self.register_buffer("side", torch.arange(6).view(2, 3).t())
        self.register_buffer("none", torch.empty(0))
        self.blocks[1].weight = self.blocks[0].weight
        self.resolution, self.name, self.ratio, self.flag = 224, "clip", 1.5, True
        self.device, self.sizes = torch.device("cpu"), [1, 2]

    def forward(self, x):
        for block in self.blocks:
            x = block(x.half())
        return x * self.logit_scale + self.side.sum()


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(2, 4))],
                         ids=["script", "trace"])
def test_a_torchscript_archive_gives_the_state_dict_of_its_model(tmp_path, make):
    model = Net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, which is why we do not use it
        make(model).save(tmp_path / "x.pt")
    x = read(tmp_path / "x.pt")
    assert equal(x, model.state_dict()) and x["side"].is_contiguous()
    x["blocks.0.weight"].zero_()
    assert x["blocks.1.weight"].abs().sum() > 0  # tied in the file, copies here


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
GOOD = archive(module_pickle(), data__0=FOUR)


@pytest.mark.parametrize("stride, w", [((2, 1), [[1, 2], [3, 4]]), ((1, 2), [[1, 3], [2, 4]])])
def test_an_archive_made_by_hand_opcode_by_opcode(tmp_path, stride, w):
    (tmp_path / "x").write_bytes(archive(module_pickle(stride=stride), data__0=FOUR))
    assert read(tmp_path / "x")["w"].tolist() == w


def directory(at, form, *numbers):
    """GOOD, whose zip directory says other numbers of storage 0, from byte `at` of its entry on."""
    data = bytearray(GOOD)
    entry = data.rindex(b"PK\1\2", 0, data.rindex(b"x/data/0"))
    struct.pack_into(form, data, entry + at, *numbers)
    return bytes(data)


NEW = b"\x80\x02c__torch__\nNet\n)\x81"  # an object without attributes


def part_of_two(levels):
    """A pickle of modules, each of which holds the one before it twice."""
    a, b = b"X\1\0\0\0a", b"X\1\0\0\0b"
    level = NEW[2:] + b"}(" + a + b"h\0" + b + b"h\0ubq\0"
    return NEW + b"q\0" + levels * level + b"."


# A few bytes that would take gigabytes or years, or whose reader did not look what it got.
COSTLY = {
    # of 16 bytes 8 are there, rightly summed: memory would keep what was in it before
    "half a storage": (directory(16, "<II", zlib.crc32(FOUR[:8]), 8), "storage 0 is cut off"),
    "one flipped bit": (directory(6, "<H", 20 + 64), "damaged zip archive"),
    "a view that repeats numbers": (archive(module_pickle(size=(200, 200), stride=(0, 0)),
                                            data__0=FOUR), "would take 160,000 bytes"),
    "many names of one storage": (saved(dict.fromkeys(map(str, range(999)), torch.ones(9999))),
                                  "would take 39,956,004 bytes"),
    "compressed numbers": (archive(module_pickle(), zipfile.ZIP_DEFLATED, data__0=FOUR),
                           "compressed"),
    "modules shared by modules": (archive(part_of_two(60)), "modules without end"),
    "a module inside itself": (archive(NEW + b"q\0}X\1\0\0\0ah\0sb."), "modules without end"),
    "a number to remember by": (archive(b"\x80\x02Nr\xff\xff\xff\xff."), "holds a NoneType"),
    "a tuple of tuples as a key": (archive(b"\x80\x02}N\x85" + b"q\0h\0h\0\x86" * 90 + b"Ns."),
                                   "a key is a tuple"),
    "a very deep tuple": (archive(b"\x80\x02N" + b"\x85" * 99_999 + b"."), "holds a tuple"),
    "a text longer than the file": (archive(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f."), "damaged"),
    "numbers of another machine": (archive(module_pickle(), data__0=FOUR, byteorder=b"big"),
                                   "big-endian"),
}
SCRIPTS = {
    "a view beyond its storage": (archive(module_pickle(offset=1), data__0=FOUR), "out of bounds"),
    "too short a storage": (archive(module_pickle(storage_count=5), data__0=FOUR), "storage 0"),
    "too long a storage": (archive(module_pickle(), data__0=FOUR + b"!"), "storage 0"),
    "no storage": (archive(module_pickle()), "no item named"),
    "flipped bits": (GOOD.replace(FOUR, FOUR[:-1] + b"\x41"), "CRC"),
    # classes on no list: torch's own code is not safer than anybody's
    "torch's function": (archive(module_pickle(dtype="load"), data__0=FOUR), "torch.load"),
    "another module": (archive(b"c__torch__x\nNet\n)\x81."), "__torch__x.Net"),
    "a plain dictionary": (archive(pickle.dumps({}, protocol=2)), "holds a dict"),
    "a pickle cut off": (archive(module_pickle()[:60], data__0=FOUR), "damaged"),
    "an empty pickle": (archive(b""), "damaged"),
}


@pytest.mark.parametrize("data, says", [
    pytest.param(*case, id=f"{kind}, {name}") for kind, table in
    (("safetensors", MALFORMED), ("accident", ACCIDENTS), ("TorchScript", SCRIPTS),
     ("costly", COSTLY))
    for name, case in table.items()])
def test_a_wrong_file_is_refused_with_one_line_that_says_why(tmp_path, data, says):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    text = complaint(read, path)
    assert text.startswith(f"{path}: ") and len(text) < 400 + len(str(path))
    assert says in text


# ---------------------------------------------------------------------------------- shards

@pytest.mark.parametrize("end, index", [("safetensors", "model.safetensors.index.json"),
                                        ("bin", "pytorch_model.bin.index.json")])
def test_shards_are_read_as_one_model_each_once(tmp_path, end, index, monkeypatch):
    one, two = {"a": torch.ones(2), "b": torch.zeros(3)}, {"c": torch.tensor(5)}
    save = write if end == "safetensors" else lambda path, tensors: torch.save(tensors, path)
    names = [f"model-0000{i}-of-00002.{end}" for i in (1, 2)]
    for name, tensors in zip(names, (one, two)):
        save(tmp_path / name, tensors)
    where = {"a": names[0], "c": names[1], "b": names[0]}
    (tmp_path / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    opened, read_file = [], weights.reading.read_file
    monkeypatch.setattr(weights.reading, "read_file",
                        lambda path: opened.append(path.name) or read_file(path))
    assert equal(read(tmp_path), one | two) and equal(read(tmp_path / index), one | two)
    assert opened == 2 * names


@pytest.mark.parametrize("where, says", [
    ({"a": "s.safetensors", "b": "s.safetensors", "c": "s.safetensors"}, "lacks ['c']"),
    # the index and the shards are of two different downloads
    ({"a": "s.safetensors"}, "has besides ['b']"),
    ({"a": "t.safetensors", "b": "t.safetensors"}, "t.safetensors: missing"),
    # out of the folder: a download must not decide which files of yours are read
    *(({"a": path}, "files of this folder") for path in (
        "../s.safetensors", "/etc/passwd", "C:\\s.safetensors", "..\\s.safetensors", "..", "")),
    ({}, "files of this folder"),
    # an index that names itself would be read for ever
    ({"a": "model.safetensors.index.json"}, "promises a weight file"),
    *((where, "no sound weight_map") for where in (
        {"a": 3}, {"a": ["s.safetensors"]}, ["s.safetensors"], None)),
])
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, where, says):
    folder = tmp_path / "model"
    write(folder / "s.safetensors", {"a": torch.ones(2), "b": torch.ones(1)})
    write(tmp_path / "s.safetensors", {"a": torch.ones(2)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert says in complaint(read, folder)


# ------------------------------------------------------------------------------ into a model

def test_load_into_takes_exactly_the_tensors_of_the_model_as_float32():
    good = {"weight": torch.arange(6).view(3, 2).half(), "bias": torch.ones(3).half()}
    model = load_into(lambda: torch.nn.Linear(2, 3), good, "file")
    assert model.weight.dtype == torch.float32 and model.weight[2].tolist() == [4, 5]
    assert not model.training
    bad = {"weight": torch.ones(2, 3), "extra": torch.ones(1)}
    text = complaint(load_into, lambda: torch.nn.Linear(2, 3), bad, "file")
    for wrong in "bias is missing", "extra is unknown", "weight is (2, 3), not (3, 2)":
        assert wrong in text


@pytest.mark.parametrize("told, heads", [
    (None, 2), (4, 4), ("4", 4), (0, None), ("", None), (True, None), (5, None), (-2, None),
    (256, None), ("x", None), (1e300, None), (float("inf"), None), (10**400, None),
    ("9" * 5000, None)])
def test_a_number_of_heads_is_a_whole_number_that_splits_the_width(told, heads):
    if heads:
        assert head_count(told, 128, "file") == heads
    else:
        assert "width 128 cannot be split into" in complaint(head_count, told, 128, "file")


@pytest.mark.parametrize("names, layers", [
    (["h.0.a", "h.1.a", "h.1.b", "x"], 2), (["x"], 0), (["h.99999999.a"], None), (["h.x.a"], None),
    (["h.1.a"], None), (["h.-1.a"], None), (["h.\u0660.a"], None), (["h."], None),
    ([f"h.{i}.a" for i in range(1001)], None)])
def test_layers_are_numbered_from_0_and_all_there(names, layers):
    if layers is not None:
        assert layer_count(names, "h.", "file") == layers
    else:
        assert "numbered from 0" in complaint(layer_count, names, "h.", "file")


def test_a_fingerprint_is_of_names_shapes_and_numbers_not_of_their_dtype():
    def of(**tensors):
        return fingerprint(torch.nn.ParameterDict(tensors))

    assert of(a=torch.ones(2, 3)) == of(a=torch.ones(2, 3).half())
    assert len({of(a=torch.ones(2, 3)), of(a=torch.ones(3, 2)), of(b=torch.ones(2, 3)),
                of(a=torch.zeros(2, 3))}) == 4


def test_loading_imports_no_library_for_random_numbers_that_nobody_needs():
    """On the meta device torch would: sympy, half a second to a second of every command."""
    code = ("import sys, lib.cli\nfrom clip_vit import CLIPViT\nfrom plm import CLASSES\n"
            "before = 'sympy' in sys.modules\n"
            "for kind, model in (CLASSES | {'clip': CLIPViT}).items():\n"
            "    model.from_pretrained(f'data/shapes/tiny-{kind}')\n"
            "sys.exit('sympy' in sys.modules and not before)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
