"""I-Tuning: the paper's sizes, its equations in a slow independent form, and what its figure promises."""

import math

import pytest
import torch

from lib.cli import UserError
from clip_vit import CLIPViT
from gpt2 import GPT2, GPT2Config
from ituning import Config, ITuning
from model import SeeGPT
from test_methods import build, inputs


@pytest.mark.parametrize("C, L, nh, count", [
    (768, 12, 12, 14_178_816), (1024, 24, 16, 44_101_632), (1280, 36, 20, 94_487_040)])
def test_trained_parameters_are_14_44_and_94_million(C, L, nh, count):
    """Half width in every layer, ViT-B/16: L * (2 C r + 2 D r + 3 r + C) with r = C / 2, D = 768.

    Base: 12 * (2 * 768 * 384 + 2 * 768 * 384 + 3 * 384 + 768) = 14,178,816.
    """
    with torch.device("meta"):
        gpt2 = GPT2(GPT2Config(n_layer=L, n_head=nh, n_embd=C))
        vit = CLIPViT(224, 16, 768, 12, 12, 512)
        for placement, heads, scale in (("parallel", 0, 1.0), ("sequential", 4, 0.5)):
            method = ITuning(Config(placement=placement, heads=heads, scale=scale), gpt2, vit)
            model = SeeGPT(vit, gpt2, method)
            assert sum(p.numel() for p in model.trained().values()) == count


def slow_block(block, m, x, feats, config):
    """Layer l for one row of text (T, C) and one image (N, D), word for word as in the docstring."""
    x = x + block.attn(block.ln_1(x)[None])[0]
    h = block.ln_2(x)
    q, k, v = m.q(h), m.k(feats), m.v(feats)
    hs = q.shape[1] // m.heads
    heads = []
    for i in range(m.heads):
        part = slice(i * hs, (i + 1) * hs)
        rows = []
        for t in range(len(q)):
            scores = torch.stack([q[t, part] @ k[n, part] / math.sqrt(hs) for n in range(len(k))])
            rows.append(sum(w * v[n, part] for n, w in enumerate(scores.softmax(0))))
        heads.append(torch.stack(rows))
    dh = config.scale * m.o(torch.cat(heads, 1))
    if config.placement == "parallel":
        return x + block.mlp(h) + dh
    x = x + dh
    return x + block.mlp(block.ln_2(x))


@pytest.mark.parametrize("placement", ["parallel", "sequential"])
def test_block_equals_the_equations_written_with_loops(placement):
    model = build("ituning").eval()
    method = model.method
    method.config = Config(placement=placement, scale=0.7)
    images, idx, _ = inputs()
    feats = model.image_features(images)
    ctx = method.encode_image(feats)
    x = model.lm.embed(idx)
    from model import TextState
    fast = method.block(1, model.lm.h[1], x, ctx, TextState())
    feats = torch.stack([torch.stack([(t - t.mean()) / (t.var(correction=0) + 1e-5).sqrt() for t in f]) for f in feats])
    for r in (0, 2, 3, 5):  # rows 0-2 belong to image 0, rows 3-5 to image 1
        slow = slow_block(model.lm.h[1], method.xattn[1], x[r], feats[r // 3], method.config)
        torch.testing.assert_close(fast[r], slow, rtol=0, atol=1e-5)


def test_gradients_at_step_zero_reach_the_output_maps_only():
    """W_o = 0 blocks the way to the others; after one update they have gradients too."""
    model = build("ituning", perturb=False)
    images, idx, targets = inputs()
    optimizer = torch.optim.SGD(model.trained().values(), lr=0.1)
    moving = []
    for _ in range(2):
        optimizer.zero_grad()
        model(images, idx, targets)[1].backward()
        moving.append({n.split(".")[-2] for n, p in model.trained().items()
                       if p.grad.abs().max() > 0 and n.endswith("weight")})
        optimizer.step()
    assert moving == [{"o"}, {"q", "k", "v", "o"}]


def test_scale_zero_is_plain_gpt2_at_any_time():
    model = build("ituning").eval()
    model.method.config = Config(scale=0.0)
    images, idx, _ = inputs()
    assert torch.equal(model(images, idx)[0], model.lm(idx))


def test_the_order_of_the_image_tokens_does_not_matter():
    model = build("ituning").eval()
    images, idx, _ = inputs()
    feats = model.image_features(images)
    shuffled = feats[:, torch.randperm(feats.shape[1])]
    torch.testing.assert_close(model(feats, idx)[0], model(shuffled, idx)[0], rtol=0, atol=1e-5)


def test_layers_below_first_layer_run_without_gradients():
    torch.manual_seed(0)
    vit = CLIPViT(16, 4, 24, 2, 2, 8)
    gpt2 = GPT2(GPT2Config(vocab_size=37, n_positions=32, n_layer=3, n_head=4, n_embd=32))
    model = SeeGPT(vit, gpt2, ITuning(Config(first_layer=2), gpt2, vit))
    assert len(model.method.xattn) == 1
    seen = []
    for block in gpt2.h:
        block.register_forward_hook(lambda m, x, y: seen.append(y.requires_grad))
    images, idx, targets = inputs()
    model(images, idx, targets)[1].backward()
    assert seen == [False, False]  # layer 2 is run by the method, in parts
    for bad in (-1, 3):
        with pytest.raises(UserError, match="first_layer"):
            ITuning(Config(first_layer=bad), gpt2, vit)
    with pytest.raises(UserError, match="width_ratio"):
        ITuning(Config(width_ratio=0.2), gpt2, vit)
