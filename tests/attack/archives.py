"""Zips and RefCOCO's pickles, damaged and hostile, and the published files of every dataset with
one place in them changed: what prepare scripts read. Nothing may be written outside of the folder.
"""

import json
import os
import pickle
import stat
import struct
import warnings
import zipfile

from data.archives import extract
from data.refcoco.prepare import read_refs
from data.tasks import load_split
from tests.attack.mutate import ODD, damage, damage_json
from tests.attack.watch import TRACE
from tests.dataset_trees import MAKERS, Tree, python2, references

CASES = 1500
NAMES = ("../evil", "../../evil", "{folder}/evil", "a/../../evil", "..\\evil", "C:evil",
         "in/../../evil", "./in/a.txt", "in//a.txt", "in/a.txt/", "in/a.txt\0.jpg", "x" * 300,
         "x" * 5000, "/", ".", "..", "in", "a\nb", "\x1b[31m", "//server/share", "in/\u00e9.txt")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
FIELDS = {10: 2, 8: 2, 9: 1, 16: 4, 20: 4, 24: 4, 28: 2, 42: 4}  # of a zip's directory: place, size


def zip_case(rng, folder):
    """A zip of two wanted members, with one thing wrong, to be unpacked beside a file."""
    path, wanted, kind = folder / "x.zip", {"in/a.txt", "b.txt"}, rng.choice(
        "name name link damage damage damage field field bomb there".split())
    (folder / "to").mkdir()
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", rng.choice(METHODS)) as z:
        warnings.simplefilter("ignore")  # of names that occur twice
        if kind == "link":  # a member that is a link, and one that is written through it
            member = zipfile.ZipInfo("in")
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            z.writestr(member, str(folder / "elsewhere"))
            wanted |= {"in"}
        z.writestr("in/a.txt", bytes(1 << 26) if kind == "bomb" else b"hello" * 1000)
        z.writestr("b.txt", rng.randbytes(500))
        if kind == "name":
            wanted |= {name := rng.choice(NAMES).replace("{folder}", str(folder))}
            z.writestr(name, b"evil")
    if kind == "damage":
        path.write_bytes(damage(path.read_bytes(), rng)[0])
    elif kind == "field":
        content, (place, size) = bytearray(path.read_bytes()), rng.choice([*FIELDS.items()])
        at = content.index(b"PK\1\2") + place
        content[at:at + size] = (rng.choice(ODD[:10]) % 256**size).to_bytes(size, "little")
        path.write_bytes(content)
    elif kind == "there":
        (folder / "to/in").write_bytes(b"a file where a folder should be")
    before = {*folder.iterdir()}

    def call():
        try:
            extract(path, folder / "to", wanted)
        finally:
            assert {*folder.iterdir()} == before
            assert not any(p.is_symlink() for p in (folder / "to").rglob("*"))
    return f"zip {kind}", call


def pickle_case(rng, folder):
    """A pickle of references, damaged, built of random opcodes, endless, or one that runs code."""
    path = folder / "refs(unc).p"
    kind = rng.choice("damage damage opcodes hostile deep odd".split())
    code = f"open({str(folder / TRACE)!r}, 'w')"
    if kind == "damage":
        good = rng.choice((python2(references()), pickle.dumps(references(), rng.randrange(5))))
        content = damage(good, rng)[0]
    elif kind == "opcodes":
        codes = [bytes([c]) for c in range(256)] + [b"c__builtin__\neval\n", b"K\1", b")"] * 20
        content = b"\x80\x04" + b"".join(rng.choices(codes, k=rng.randrange(2, 60))) + b"."
    elif kind == "hostile":
        text = repr(code).encode()
        content = rng.choice((b"c__builtin__\neval\n(S" + text + b"\ntR.",
                              b"(S" + text + b"\ni__builtin__\neval\n.",
                              b"c__builtin__\ngetattr\n(c__builtin__\n__import__\nS'eval'\ntR.",
                              b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93X"
                              + struct.pack("<I", len(code)) + code.encode() + b"\x85R.",
                              b"\x80\x02cos\nsystem\n."))
    elif kind == "deep":
        content = rng.choice((b"(" * 10**6 + b".", b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
                              b"\x80\x02T\xff\xff\xff\x7fabc", b"\x80\x04\x8b\xff\xff\xff\x7f.",
                              b"\x80\x02]r\xff\xff\xff\x7f.", b"I" + b"9" * 10**6 + b"\n."))
    else:
        content = pickle.dumps(rng.choice(ODD), 2)
    if kind == "odd" and rng.random() < 0.5:
        os.mkfifo(path) if rng.random() < 0.5 else path.symlink_to("/dev/zero")
    else:
        path.write_bytes(content)
    return f"pickle {kind}", lambda: read_refs(path, "fetch it")


def source_case(rng, folder):
    """A small dataset in its published form, one file of it changed, prepared and read again."""
    name = rng.choice([*MAKERS])
    files, options, _ = MAKERS[name]()
    texts = [f for f, content in files.items() if not f.endswith((".jpg", ".png"))]
    file = rng.choice(texts if rng.random() < 0.9 else [*files])
    content, kind = files[file], "damage"
    plain = not isinstance(content, (bytes, str))
    if plain and rng.random() < 0.8:
        content, kind = damage_json(content, rng)
        content = json.dumps(content)
    elif plain:
        content = json.dumps(content)
    if kind == "damage":
        content = content.encode() if isinstance(content, str) else content
        content = rng.choice((damage(content, rng)[0], b'{"a":' * 10**5, b"[" * 990))
    made = Tree(folder, name, files | {file: content}, options)
    config = {"partial": True, "check": rng.random() < 0.3}
    if name == "refcoco":
        config["masks"] = rng.random() < 0.5

    def call():
        made.run(**config)
        for split in made.result.glob("*.jsonl"):  # what was written, training can read
            if split.name.removesuffix(".jsonl") in made.json()["images"] and split.stat().st_size:
                load_split(made.result, split.stem)
    return f"{name} {file} {kind}", call


def case(rng, folder):
    return rng.choice((zip_case, zip_case, pickle_case, source_case, source_case))(rng, folder)


case.patience = 100  # seconds: others may want the processor, too
