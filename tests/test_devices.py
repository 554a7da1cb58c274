"""Where and in what precision a command computes."""

import pytest
import torch
import torch.nn.functional as F

from lib.cli import UserError
from lib.devices import Processes, attend, autocast, check_dtype, pick_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name, device, width, native, found", [
    ("auto", CPU, 768, True, torch.bfloat16),
    ("auto", CPU, 128, True, torch.float32),
    ("auto", CPU, 768, False, torch.float32),
    ("auto", torch.device("mps"), 768, True, torch.float32),
    ("bfloat16", CPU, 128, False, torch.bfloat16),
    ("float16", GPU, 768, False, torch.float16),
])
def test_the_precision_is_the_one_that_is_fast_here(monkeypatch, name, device, width, native,
                                                    found):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert pick_dtype(name, device, width)[0] == found


def test_float16_without_a_gpu_is_refused():
    with pytest.raises(UserError, match="float16 needs CUDA"):
        check_dtype("float16", CPU)
    check_dtype("float16", GPU)


@pytest.mark.parametrize("device, precision", [("cuda", "high"), ("cpu", "highest")])
def test_training_rounds_float32_products_on_cuda_alone(monkeypatch, device, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        Processes(device)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("learns", [False, True])
def test_attention_that_learns_computes_in_float32_on_a_cpu(learns):
    q, k, v = (torch.randn(2, 3, 5, 8).bfloat16().requires_grad_(learns) for _ in range(3))
    with autocast(CPU, torch.bfloat16):
        y = attend(q, k, v, is_causal=True)
    assert y.dtype == (torch.float32 if learns else torch.bfloat16)
    reference = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    torch.testing.assert_close(y.float(), reference, atol=1e-6 if learns else 0.02, rtol=0)
