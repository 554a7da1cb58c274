"""Where a command runs: device, dtype, processes, memory."""

import contextlib
import os
import shutil
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from lib.cli import UserError, printable


def pick_device(name):
    """"auto" is the best there is. UserError for a device that this machine or torch lacks."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    if name == "auto":
        return torch.device(next(d for d in there if there[d]))
    kind, _, index = name.partition(":")
    many = torch.cuda.device_count() if kind == "cuda" else 1
    if not there.get(kind) or ":" in name and index not in map(str, range(many)):
        known = ", ".join(d for d in there if there[d])
        raise UserError(f"--device {name}: not available here; {known} or auto")
    return torch.device(name)


def first_line(error):
    """What an exception says, without the lines for programmers that torch adds."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_dtype(name, device):
    """UserError for a precision in which nothing can be trained on this device."""
    if name == "float16" and device.type != "cuda":
        raise UserError("--dtype float16 needs CUDA, where the loss is scaled; use float32 or "
                        "bfloat16 here")


def pick_dtype(name, device, width):
    """The dtype of the forward pass of a language model of this width and the reason for it. What
    is trained is always float32."""
    if name != "auto":
        return getattr(torch, name), "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU computes in it, and it needs no loss scaling"
        return torch.float16, "this GPU has no bfloat16; the loss is scaled to keep small gradients"
    # The tiny models of shapes would gain a fifth; they stay with the reference.
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() and width >= 512:
        return torch.bfloat16, "this CPU has instructions for it, and the model is wide"
    return torch.float32, "the reference; bfloat16 pays most for wide models, where a CPU has it"


def autocast(device, dtype):
    """A context in which matrix products run in dtype; does nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def attend(q, k, v, **mask):
    """F.scaled_dot_product_attention, but on a CPU never in bfloat16: there torch's takes as long
    as in float32 for many queries, up to three times as long for one, and up to five times in its
    backward pass."""
    if q.device.type == "mps":  # pitfall: views of heads gave wrong results there (pytorch#181133)
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **mask)
    return F.scaled_dot_product_attention(q, k, v, **mask)


def whole_heads(x):
    """Keys or values (B, nh, N, hs) that are read again and again, as attend reads them fastest:
    each head in one piece, and on a CPU not in bfloat16."""
    return (x.float() if x.dtype == torch.bfloat16 and x.device.type == "cpu" else x).contiguous()


def compile_model(model, wanted, device, say):
    """The model as torch.compile has it, if that is wanted; None: on CUDA only. Where it cannot
    work (no Triton, a GPU older than capability 7.0, no C++ compiler), the model as it is: say
    gives the reason in one line."""
    if not (device.type == "cuda" if wanted is None else wanted):
        return model
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))  # seconds, not a minute
    except Exception as e:  # of many types, by what is missing
        say(f"not compiling, torch.compile does not work here: {first_line(e)}")
        return model
    say("compiling: the first steps take a minute, the others are faster; --no-compile: none")
    return torch.compile(model)


class Processes:
    """The processes that torchrun started, or this one alone.

    UserError in every one that is left when another has ended, instead of waiting for it.
    """

    MEET = timedelta(minutes=5)  # that all have started
    WAIT = timedelta(hours=6)  # for one that downloads, encodes or validates; NCCL's own: 10 min

    def __init__(self, device="auto"):
        """device: as pick_device takes it; with several processes on CUDA, each has its own."""
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        self.main = self.rank == 0  # the one that prints, evaluates and saves
        self.heard = True  # whether what it prints can still be read
        self.held = 0  # characters of the line that the next one overwrites
        self.device = pick_device(device)
        if self.device.type == "cuda":
            if self.size > 1:
                self.device = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
            if self.device.index is not None:
                torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high")  # what stays in float32: TF32, 11 bits
        if self.size > 1:
            self.connect()

    def connect(self):
        """Meets the other processes. On GPUs gradients go by NCCL, but numbers of the CPU by gloo:
        to sum those nobody has to wait for a GPU."""
        try:
            store, *_ = next(dist.rendezvous("env://", timeout=self.MEET))
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                                    store=store, rank=self.rank, world_size=self.size,
                                    timeout=self.WAIT)
        except (RuntimeError, ValueError) as e:  # the store's errors are RuntimeErrors
            raise UserError(f"process {self.rank} of {self.size} did not meet the others "
                            f"({first_line(e)}); start all of them with torchrun") from e

    def say(self, *words, renew=False):
        """Prints at once, in the main process only; renew: on a terminal, a line that the next one
        overwrites. That nobody can read it any more (a terminal that was closed, `| head`) is
        remembered in self.heard: no work is lost by it."""
        if self.main and self.heard:
            text, renew = " ".join(map(printable, words)), renew and sys.stdout.isatty()
            if renew:  # of a line that wraps, only the last part would be overwritten
                text = text[:shutil.get_terminal_size().columns - 1]
            try:
                # Back to its beginning, so that an error's message does not stand behind it.
                print(text.ljust(self.held), end="\r" if renew else "\n", flush=True)
                self.held = len(text) if renew else 0
            except OSError:
                self.heard = False
                # Python tries once more to write when it ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def all_reduce(self, x):
        """Sums a tensor over all processes, in place."""
        try:
            dist.all_reduce(x)
        except RuntimeError as e:  # gloo's and NCCL's
            raise UserError(f"process {self.rank} lost the others, of which one has ended: see its "
                            "message; what was saved is good, --resume goes on from there") from e

    def sum(self, values):
        """Each of the numbers summed over all processes."""
        if self.size == 1:
            return values
        t = torch.tensor(values, dtype=torch.float64)
        self.all_reduce(t)
        return t.tolist()

    def barrier(self):
        """Waits until all processes are here."""
        self.sum([0])

    @contextlib.contextmanager
    def main_first(self):
        """The main process runs the block before the others: so a download happens once."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def sum_gradients(self, params):
        """differs: no DistributedDataParallel. So little is trained that one plain sum does it."""
        if self.size > 1:
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
            flat = torch.cat([g.flatten() for g in grads])
            self.all_reduce(flat)
            for p, g in zip(params, flat.split([p.numel() for p in params])):
                p.grad = g.view_as(p)

    def leave(self):
        """Ends the connection, when all are ready to."""
        if self.size > 1:
            with contextlib.suppress(UserError):  # all is done: no matter if one is gone already
                self.barrier()  # who leaves first would take it away while others still work
            time.sleep(1)  # pitfall: gloo aborts a process whose peer hangs up while it still reads
            dist.destroy_process_group()


def cast_matrices(models, dtype):
    """Holds the matrices of the models' layers in dtype.

    For torch.autocast with that dtype, which otherwise rounds the same matrices on every pass: half
    the memory, the same results bit for bit. Embeddings and norms, which autocast leaves alone,
    stay float32; of an embedding a copy, `rounded`, is held for a head that shares it.
    """
    for module in (module for model in models for module in model.modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)) or hasattr(module, "in_proj_weight"):
            for p in module.parameters(recurse=False):
                p.data = p.data.to(dtype)
        elif isinstance(module, nn.Embedding):
            module.rounded = module.weight.to(dtype)


def to_device(batch, device):
    """The tensors of a micro-batch on a device; what is no tensor stays as it is."""
    # pitfall: on MPS a copy that does not block, from memory that is not pinned, can be garbage.
    there = {"device": device, "non_blocking": device.type == "cuda"}
    return [x.to(**there) if torch.is_tensor(x) else x for x in batch]


def peak_memory(device):
    """The most that was held so far, in bytes: by tensors on CUDA, elsewhere by this whole process.
    None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # pitfall: getrusage's number begins, on Linux, with that of the process that started this one.
    with contextlib.suppress(OSError, StopIteration):
        with open("/proc/self/status", encoding="utf-8") as lines:
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held  # Linux counts in kilobytes
