"""Where and in what precision a command computes."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lib.cli import UserError
from lib.devices import Processes, attend, autocast, check_dtype, pick_dtype, whole_heads

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


@pytest.mark.parametrize("device, size, used, backend, precision", [
    ("cpu", "1", None, None, "highest"), ("cpu", "2", None, "gloo", "highest"),
    ("cuda", "1", None, None, "high"), ("cuda:1", "1", "cuda:1", None, "high"),
    ("cuda", "2", "cuda:1", "cpu:gloo,cuda:nccl", "high")])
def test_each_process_has_a_gpu_of_its_own_and_float32_is_rounded_there_alone(
        monkeypatch, device, size, used, backend, precision):
    said = {"used": None, "backend": None}
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: said.update(used=str(device)))
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *a, **k: iter([[None]]))
    monkeypatch.setattr(torch.distributed, "init_process_group",
                        lambda backend, **k: said.update(backend=backend))
    try:
        processes = Processes(device)
        assert said == {"used": used, "backend": backend}
        assert str(processes.device) == (used or device)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_on_mps_attention_gets_whole_tensors(monkeypatch):
    whole = torch.zeros(1)
    view = SimpleNamespace(device=torch.device("mps"), contiguous=lambda: whole)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: qkv)
    assert all(x is whole for x in attend(view, view, view))


def test_attention_computes_in_float32_on_a_cpu():
    q, k, v = (torch.randn(2, 3, 5, 8).bfloat16() for _ in range(3))
    with autocast(CPU, torch.bfloat16):
        y = attend(q, k, v, is_causal=True)
        again = attend(q, whole_heads(k), whole_heads(v), is_causal=True)
    reference = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    torch.testing.assert_close(y, reference, atol=1e-6, rtol=0)
    assert torch.equal(again, y) and whole_heads(k.transpose(1, 2)).is_contiguous()
    assert [whole_heads(x).dtype for x in (k, k.double())] == [torch.float32, torch.float64]
