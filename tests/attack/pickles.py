"""Pickles as torch.save and TorchScript write them, and as nobody should, for weights.py."""

import io
import pickle
import struct
import zipfile

from tests.attack.watch import TRACE


def archive(program, rng, script, **members):
    """A zip as torch writes it around a pickle; sometimes compressed, which torch never does."""
    file, zipped = io.BytesIO(), zipfile.ZIP_STORED
    if rng.random() < 0.1:
        zipped = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(file, "w", zipped) as z:
        members = {"byteorder": b"little", "data/0": bytes(64), **members}
        if script:
            members["constants.pkl"] = b"\x80\x02)."
        for member, raw in {"data.pkl": program, **members}.items():
            z.writestr(f"archive/{member}", raw)
    return file.getvalue()


def text(s):
    raw = s.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def long(n):
    raw = pickle.encode_long(n) or b"\0"
    return b"\x8a" + bytes([min(255, len(raw))]) + raw[:255]


def ints(numbers):
    return b"(" + b"".join(map(long, numbers)) + b"t"


def name(module, function):
    return f"c{module}\n{function}\n".encode("utf-8", "surrogatepass")


RUN = f"touch {TRACE}"
NAMED = [("os", "system"), ("builtins", "eval"), ("subprocess", "getoutput"), ("torch", "load"),
         ("torch.hub", "load"), ("torch.jit._pickle", "__import__"), ("__torch__", "os.system"),
         ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("runpy", "run_path"), ("", ""),
         ("torch._tensor", "_rebuild_from_type_v2"), ("os\x1b[31m", "system"), ("torch", "device"),
         ("collections", "OrderedDict"), ("torch", "FloatStorage"), ("__torch__", "M")]
PARTS = [*(bytes([b]) for b in b"()}]N\x88\x890125abdeloprstuQRh\x81\x85\x86\x87\x90\x92\x93\x94."),
         b"q\0", b"h\0", b"K\4", b"J\xff\xff\xff\xff", text("storage"), text("0"), text("a.b"),
         name("torch._utils", "_rebuild_tensor_v2") + b"(", name("__torch__", "M") + b")\x81"]


def hostile(rng):
    """A pickle that calls, eats memory or takes time if it is read freely; or random opcodes."""
    module, function = rng.choice(NAMED)
    call = name(module, function)
    arg = text(f"__import__('os').system('{RUN}')" if function == "eval" else RUN)
    many, big = rng.choice((900, 900, 10**5)), rng.choice((2**27, 2**31, 2**32 - 1))
    return b"\x80\x02" + rng.choice((
        call + arg + b"\x85R.", call + arg + b"\x85\x81.", b"(" + arg + b"i" + call[1:] + b".",
        b"(" + call + arg + b"o.", text(module) + text(function) + b"\x93" + arg + b"\x85R.",
        b"}" + text("w") + call + arg + b"\x85Rs.", call + b")R}" + text("x") + arg + b"sb.",
        call + b"N}" + text("__class__") + arg + b"s\x86b.", b"\x82\1" + arg + b"\x85R.",
        b"(" + text("storage") + call + text("0") + text("cpu") + long(big) + b"tQ.", b"Px\n.",
        b"Nr" + struct.pack("<I", big) + b".", f"Np{big * 8}\n.".encode(), b"j\xff\xff\xff\xff.",
        b"\x8e" + struct.pack("<Q", big * 8) + b"x.", b"\x96" + struct.pack("<Q", big) + b"x.",
        b"\x95" + struct.pack("<Q", big * 2**20) + b"N.", b"L" + b"9" * many + b"L\n.",
        b"]" * many + b"a" * (many - 1) + b".", b"N" + b"\x85" * many + b".", b"(" * many + b".",
        b"}N\x85" + b"q\0h\0h\0\x86" * 99 + b"Ns.", b"}N" + b"\x85" * many + b"Ns.",
        b"]q\0" + b"]q\1h\0ah\0aq\0" * 60 + b".", b"".join(rng.choices(PARTS, k=50)) + b"."))


def views(rng, script):
    """A sound pickle of tensors whose views are odd -> (pickle, more members of the archive)."""
    count, size, n = 16, [2], rng.choice((1, 1, 1, 3, 3000, 20_000))
    offset, stride, members = 0, [1], {}
    how = rng.choice("wide negative outside rank count many storage".split())
    big = rng.choice((2**15, 2**29, 2**34, 2**62, 2**64, 10**30))
    if how == "wide":
        size, stride = [big] * rng.choice((1, 2)), [0, 0][:1]
        stride *= len(size)
    elif how == "negative":
        offset, size, stride = rng.choice((-1, 0)), [rng.choice((-1, 2))], [-1]
    elif how == "outside":
        offset, size = rng.choice((0, 15, big)), [rng.choice((17, big, 0))]
    elif how == "rank":
        size = stride = [1] * rng.choice((25, 65, 10**5))
        n = 1
    elif how == "count":
        count = rng.choice((8, 17, -1, big))
    else:
        count = 2**rng.choice((4, 16, 18))
        size, members = [count], {"data/0": bytes(4 * count)[rng.choice((0, 0, 8)):]}
    box = (b"((" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu")
           + long(count) + b"tQ" + long(offset) + ints(size) + ints(stride) + b"\x89N")
    tensor = name("torch._utils", "_rebuild_tensor_v2") + box + b"tR"
    table = b"(" + b"".join(text(f"w{i}") + (tensor if i == 0 else b"h\0") + b"q\0" * (i == 0)
                            for i in range(n)) + b"u"
    if not script:
        return b"\x80\x02}" + table + b".", members
    inner = b"\x80\x02" + name("__torch__", "M") + b")\x81}" + table + b"b"
    if how == "many":  # modules that hold the one before twice, or themselves
        again = name("__torch__", "M") + b")\x81}(" + text("a") + b"h\1" + text("b") + b"h\1ubq\1"
        inner += b"q\1" + rng.choice((again * 60, b"}" + text("") + b"h\1sb"))
    return inner + b".", members
