"""torch.save files and TorchScript archives, read without running a line of theirs.

A pickle is a small program, and a hostile one runs commands on your computer while it is being
read. So none is read freely here: torch.load gets weights_only=True, and TorchScript archives,
which torch cannot read that way, go through an unpickler that knows the few things a tensor is made
of and refuses everything else.
"""

import collections
import io
import pickle
import re
import zipfile

import torch

from lib.cli import UserError
from weights.safetensors import raw_bytes

# How a pickle calls the storage of each dtype.
STORAGES = {"DoubleStorage": torch.float64, "FloatStorage": torch.float32,
            "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
            "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
            "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}


def copies(tensors):
    """Contiguous copies that share no memory. The given dictionary is emptied on the way, so that
    no more than one tensor is held twice."""
    return {name: tensors.pop(name).detach().clone(memory_format=torch.contiguous_format)
            for name in list(tensors)}


def refused(path, e):
    """The one-line error for a pickle that did not pass, from the exception e that stopped it."""
    asks = re.search(r"GLOBAL (\S+)", str(e))  # how both unpicklers name what they refuse to call
    if asks:
        return UserError(f"{path}: refused, because reading it would call {asks[1]}, which is no "
                         "part of a tensor and may be hostile; ask for a safetensors file")
    first = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
    return UserError(f"{path}: damaged or cut off ({first}); delete it and fetch it again")


def read_torch(path):
    """The tensors of a state dict written by torch.save, in the zip format or the one before it."""
    try:
        # pitfall: given a name, torch.load goes by its ending; given an open file, by its content.
        with open(path, "rb") as f:
            tensors = torch.load(f, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged pickle can raise almost anything
        raise refused(path, e) from e
    if not isinstance(tensors, dict):
        raise UserError(f"{path}: holds a {type(tensors).__name__}, not a dictionary of tensors; "
                        "save model.state_dict()")
    for name, x in tensors.items():
        # Not plain: sparse or quantized tensors, and the meta device's shapes without numbers. A
        # dictionary inside is what training scripts save, with the optimizer beside the model.
        if not isinstance(name, str) or not isinstance(x, torch.Tensor) \
                or x.layout != torch.strided or x.device.type != "cpu" or x.is_quantized:
            raise UserError(f"{path}: {name!r} is a {type(x).__name__} that is no plain tensor; "
                            "save model.state_dict() and nothing beside it")
    return copies(tensors)


class Module:
    """Stands for any object in a TorchScript archive: remembers its attributes, runs nothing."""
    attributes = {}

    def __setstate__(self, state):
        self.attributes = state

    def tensors(self, prefix=""):
        """Yields (dotted name, tensor), depth first; numbers, flags and lists are passed over."""
        for name, value in self.attributes.items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.tensors(f"{prefix}{name}.")


class Unpickler(pickle.Unpickler):
    """Reads data.pkl of a TorchScript archive. Python's own unpickler imports and calls whatever
    the file names; this one answers with a few functions of its own or refuses.

    The little program for one tensor says

        _rebuild_tensor_v2(storage "7" of HalfStorage with 12 numbers, offset 0, size (3, 4), ...)

    and member data/7 of the zip holds those 24 bytes.
    """

    def __init__(self, archive, root):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root, self.storages = archive, root, {}

    def find_class(self, module, name):
        # The classes of the archive's own code, which we never load.
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # as_strided raises if the view would leave its storage.
            return lambda flat, offset, size, stride, *_: flat.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        # Lists with a type, and device names: kept as they come, nobody looks at them.
        if module == "torch.jit._pickle" or (module, name) == ("torch", "device"):
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid):
        """A storage as a flat tensor. Two tensors may name the same one: tied weights."""
        _, dtype, key, _, count = pid  # the device name is ignored: CLIP's files say cuda:0
        if (key, dtype) not in self.storages:
            member = self.archive.getinfo(f"{self.root}data/{key}")
            if member.file_size != count * dtype.itemsize:  # before memory is taken for it
                raise pickle.UnpicklingError(f"storage {key} does not hold {count} x {dtype}")
            flat = self.storages[key, dtype] = torch.empty(count, dtype=dtype)
            with self.archive.open(member) as f:
                f.readinto(raw_bytes(flat))
        return self.storages[key, dtype]


def read_script(path):
    """The parameters and buffers of a TorchScript archive, such as OpenAI's CLIP files.

    differs: openai/CLIP calls torch.jit.load, which torch has deprecated and means to drop, and
    which brings the archive's code to life where we only want its numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            program = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            module = Unpickler(archive, program.removesuffix("data.pkl")).load()
        return copies(dict(module.tensors()))
    except Exception as e:  # a damaged pickle can raise almost anything
        raise refused(path, e) from e
