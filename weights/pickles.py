"""torch.save files and TorchScript archives, read without running a line of theirs.

A pickle is a small program. A hostile one runs commands on your computer while it is being read,
and a few bytes of it can ask for more memory than there is. So none is given to Python's reader or
to torch's. The machine below knows the few instructions that a dictionary of tensors is made of. It
imports nothing and calls nothing of what a file names; it writes down which tensors there are. Only
when the file has been found long enough to hold them is memory taken and the numbers are read.

differs: others call torch.load, and openai/CLIP calls torch.jit.load, which torch has deprecated
and which brings the archive's code to life where we only want its numbers.
"""

import collections
import contextlib
import pickle
import pickletools
import re
import sys
import zipfile
from io import BytesIO
from typing import NamedTuple

import torch

from lib.cli import UserError
from lib.files import open_file
from weights.safetensors import DTYPES, byte_count

# Tied weights are one storage under several names, here copies. T5 has four names for one matrix.
MOST_COPIES = 8


class Storage(NamedTuple):
    """A run of numbers in the file, which several tensors may share."""
    key: str
    dtype: torch.dtype
    count: int  # of numbers

    @property
    def bytes(self):
        return self.count * self.dtype.itemsize


class View(NamedTuple):
    """A tensor as a pickle describes it: a box of numbers in a storage, strides in numbers."""
    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple
    stride: tuple


class Module:
    """Stands for any object in a TorchScript archive: remembers its attributes, runs nothing."""
    def __init__(self):
        self.attributes = {}


class Other:
    """Stands for a tensor that is not plain, and for what belongs to one."""
    def __init__(self, *_):
        pass


# ---------------------------------------------------------------------------- what pickles name

def plain(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    """_rebuild_tensor_v2. The metadata say of a complex tensor that it is conjugate or negative."""
    return Other() if metadata else View(storage, storage.dtype, offset, tuple(size), tuple(stride))


def typed(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    """_rebuild_tensor_v3, for the dtypes that have no class of storage: that one counts bytes."""
    view = plain(storage, offset, size, stride, metadata=metadata)
    return view._replace(dtype=dtype) if isinstance(view, View) else view


def first(value, *_):
    """For a parameter it is the tensor, for a device its name, for a typed list the list."""
    return value


def dictionary(pairs=()):
    """OrderedDict, empty or, as Python 2 wrote it, with its pairs."""
    return put({}, [x for key, value in pairs for x in (key, value)])


# How a pickle calls the storage of each dtype.
STORAGES = {"DoubleStorage": torch.float64, "FloatStorage": torch.float32,
            "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
            "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
            "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
            "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
            "storage.UntypedStorage": torch.uint8}
# Everything that a pickle may name, and what stands for it here. Nothing else is let through.
NAMES = {f"torch.{name}": dtype for name, dtype in STORAGES.items()}
NAMES |= {str(dtype): dtype for dtype in DTYPES.values()}  # "torch.float32"
NAMES |= {"collections.OrderedDict": dictionary,
          "torch._utils._rebuild_tensor_v2": plain, "torch._utils._rebuild_tensor_v3": typed,
          **dict.fromkeys(("torch._utils._rebuild_parameter", "torch.Size", "torch.device",
                           "torch._utils._rebuild_parameter_with_state"), first),
          **{f"torch.jit._pickle.{name}": first for name in (
              "build_intlist", "build_tensorlist", "build_doublelist", "build_boollist",
              "restore_type_tag")},
          **dict.fromkeys(("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_qtensor",
                           "torch._utils._rebuild_meta_tensor_no_storage",
                           "torch.serialization._get_layout"), Other)}


def look_up(name):
    """What stands here for a class or function that a pickle names."""
    # The classes of a TorchScript archive's own code, which we never load.
    if name == "__torch__" or name.startswith("__torch__."):
        return Module
    if name not in NAMES:
        raise pickle.UnpicklingError(f"GLOBAL {name}")
    return NAMES[name]


def find_storage(pid):
    """A "persistent id": ("storage", class, key, device, numbers). The device is ignored: CLIP's
    files say cuda:0. Some old files have None behind it."""
    _, dtype, key, _, count, *part = pid
    if not isinstance(dtype, torch.dtype) or type(count) is not int or count < 0 or any(part):
        raise pickle.UnpicklingError(f"storage {key} is no run of numbers")
    return Storage(str(key), dtype, count)


# ---------------------------------------------------------------------------- the machine

def put(target, items):
    """Puts [key, value, key, value, ...] into a dictionary."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        # pitfall: to hash a tuple of tuples of the same tuples takes for ever, so no other keys.
        if type(key) not in (str, int):
            raise pickle.UnpicklingError(f"a key is a {type(key).__name__}")
        target[key] = value
    return target


def build(target, state):
    """Gives a new object its state. A dictionary has one, too: torch writes versions there."""
    if isinstance(target, Module) and isinstance(state, dict):
        target.attributes = state
    elif not isinstance(target, dict):
        raise pickle.UnpicklingError(f"a {type(target).__name__} with a state")


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
          "BINSTRING"}


def interpret(f):
    """Runs the pickle at f, an open file, up to its end, and gives back what it builds.

    The program for one tensor says

        _rebuild_tensor_v2(storage "7" of HalfStorage with 12 numbers, offset 0, size (3, 4), ...)

    It works on a stack. MARK begins a new one, and TUPLE and the like take all since the MARK. What
    is needed again is remembered by a number. pitfall: Python's own machine makes a table as long
    as the largest of these numbers.
    """
    stack, outer, memory = [], [], {}
    for op, arg, _ in pickletools.genops(f):
        name = op.name
        if name in VALUES:
            stack.append(arg)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in TUPLES:
            n = len(stack) - TUPLES[name]
            stack[n:] = [tuple(stack[n:])]
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            outer.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, outer.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "SETITEMS":
                put(stack[-1], items)
            else:
                stack[-1].extend(items)
        elif name in ("APPEND", "SETITEM", "BUILD"):
            value = stack.pop()
            if name == "APPEND":
                stack[-1].append(value)
            elif name == "BUILD":
                build(stack[-1], value)
            else:
                put(stack[-2], [stack.pop(), value])
        elif name in ("REDUCE", "NEWOBJ"):
            args = stack.pop()
            stack.append(stack.pop()(*args))  # one of our own: look_up lets no other onto the stack
        elif name == "GLOBAL":
            stack.append(look_up(arg.replace(" ", ".")))
        elif name == "BINPERSID":
            stack.append(find_storage(stack.pop()))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memory[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memory[arg])
        elif name not in ("PROTO", "STOP"):
            raise pickle.UnpicklingError(f"the instruction {name}")
    return stack.pop()


def tree(module, limit):
    """{dotted name: View} of a tree of modules, depth first; numbers, flags and lists are passed
    over. limit: of attributes, because a module may be shared and even contain itself."""
    found, todo = {}, [("", module)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, View):
            found[name[1:]] = value
        elif isinstance(value, Module):
            limit -= len(value.attributes)
            if limit < 0 or len(name) > 1000:
                raise pickle.UnpicklingError("modules without end")
            todo += [(f"{name}.{k}", v) for k, v in reversed(value.attributes.items())]
    return found


# ---------------------------------------------------------------------------- the numbers

def check_views(views, room):
    """{key: Storage} of all views. ValueError if one leaves its storage, or if a file of room bytes
    cannot hold them all."""
    storages, total = {}, 0
    for name, view in views.items():
        storage, numbers = view.storage, (view.offset, *view.size, *view.stride)
        if len(view.size) != len(view.stride) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"{name!r} has a strange size or place")
        total += byte_count(view.dtype, view.size)
        end = 1 + view.offset + sum((n - 1) * s for n, s in zip(view.size, view.stride))
        if end * view.dtype.itemsize > storage.bytes and 0 not in view.size:
            raise ValueError(f"{name!r} is out of bounds of its storage")
        if storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key} has two sizes or dtypes")
    if total > MOST_COPIES * room:
        raise ValueError(f"its tensors would take {total:,} bytes, the file has {room:,}")
    return storages


def read_storage(f, storage):
    """The bytes of a storage, which come next in f."""
    raw = torch.empty(storage.bytes, dtype=torch.uint8)
    # pitfall: torch.empty is what lay in memory before, and a file may end too early.
    if f.readinto(raw.numpy()) != storage.bytes:
        raise ValueError(f"storage {storage.key} is cut off")
    return raw


def fill(views, storages):
    """{name: tensor} of {name: View}, contiguous copies that share no memory. storages: pairs of a
    key and its bytes, of which no more than one is held at a time."""
    users, tensors = collections.defaultdict(list), dict.fromkeys(views)
    for name, view in views.items():
        users[view.storage.key].append(name)
    for key, raw in storages:
        for name in users[key]:
            view = views[name]
            box = raw.view(view.dtype).as_strided(view.size, view.stride, view.offset)
            tensors[name] = box.clone(memory_format=torch.contiguous_format)
    return tensors


# ---------------------------------------------------------------------------- the files

@contextlib.contextmanager
def refusing(path):
    """Turns what a damaged file can raise, which is almost anything, into one line."""
    try:
        yield
    except Exception as e:
        # What is said already, and a lack of memory, of which torch speaks in a RuntimeError.
        if isinstance(e, (UserError, MemoryError)) or "allocate memory" in str(e):
            raise
        if asks := re.match(r"GLOBAL (\S+)", str(e)):
            raise UserError(f"{path}: refused, because reading it would call {asks[1]}, which is "
                            "no part of a tensor and may be hostile; ask for a safetensors file"
                            ) from e
        why = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise UserError(f"{path}: damaged or cut off ({why}); delete it and fetch it again") from e


def open_archive(f):
    """(zip archive, folder in it, bytes of the file) of an open file that torch wrote. ValueError
    if it would unpack to more than it is: torch compresses nothing but code, which we leave."""
    archive, room = zipfile.ZipFile(f), f.seek(0, 2)
    ours = [info for info in archive.infolist() if "/code/" not in info.filename]
    if any(info.compress_type != zipfile.ZIP_STORED for info in ours):
        raise ValueError("numbers in it are compressed, which torch never does")
    if sum(info.file_size for info in ours) > room:
        raise ValueError("it would unpack to more than its own size")
    names = archive.namelist()
    root = next(name for name in names if name.endswith("/data.pkl")).removesuffix("data.pkl")
    if f"{root}byteorder" in names:
        check_order(archive.read(f"{root}byteorder").decode())
    return archive, root, room


def storages_of(archive, root, storages):
    """Pairs (key, bytes): storage 7 is the member data/7 of the archive."""
    members = {key: archive.getinfo(f"{root}data/{key}") for key in storages}
    for key, member in members.items():
        if member.file_size != storages[key].bytes:  # before memory is taken for it
            raise ValueError(f"storage {key} has {member.file_size:,} bytes, not "
                             f"{storages[key].bytes:,}")
    for key, member in members.items():
        with archive.open(member) as part:
            yield key, read_storage(part, storages[key])


def check_state(state, path):
    """The views of a state dict. UserError if it is something else."""
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not a dictionary of tensors; "
                        "save model.state_dict()")
    for name, x in state.items():
        # Not plain: sparse or quantized tensors, and the meta device's shapes without numbers. A
        # dictionary inside is what training scripts save, with the optimizer beside the model.
        if not isinstance(name, str) or not isinstance(x, View):
            kind = "Tensor" if isinstance(x, (View, Other)) else type(x).__name__
            raise UserError(f"{path}: {name!r} is a {kind} that is no plain tensor; save "
                            "model.state_dict() and nothing beside it")
    return state


def read_torch(path):
    """The tensors of a state dict written by torch.save, in the zip format or the one before it."""
    with refusing(path), open_file(path) as f:
        if f.read(2) != b"PK":
            f.seek(0)
            return read_old(f, path)
        archive, root, room = open_archive(f)
        views = check_state(interpret(BytesIO(archive.read(f"{root}data.pkl"))), path)
        return fill(views, storages_of(archive, root, check_views(views, room)))


def check_order(order):
    if order != sys.byteorder:
        raise ValueError(f"the numbers are {order}-endian")


def read_old(f, path):
    """As torch.save wrote before 1.6: five pickles, then all storages, each behind its count."""
    room = f.seek(0, 2)
    f.seek(0)
    _, _, system, state, keys = (interpret(f) for _ in range(5))
    check_order("little" if system["little_endian"] else "big")
    storages = check_views(check_state(state, path), room)
    if sorted(keys) != sorted(storages):
        raise ValueError("the storages listed are not those used")

    def read():
        for key in keys:
            count = int.from_bytes(f.read(8), sys.byteorder)
            if count != storages[key].count or storages[key].bytes > room - f.tell():
                raise ValueError(f"storage {key} is cut off or of another size")
            yield key, read_storage(f, storages[key])

    return fill(state, read())


def read_script(path):
    """The parameters and buffers of a TorchScript archive, such as OpenAI's CLIP files."""
    with refusing(path), open_file(path) as f:
        archive, root, room = open_archive(f)
        program = archive.read(f"{root}data.pkl")
        module = interpret(BytesIO(program))
        if not isinstance(module, Module):
            raise ValueError(f"it holds a {type(module).__name__}, not a module")
        views = tree(module, len(program))
        return fill(views, storages_of(archive, root, check_views(views, room)))
