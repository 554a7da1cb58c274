"""What a GPU would ask of the code, shown without one: graphs, devices, the scaler of gradients."""

from types import SimpleNamespace

import pytest
import torch
from test_methods import V, build
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.batches import Batch
from lib import runs
from lib.devices import compile_model, to_device
from model import training_step

METHODS = ["ituning", "vanilla", "vcgpt", "prefix", "dvp"]


def micro_batch(T, step, device="cpu"):
    """Two images with three texts each, of T tokens at most."""
    targets = torch.full((6, T), -1, device=device)
    targets[:, :T - 1 - step % 3] = 5
    wanted = torch.arange(6 * T, device=device).view(6, T)[:, :T - 1 - step % 3].flatten()
    return Batch(torch.randn(2, 17, 24, device=device), torch.randint(V, (6, T), device=device),
                 targets, torch.ones(6, dtype=torch.int64, device=device), wanted)


def choices(T, step):
    """The same with answers to choose from; the last text counts in every third step alone."""
    micro, targets = micro_batch(T, step), torch.eye(6, 4)
    targets[5] = 0.0 if step % 3 == 0 else -1.0
    return micro._replace(targets=targets, condition_len=torch.arange(6) + T - 5, wanted=None)


@pytest.mark.parametrize("name, micro_batch, settings", [
    *((name, micro_batch, None) for name in METHODS),
    *(("dvp", choices, dict(insert_layer=1, readout="head", answers=[*"abcd"], soft=soft))
      for soft in (False, True))])
def test_thirty_steps_of_unequal_lengths_are_three_graphs_at_most_without_a_break(
        name, micro_batch, settings):
    """The first is of one length, the last of any; micro-batches of one step differ, too."""
    torch._dynamo.reset()
    model, counter = build(name, settings=settings), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)  # a break would be an error
    optimizer = torch.optim.SGD(model.trained().values(), lr=0.0)
    for step in range(30):
        batch = [micro_batch(9 + (7 * step + half) % 16, step) for half in (0, 5)]
        training_step(compiled, batch, optimizer, 1.0)
    assert counter.frame_count <= 3


class Elsewhere(TorchDispatchMode):
    """Lets no operation give a tensor on another device than meta, where torch computes shapes
    alone: one on the CPU would be copied to a GPU in every step, or not fit what is there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert {x.device.type for x in tree_leaves(out) if torch.is_tensor(x)} <= {"meta"}, func
        return out


class Script:
    """A search that says the same whatever the model says, and lets rows change places."""
    rows, over = 2, False

    def extend(self, logits):
        return [1, 0, 2, 2], [3, 4, 5, 6]


@pytest.mark.parametrize("name", METHODS)
def test_every_tensor_that_is_made_is_on_the_device_of_the_model(name):
    """In forward, loss, backward, and in generation with its cache."""
    model, batch = build(name).to("meta"), micro_batch(9, 1, "meta")
    model.lm.tokenizer = SimpleNamespace(n_vocab=V - 2)
    with Elsewhere():
        model(*batch)[1].backward()
        model.eval().decode(batch.images, batch.idx[::3, :4], Script(), 6)


@pytest.mark.parametrize("kind, apart", [("cpu", False), ("mps", False), ("cuda", True)])
def test_on_cuda_alone_memory_is_pinned_and_copies_do_not_wait(kind, apart, monkeypatch):
    seen, device = [], torch.device(kind)
    monkeypatch.setattr(runs, "DataLoader", lambda *_, pin_memory, **__: [seen.append(pin_memory)])
    monkeypatch.setattr(torch.Tensor, "to",
                        lambda x, device, non_blocking: seen.append(non_blocking))
    next(runs.load_batches(None, 0, 1, 0, device))
    to_device(["text", torch.zeros(1)], device)
    assert seen == [apart, apart]


class Other:
    """Another process, whose gradient is added."""

    def __init__(self, gradient):
        self.gradient = gradient

    def sum(self, values):
        return [2 * value for value in values]

    def sum_gradients(self, params):
        params[0].grad.view(-1)[0] += self.gradient


def test_an_infinite_gradient_of_another_process_skips_the_step_here_too():
    model = build("ituning")
    optimizer, scaler = torch.optim.SGD(model.trained().values(), lr=1.0), torch.amp.GradScaler(
        "cpu", init_scale=8.0)
    begin = {n: p.detach().clone() for n, p in model.trained().items()}
    moved = lambda: any(not torch.equal(p, begin[n]) for n, p in model.trained().items())
    training_step(model, [micro_batch(9, 1)], optimizer, 1.0, scaler, None, Other(float("inf")))
    assert not moved() and scaler.get_scale() == 4.0
    training_step(model, [micro_batch(9, 1)], optimizer, 1.0, scaler, None, Other(0.0))
    assert moved() and scaler.get_scale() == 4.0


@pytest.mark.parametrize("wanted, device, said", [
    (None, "cuda", ["not compiling, torch.compile does not work here: no Triton"]),
    (True, "cpu", ["not compiling, torch.compile does not work here: no Triton"]),
    (None, "cpu", []), (False, "cuda", [])])
def test_where_the_compiler_is_missing_one_line_says_so(wanted, device, said, monkeypatch):
    def missing(f):
        raise RuntimeError("no Triton\n\nset TORCHDYNAMO_VERBOSE=1")
    monkeypatch.setattr(torch, "compile", missing)
    model, lines = object(), []
    assert compile_model(model, wanted, torch.device(device), lines.append) is model
    assert lines == said


def test_where_there_is_a_compiler_it_is_used(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f: lambda *x: "compiled")
    lines = []
    assert compile_model(len, True, torch.device("cpu"), lines.append)() == "compiled"
    assert lines[0].startswith("compiling:")
