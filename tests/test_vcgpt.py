"""VC-GPT and vanilla: the sizes that follow from the paper, and their equations in a slow independent form."""

import math

import pytest
import torch

from lib.cli import UserError
from clip_vit import CLIPViT
from gpt2 import GPT2, Cache, GPT2Config
from ituning import VCGPT, Vanilla
from model import TextState, SeeGPT
from test_methods import build, inputs
from test_model import EOT, slow_beam


def count(module):
    return sum(p.numel() for p in module.parameters())


def public(C, L, nh):
    """GPT-2 of a public size and ViT-B/16, without memory."""
    return GPT2(GPT2Config(n_layer=L, n_head=nh, n_embd=C)), CLIPViT(224, 16, 768, 12, 12, 512)


@pytest.mark.parametrize("n, total", [(3, 88_217_856), (6, 137_836_800), (12, 237_074_688)])
def test_vcgpt_has_88_138_and_237_million_parameters(n, total):
    """d = 768: n * (text 16 d^2 + 19 d + visual 12 d^2 + 13 d) + W_fuse 50,257 d + the last norm 2 d."""
    with torch.device("meta"):
        gpt2, vit = public(768, 12, 12)
        for switches in ({}, dict(heads=4), dict(self_ensemble=False)):
            model = SeeGPT(vit, gpt2, VCGPT(VCGPT.Config(n_fusion=n, **switches), gpt2, vit))
            method = model.method
            assert count(method.text[0]) + count(method.insert[0]) == 9_451_776
            assert count(method.visual[0]) == 7_087_872
            assert count(method.w_fuse) == 38_597_376
            assert sum(p.numel() for p in model.trained().values()) == total


def test_other_widths_need_one_more_matrix():
    """GPT-2 medium: 768 * 1024 + 1024 = 787,456 parameters bring the image tokens to its width."""
    with torch.device("meta"):
        gpt2, vit = public(1024, 24, 16)
        assert count(VCGPT(VCGPT.Config(), gpt2, vit).proj) == 787_456


def test_vanilla_has_28_million_parameters():
    """12 * (4 d^2 + 4 d + 2 d) = 28,366,848 at d = 768; a gate is one number a layer."""
    with torch.device("meta"):
        gpt2, vit = public(768, 12, 12)
        assert count(Vanilla(Vanilla.Config(), gpt2, vit)) == 28_366_848
        assert count(Vanilla(Vanilla.Config(gate=True), gpt2, vit)) == 28_366_848 + 12


# ---------------------------------------------------------------------------- the equations

def norm(x, ln):
    """Layer norm of each row, written out."""
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return x * ln.weight + ln.bias


def attend(q, k, v, heads, causal=False):
    """softmax(q k' / sqrt(hs)) v for one text: q (T, C), k and v (N, C); one head, one query at a time."""
    hs = q.shape[1] // heads
    out = torch.zeros_like(q)
    for i in range(heads):
        part = slice(i * hs, (i + 1) * hs)
        for t in range(len(q)):
            n = t + 1 if causal else len(k)
            scores = torch.stack([q[t, part] @ k[j, part] / math.sqrt(hs) for j in range(n)])
            out[t, part] = sum(w * v[j, part] for j, w in enumerate(scores.softmax(0)))
    return out


def slow_insert(block, m, x, u):
    """GPT-2 layer with a cross-attention inserted: x (T, C) and what it attends to, u (N, D)."""
    q, k, v = block.attn.c_attn(norm(x, block.ln_1)).chunk(3, 1)
    x = x + block.attn.c_proj(attend(q, k, v, block.attn.n_head, causal=True))
    a = m.xattn
    image = a.o(attend(a.q(norm(x, m.ln_x)), a.k(u), a.v(u), a.heads))
    x = x + (image if m.gate is None else torch.tanh(m.gate) * image)
    return x + block.mlp(norm(x, block.ln_2))


def slow_visual(block, u):
    """One layer of the visual stream, u (N, C): self-attention without a mask, then the MLP."""
    a = block.attn
    q, k, v = (norm(u, block.ln_1) @ a.in_proj_weight.T + a.in_proj_bias).chunk(3, 1)
    u = u + a.out_proj(attend(q, k, v, a.heads))
    z = block.mlp.c_fc(norm(u, block.ln_2))
    return u + block.mlp.c_proj(z * torch.sigmoid(1.702 * z))


def slow_tokens(feats):
    """feats (N, D) with mean 0 and variance 1 in each row."""
    return (feats - feats.mean(1, keepdim=True)) / (feats.var(1, correction=0, keepdim=True) + 1e-5).sqrt()


@torch.no_grad()
@pytest.mark.parametrize("name", ["vanilla", "vanilla-gate"])
def test_vanilla_equals_the_equations_written_with_loops(name):
    model = build(name).eval()
    images, idx, _ = inputs()
    feats = model.image_features(images)
    logits, _ = model(images, idx)
    for r in (0, 2, 3, 5):  # rows 0-2 belong to image 0, rows 3-5 to image 1
        x = model.lm.embed(idx[r:r + 1])[0]
        for block, insert in zip(model.lm.h, model.method.insert):
            x = slow_insert(block, insert, x, slow_tokens(feats[r // 3]))
        torch.testing.assert_close(logits[r], model.lm.head(x), rtol=0, atol=2e-5)


@torch.no_grad()
def test_vcgpt_equals_the_equations_written_with_loops():
    """Text layer i attends to what the MLP of visual layer i has put out, not to CLIP's own tokens."""
    model = build("vcgpt").eval()
    m = model.method
    images, idx, _ = inputs()
    feats = model.image_features(images)
    logits, _ = model(images, idx)
    for r in (0, 2, 3, 5):
        x = model.lm.embed(idx[r:r + 1])
        for block in model.lm.h:
            x = block(x)
        h_G = t = norm(x[0], model.lm.ln_f)
        u = m.proj(slow_tokens(feats[r // 3]))
        for visual, block, insert in zip(m.visual, m.text, m.insert):
            u = slow_visual(visual, u)
            t = slow_insert(block, insert, t, u)
        slow = h_G @ model.lm.wte.weight.T + norm(t, m.ln) @ m.w_fuse.weight.T
        torch.testing.assert_close(logits[r], slow, rtol=1e-5, atol=1e-4)


# ---------------------------------------------------------------------------- what the paper's figure promises

@torch.no_grad()
def test_self_ensemble_is_exactly_the_sum_and_without_it_the_stack_speaks_alone():
    model = build("vcgpt").eval()
    images, idx, _ = inputs()
    both, _ = model(images, idx)
    model.method.config.self_ensemble = False
    alone, _ = model(images, idx)
    assert torch.equal(both, alone + model.lm(idx))
    model.method.w_fuse.weight.mul_(2)
    torch.testing.assert_close(model(images, idx)[0], 2 * alone)  # W_fuse h_fuse and nothing else
    model.method.w_fuse.weight.zero_()
    assert model(images, idx)[0].abs().max() == 0
    model.method.config.self_ensemble = True
    assert torch.equal(model(images, idx)[0], model.lm(idx))


@torch.no_grad()
def test_w_fuse_starts_at_random_beside_the_embedding():
    """Logits W_fuse h_fuse spread by about sqrt(1/3) = 0.58 at step 0, at every width: not zero, not tied."""
    model = build("vcgpt-alone", perturb=False).eval()
    logits, _ = model(*inputs()[:2])
    assert 0.4 < logits.std() < 0.8
    w = model.method.w_fuse.weight
    assert w.shape == model.lm.wte.weight.shape and w.data_ptr() != model.lm.wte.weight.data_ptr()


def test_gpt2_below_a_fusion_stack_runs_without_gradients():
    """Nothing below the stack is trained, so the backward pass never enters GPT-2; with --train_lm it does."""
    for train_lm in (False, True):
        model, seen = build("vcgpt", train_lm=train_lm), []
        for block in model.lm.h:
            block.register_forward_hook(lambda m, x, y: seen.append(y.requires_grad))
        model(*inputs())[1].backward()
        assert seen == [train_lm] * 3


def test_the_fusion_stack_keeps_a_cache_of_its_own():
    """GPT-2's 3 layers and 2 above them, all of the length of the text."""
    model = build("vcgpt").eval()
    images, idx, _ = inputs()
    cache = Cache(model.method.layers(model.lm), 7)
    with torch.no_grad():
        model.forward_text(idx, model.method.encode_image(model.image_features(images)), TextState(cache))
    assert cache.len == [7] * 5


@pytest.mark.parametrize("name", ["vanilla", "vcgpt", "prefix"])
@pytest.mark.parametrize("beam, penalty", [(1, 0.0), (3, 1.0)])
def test_cached_batched_beam_search_equals_a_plain_one(name, beam, penalty):
    """All caches are reordered alike, those of a stack or behind a prefix too."""
    model = build(name).eval()
    with torch.no_grad():  # so that texts end now and then
        model.lm.wte.weight[EOT] *= 2
    torch.manual_seed(6)
    images = torch.randn(6, 3, 16, 16)
    out, scores = model.beam(images, torch.tensor([[EOT, 4, 9]] * 6), beam, 7, penalty)
    for image, ids, score in zip(images, out, scores):
        slow_score, slow_ids = slow_beam(model, image, [EOT, 4, 9], beam, 7, penalty)
        assert ids == slow_ids and math.isclose(score, slow_score, abs_tol=1e-4)


def test_a_closed_gate_lets_only_itself_learn():
    """tanh(0) = 0 stops every other gradient at step 0."""
    model = build("vanilla-gate", perturb=False)
    model(*inputs())[1].backward()
    assert {n.split(".")[-1] for n, p in model.trained().items() if p.grad.abs().max() > 0} == {"gate"}


def test_sizes_that_do_not_fit_are_refused():
    gpt2 = GPT2(GPT2Config(vocab_size=37, n_positions=32, n_layer=3, n_head=4, n_embd=32))
    vit = CLIPViT(16, 4, 24, 2, 2, 8)
    for cls in (Vanilla, VCGPT):
        for heads in (5, -1):
            with pytest.raises(UserError, match="heads"):
                cls(cls.Config(heads=heads), gpt2, vit)
    with pytest.raises(UserError, match="n_fusion"):
        VCGPT(VCGPT.Config(n_fusion=0), gpt2, vit)
