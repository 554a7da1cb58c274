"""I-Tuning, vanilla and VC-GPT: their equations in a slow independent form, and what the papers'
figures promise."""

import math

import pytest
import torch
from test_methods import build, close, exactly, inputs

# ---------------------------------------------------------------------------- the equations


def norm(x, ln=None):
    """Layer norm of each row of x (T, C), written out; without ln: mean 0 and variance 1."""
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return x if ln is None else x * ln.weight + ln.bias


def attend(q, k, v, heads, causal=False):
    """softmax(q k' / sqrt(hs)) v: q (T, C), k and v (N, C); one head, one query at a time."""
    hs = q.shape[1] // heads
    out = torch.zeros_like(q)
    for i in range(heads):
        part = slice(i * hs, (i + 1) * hs)
        for t in range(len(q)):
            n = t + 1 if causal else len(k)
            scores = torch.stack([q[t, part] @ k[j, part] / math.sqrt(hs) for j in range(n)])
            out[t, part] = sum(w * v[j, part] for j, w in enumerate(scores.softmax(0)))
    return out


def attend_text(layer, x):
    """x (T, C) with the causal self-attention of a GPT-2 layer added."""
    q, k, v = layer.attn.c_attn(norm(x, layer.ln_1)).chunk(3, 1)
    return x + layer.attn.c_proj(attend(q, k, v, layer.attn.n_head, causal=True))


def attend_image(a, h, u):
    """What text states h (T, C) get from image tokens u (N, D)."""
    return a.o(attend(a.q(h), a.k(u), a.v(u), a.heads))


def insert(layer, m, x, u):
    """A GPT-2 layer with a cross-attention inserted: x (T, C), image tokens u (N, D)."""
    x = attend_text(layer, x)
    image = attend_image(m.xattn, norm(x, m.ln_x), u)
    x = x + (image if m.gate is None else torch.tanh(m.gate) * image)
    return x + layer.mlp(norm(x, layer.ln_2))


def ituning(lm, m, x, feats):
    for layer, xattn in zip(lm.h, m.xattn):
        x = attend_text(layer, x)
        h = norm(x, layer.ln_2)
        x = x + layer.mlp(h) + attend_image(xattn, h, norm(feats))
    return lm.head(x)


def vanilla(lm, m, x, feats):
    for layer, inserted in zip(lm.h, m.insert):
        x = insert(layer, inserted, x, norm(feats))
    return lm.head(x)


def vcgpt(lm, m, x, feats):
    """Text layer i attends to what the MLP of visual layer i has put out, not to CLIP's tokens."""
    for layer in lm.h:
        x = layer(x[None])[0]
    h_G = t = norm(x, lm.ln_f)
    u = m.proj(norm(feats))
    for visual, layer, inserted in zip(m.visual, m.text, m.insert):
        a = visual.attn
        q, k, v = (norm(u, visual.ln_1) @ a.in_proj_weight.T + a.in_proj_bias).chunk(3, 1)
        u = u + a.out_proj(attend(q, k, v, a.heads))
        z = visual.mlp.c_fc(norm(u, visual.ln_2))
        u = u + visual.mlp.c_proj(z * torch.sigmoid(1.702 * z))
        t = insert(layer, inserted, t, u)
    logits = norm(t, m.ln) @ m.w_fuse.weight.T
    return logits + h_G @ lm.wte.weight.T if m.config.self_ensemble else logits


@torch.no_grad()
@pytest.mark.parametrize("name, slow", [
    ("ituning", ituning), ("vanilla", vanilla), ("vanilla-gate", vanilla), ("vcgpt", vcgpt),
    ("vcgpt-alone", vcgpt)])
def test_logits_equal_the_equations_written_with_loops(name, slow):
    model, images, idx = exactly(name)
    feats, (logits, _) = model.image_features(images), model(images, idx)
    for r in (0, 2, 3, 5):  # rows 0-2 belong to image 0, rows 3-5 to image 1
        x = model.lm.embed(idx[r:r + 1])[0]
        close(logits[r], slow(model.lm, model.method, x, feats[r // 3]).float(), 3e-5)


# ---------------------------------------------------------------------------- what learns when

@pytest.mark.parametrize("name, first, then", [
    ("ituning", {"o"}, {"q", "k", "v", "o"}),  # W_o = 0 blocks the way to the others
    ("vanilla-gate", {"gate"}, {"gate", "q", "k", "v", "o", "ln_x"})])  # and so does tanh(0) = 0
def test_gradients_reach_behind_a_zero_after_one_update(name, first, then):
    model, moving = build(name, perturb=False), []
    optimizer = torch.optim.SGD(model.trained().values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(*inputs())[1].backward()
        moving.append({n.removesuffix(".weight").split(".")[-1] for n, p in model.trained().items()
                       if p.grad.abs().max() > 0 and not n.endswith("bias")})
        optimizer.step()
    assert moving == [first, then]


@pytest.mark.parametrize("name, settings, train_lm, entered", [
    ("ituning", dict(first_layer=2), False, [False, False]),  # layer 2 is run in parts
    ("dvp", dict(insert_layer=2, adapter=0), False, [False, False, True]),
    ("vcgpt", {}, False, [False] * 3), ("vcgpt", {}, True, [True] * 3)])
def test_the_backward_pass_enters_no_layer_below_all_that_is_trained(
        name, settings, train_lm, entered):
    model, found = build(name, settings=settings, train_lm=train_lm), []
    for layer in model.lm.h:
        layer.register_forward_hook(lambda m, x, y: found.append(y.requires_grad))
    model(*inputs())[1].backward()
    assert found == entered


@torch.no_grad()
def test_w_fuse_starts_at_random_beside_the_embedding():
    """The logits' standard deviation is sqrt(1/3) = 0.58 at step 0, at every width."""
    model = build("vcgpt-alone", perturb=False).eval()
    assert 0.4 < model(*inputs()[:2])[0].std() < 0.8
    w = model.method.w_fuse.weight
    assert w.shape == model.lm.wte.weight.shape and w is not model.lm.wte.weight
