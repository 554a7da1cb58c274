"""What the machine could do at best, measured: its rate of matrix products and of memory."""

import time

import torch


def synchronize(device):
    """Waits until the device has done what it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def fastest(f, device, seconds=1.0):
    """The shortest time of f() in seconds, of the runs that fit into this time, three at least."""
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        f()
        synchronize(device)
        best, runs = min(best, time.perf_counter() - began), runs + 1
    return best


@torch.no_grad()
def matrix_rate(device, dtype):
    """FLOP/s of the product of a large batch of states with a weight of GPT-2's MLP or, on a GPU,
    of two large square matrices."""
    m, k, n = (8192, 8192, 8192) if device.type == "cuda" else (1576, 768, 3072)
    x, w = (torch.randn(*size, device=device).to(dtype) for size in ((m, k), (n, k)))
    return 2 * m * k * n / fastest(lambda: torch.nn.functional.linear(x, w), device)


@torch.no_grad()
def bandwidth(device):
    """Bytes/s at which memory can be read: 512 MB, far more than any cache, summed up."""
    x = torch.ones(2**27, device=device)
    return 4 * x.numel() / fastest(x.sum, device)


def floor_of(cost, new, rate, bytes_per_s):
    """The seconds that the arithmetic of a piece takes at these rates, and for captions the reading
    of the weights for every further token, if that takes longer. cost: workloads.cost_of."""
    first, token, weights = cost
    return first / rate + (new - 1) * max(token / rate, weights / bytes_per_s)
