"""Weight files of every kind, damaged, made up and hostile, given to everything that reads them."""

import functools
import io
import json
import os
import pickle
import random
import re
import sys
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch

from clip_vit import CLIPText, CLIPViT
from gpt2 import GPT2, GPT2Config
from ituning import ITuning
from lib.cli import UserError
from model import SeeGPT
from tests.attack.mutate import ODD, damage, damage_json
from tests.attack.pickles import RUN, archive, hostile, views
from tests.attack.watch import ROOT
from weights.__main__ import describe
from weights.reading import fingerprint, read
from weights.safetensors import write

CASES = 20_000
TINY = {"lm": str(ROOT / "data/shapes/tiny-gpt2"), "clip": str(ROOT / "data/shapes/tiny-clip")}
READERS = {"": (read, describe), "gpt2": (GPT2.from_pretrained,), "see": (SeeGPT.load,),
           "clip": (CLIPViT.from_pretrained, CLIPText.from_pretrained)}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, dtype=torch.half)

    def forward(self, x):
        return self.outer(self.inner(x).half())


@functools.cache
def sound():
    """{name: bytes} of small files that read well. The name begins with what they are."""
    torch.manual_seed(0)
    lm, clip = GPT2(GPT2Config(300, 16, 2, 2, 8)), {"visual.": CLIPViT(8, 4, 8, 2, 2, 8),
                                                    "": CLIPText(7, 20, 8, 1, 2, 8)}
    see = SeeGPT(CLIPViT.from_pretrained(TINY["clip"]), GPT2.from_pretrained(TINY["lm"]), None)
    config = ITuning.Config(heads=4)
    see.method = ITuning(config, see.lm, see.vit)
    frozen = {"lm": see.lm, "clip": see.vit}
    note = {"method": "ituning", "config": asdict(config), "dataset": "shapes", "task": "captions",
            "train_lm": False, "train_vision": False, "train": {}, "step": 1,
            **{k: {"name": TINY[k], "sha256": fingerprint(m)} for k, m in frozen.items()}}
    tensors = {"gpt2": lm.state_dict(), "see": dict(see.trained()), "clip": {
        prefix + k: t for prefix, m in clip.items() for k, t in m.state_dict().items()}}
    notes = {"gpt2": {"n_head": "2"}, "clip": {"vision_heads": "2", "text_heads": "2"},
             "see": {"seegpt": json.dumps(note)}}
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x"
        for name in tensors:
            write(file, {k: t.detach() for k, t in tensors[name].items()}, notes[name])
            files[f"{name}.safetensors"] = file.read_bytes()
            for zipped in (True, False) if name != "see" else ():
                torch.save(tensors[name], file, _use_new_zipfile_serialization=zipped)
                files[f"{name}.{'zip' if zipped else 'old'}.bin"] = file.read_bytes()
        torch.jit.trace(Net(), torch.ones(1, 8)).save(file)
        files["clip.script.pt"] = file.read_bytes()
    return files


def split(data):
    """A safetensors file's header and numbers."""
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + n]), data[8 + n:]


def join(header, numbers=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + numbers


NAMES = ["", "a\nb\x1b[31m", "\ud800", "x" * 5000, "h.", "h.x", "h.-1.a", "lm_head.weight",
         "h.99999999.ln_1.weight", "h.1_0.x", "h.\u0661.x", "visual.transformer.resblocks.x.y",
         "transformer.resblocks.5000000000.ln_1.weight", "wte.weight", "transformer.wte.weight",
         "encoder.layers.0.self_attn.q_proj.weight", "visual_projection.weight", "k_projq_proj",
         "text_projection.weight", "visual.proj", "visual.conv1.weight", "../x", "__metadata__"]
SHAPES = [[], [0], [8, 0], [0, 2**40], [0, 2**20, 2**20], [2**60, 0], [1], [2], [8, 8], [1, 8],
          [2, 8], [64], [7, 3, 2, 2], [8, 3, 4, 5], [1] * 64, [1] * 65, [65536], [1, 65536]]


def damaged(rng, folder):
    kind = rng.choice(list(sound()))
    data, how = damage(sound()[kind], rng, 3000)
    return f"{kind} {how}", data, kind.partition(".")[0]


def header(rng, folder):
    """Another header; and one sound in itself, in which one tensor has another name or shape."""
    kind = rng.choice(("gpt2", "clip", "see"))
    table, numbers = split(sound()[f"{kind}.safetensors"])
    how = rng.choice("json json name name shape shape shape dtype meta deep raw".split())
    key = rng.choice([k for k in table if k != "__metadata__"])
    if how == "json":
        table, how = damage_json(table, rng)
    elif how == "name":
        table = {(rng.choice(NAMES) if k == key else k): v for k, v in table.items()}
    elif how in ("shape", "dtype"):
        parts = {k: numbers[slice(*e.pop("data_offsets"))] for k, e in table.items()
                 if k != "__metadata__"}
        if how == "shape":
            table[key]["shape"] = rng.choice(SHAPES)
        else:
            table[key]["dtype"] = rng.choice(("F16", "BF16", "I64", "U8", "BOOL", "C64", "F8_E4M3"))
        size = {"I64": 8, "C64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(table[key]["dtype"], 1)
        for n in table[key]["shape"]:
            size *= n
        parts[key], end = bytes(size), 0
        for k, part in parts.items():
            table[k]["data_offsets"], end = [end, end + len(part)], end + len(part)
        numbers, how = b"".join(parts.values()), f"{how} {table[key]['shape'][:4]}"
    elif how == "meta":
        value = rng.choice(("x", "0", "-2", "1e9", "", "9" * 5000, "inf", "[]", "{", "[" * 10**5))
        table["__metadata__"] = {rng.choice(("n_head", "vision_heads", "seegpt", "a\nb")): value}
    elif how == "deep":
        table = b'{"a":' + rng.choice((b"[", b'{"a":')) * rng.choice((900, 10**6))
    else:
        table = rng.choice((b"[]", b"5", b"{}", b"", b"{" * 50, b"\xff\xfe", b'{"\\ud800":{}}', (
            '{"a":{"dtype":"F32","data_offsets":[0,4],"shape":[%s]}}' % ",".join(
                ["9" * 4000] * 2000)).encode()))
    return f"{kind} header {how}", join(table, numbers), kind


def pickles(rng, folder):
    form = rng.choice(("zip", "script", "old"))
    program, members = hostile(rng), {}
    if form != "old" and rng.random() < 0.5:
        program, members = views(rng, form == "script")
    if form == "old":
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        before = b"".join(pickle.dumps(x, 2) for x in (
            0x1950a86a20f9469cfc6c, 1001, system))
        return "old pickle", before + program + pickle.dumps(["0"], 2) + bytes(72), ""
    data = archive(program, rng, form == "script", **members)
    if rng.random() < 0.2:
        data, _ = damage(data, rng)
    return f"{form} pickle", data, ""


def zips(rng, folder):
    """Damage in what a zip says of its members: the headers of each and the directory."""
    kind = rng.choice([k for k in sound() if "zip" in k or "script" in k])
    data = bytearray(sound()[kind])
    marks = [found.start() for found in re.finditer(b"PK(\1\2|\3\4|\5\6|\6\6)", data)]
    for _ in range(rng.choice((1, 1, 3))):
        at, size = rng.choice(marks) + rng.randrange(4, 50), rng.choice((1, 2, 4))
        value = rng.choice((0, 1, 8, 12, 14, 99, 0x800, 2**31, 2**32 - 1, rng.getrandbits(32)))
        data[at:at + size] = (value % 256**size).to_bytes(size, "little")
    return f"{kind} directory", bytes(data), ""


@functools.cache
def bomb(member, script):
    """A file of a few megabytes whose member would unpack to a gigabyte and more."""
    file = io.BytesIO(archive(b"\x80\x02}.", random.Random(1), script))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        with z.open(f"archive/{member}", "w", force_zip64=True) as f:
            for _ in range(80):
                f.write(bytes(1 << 24))
    return file.getvalue()


def bombs(rng, folder):
    member = rng.choice(("data/1", "data/0", "data.pkl", "code/x.py"))
    return f"bomb {member}", bomb(member, rng.random() < 0.5), ""


def special(rng, folder):
    """No files: folders, pipes, devices, links, and names that no file can have."""
    path, kind = folder / "model.safetensors", rng.choice(
        "folder fifo inside socket zero full mem loop nowhere zeros long half lock home".split())
    if kind in ("fifo", "inside"):
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("loop", "nowhere"):
        path.symlink_to(path if kind == "loop" else folder / "x")
    elif kind == "zeros":  # a terabyte that takes no room on the disk
        header = {"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}
        path.write_bytes(join(header))
        os.truncate(path, path.stat().st_size + 2**40)
    elif kind == "lock":
        path.write_bytes(sound()["gpt2.safetensors"])
        path.chmod(0)
    other = {"zero": "/dev/zero", "full": "/dev/full", "mem": "/proc/self/mem", "inside": folder,
             "socket": "/dev/stdin", "long": folder / ("x" * 5000), "half": folder / "\udcff",
             "home": "~nobody/x"}
    return f"special {kind}", Path(other.get(kind, path)), rng.choice(("", "gpt2", "clip", "see"))


def index(rng, folder):
    """Shards and their index."""
    table, numbers = split(sound()["gpt2.safetensors"])
    where = dict.fromkeys((k for k in table if k != "__metadata__"), "a.bin")
    (folder / "a.bin").write_bytes(sound()["gpt2.safetensors"])
    content = {"weight_map": where, "metadata": {}}
    key, how = rng.choice(list(where)), rng.choice("value value json bytes fifo many deep".split())
    if how == "value":
        where[key] = rng.choice(["../x", "/etc/passwd", "..", "", "a\nb", "C:x", "a/b", 5, None, [],
                                 "x" * 300, "\ud800", "model.safetensors.index.json", "a.bin\n"])
    elif how == "fifo":
        (folder / "a.bin").unlink()
        os.mkfifo(folder / "a.bin")
    elif how == "many":
        where |= {f"w{i}": f"s{i}" for i in range(50_000)}
    raw = json.dumps(damage_json(content, rng)[0] if how == "json" else content).encode()
    if how in ("bytes", "deep"):
        raw = damage(raw, rng)[0] if how == "bytes" else b'{"weight_map":[' * 9000
    (folder / "model.safetensors.index.json").write_bytes(raw)
    return f"index {how}", folder, "gpt2"


METHODS = ["this", "antigravity", "elsewhere", "", ".", "a.b", "os.path", "ituning.py", "json",
           "torch", "x" * 5000, "x" * 255, "__main__", "../x", "dvp", "prefix", "vcgpt", "vanilla",
           "model", "\ud800", "idlelib"]


def notes(rng, folder):
    """The note of a checkpoint."""
    table, numbers = split(sound()["see.safetensors"])
    note = json.loads(table["__metadata__"]["seegpt"])
    how = rng.choice("json json method name config".split())
    if how == "json":
        note, how = damage_json(note, rng)
    elif how == "method":
        note["method"] = rng.choice(METHODS)
        how = f"method {str(note['method'])[:20]!r}"
    elif how == "name":
        os.mkfifo(folder / "pipe")
        note[rng.choice(("lm", "clip"))]["name"] = rng.choice(
            ["/dev/zero", "", ".", "\0", "x" * 5000, "pipe", "gpt3", "https://[", "\ud800"])
    else:
        key = rng.choice([*note["config"], "unknown"])
        note["config"][key] = rng.choice([*ODD, 10**9, 10**6, 0.001, 1e9, 3, 128])
        how = f"{key} {str(note['config'][key])[:20]!r}"
    table["__metadata__"]["seegpt"] = json.dumps(note)
    return f"note {how}", join(table, numbers), "see"


def configs(rng, folder):
    """A folder with a sound weight file beside an odd config.json."""
    kind = rng.choice(("gpt2", "clip"))
    part = {"num_attention_heads": 2, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    config = {"gpt2": {"n_head": 2, "n_layer": 2, "activation_function": "gelu_new"},
              "clip": {"vision_config": part, "text_config": part}}[kind]
    (folder / "model.safetensors").write_bytes(sound()[f"{kind}.safetensors"])
    how = rng.choice("json json json head bytes deep folder fifo link".split())
    if how == "head":
        (part if kind == "clip" else config)[
            "num_attention_heads" if kind == "clip" else "n_head"] = rng.choice(ODD)
    raw = json.dumps(damage_json(config, rng)[0] if how == "json" else config).encode()
    if how in ("bytes", "deep"):
        raw = damage(raw, rng)[0] if how == "bytes" else b'{"a":' * 99_000
    file = folder / "config.json"
    if how == "folder":
        file.mkdir()
    elif how == "fifo":
        os.mkfifo(file)
    elif how == "link":
        file.symlink_to(file)
    else:
        file.write_bytes(raw)
    return f"{kind} config {how}", folder, kind


FAMILIES = {damaged: 30, header: 20, pickles: 25, zips: 10, index: 5, notes: 8, configs: 8,
            special: 2, bombs: 0.2}


def case(rng, folder):
    family, = rng.choices(list(FAMILIES), FAMILIES.values())
    label, what, kind = family(rng, folder)
    path = what
    if isinstance(what, bytes):
        path = folder / rng.choice(("x.safetensors", "x.bin", "x.pt"))
        path.write_bytes(what)
    (folder / "path").mkdir()
    (folder / "path" / "elsewhere.py").write_text(f"import os\nos.system({RUN!r})\n")

    def call():
        sys.path.append(str(folder / "path"))
        error = None
        for reader in (*READERS[""], *READERS[kind]):
            try:
                reader(path)
            except UserError as e:
                error = e
        sys.path.remove(str(folder / "path"))
        if error:
            raise error

    return label, call
