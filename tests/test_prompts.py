"""The prefix: ClipCap's sizes, what stands in front of the text, and that the text never notices where it stands."""

import pytest
import torch
import torch.nn.functional as F

from lib.cli import UserError
from clip_vit import CLIPViT
from gpt2 import GPT2, GPT2Config
from model import SeeGPT
from prompts import Prefix
from test_methods import build, inputs


@pytest.mark.parametrize("switches, total", [
    (dict(mapper="mlp"), 32_451_840), (dict(), 43_729_920), (dict(tokens="all"), 38_414_592)])
def test_mappers_have_the_sizes_of_clipcap(switches, total):
    """d = D = 768, P = 10. mlp: D * 5 d + 5 d + 5 d * 10 d + 10 d. transformer: 8 layers of 8 d^2 + 11 d,
    10 constants, and the matrix in front: D * 10 d + 10 d, or D * d + d if all image tokens are read."""
    with torch.device("meta"):
        gpt2, vit = GPT2(GPT2Config()), CLIPViT(224, 16, 768, 12, 12, 512)
        model = SeeGPT(vit, gpt2, Prefix(Prefix.Config(**switches), gpt2, vit))
    assert sum(p.numel() for p in model.trained().values()) == total


@torch.no_grad()
@pytest.mark.parametrize("name", ["prefix", "prefix-mlp", "prefix-all"])
def test_the_prefix_stands_in_front_of_every_row_of_its_image(name):
    """Logits equal those of GPT-2's layers run over [prefix | text], one row at a time."""
    model = build(name).eval()
    images, idx, _ = inputs()
    logits, _ = model(images, idx)
    prefix = model.method.encode_image(model.image_features(images))
    assert prefix.shape == (2, 10, 32)
    for r in range(6):
        x = torch.cat([prefix[r // 3], model.lm.embed(idx[r:r + 1])[0]])[None]  # text positions begin at 0
        for block in model.lm.h:
            x = block(x)
        torch.testing.assert_close(logits[r], model.lm.head(x)[0, 10:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_mlp_mapper_reads_the_class_token_alone():
    model = build("prefix-mlp").eval()
    feats = model.image_features(inputs()[0])
    fc, proj = model.method.mapper.c_fc, model.method.mapper.c_proj
    z = F.layer_norm(feats[:, 0], (24,))
    slow = (proj.weight @ torch.tanh(fc.weight @ z[1] + fc.bias) + proj.bias).view(10, 32)
    torch.testing.assert_close(model.method.encode_image(feats)[1], slow, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["prefix", "prefix-all"])
def test_the_transformer_mapper_gives_what_has_become_of_the_constants(name):
    """[image | constants] through the transformer, of which the last P are the prefix; one image at a time."""
    model = build(name).eval()
    feats, m = model.image_features(inputs()[0]), model.method.mapper
    prefix = model.method.encode_image(feats)
    for b in range(2):
        z = F.layer_norm(feats[b], (24,))
        image = (m.linear.weight @ z[0] + m.linear.bias).view(10, 32) if name == "prefix" else m.linear(z)
        x = torch.cat([image, m.const])
        for block in m.transformer.resblocks:
            x = x + block.attn(block.ln_1(x)[None], causal=False)[0]
            fc, _, proj = block.mlp
            x = x + proj(fc(block.ln_2(x)).clamp(min=0))
        torch.testing.assert_close(prefix[b], x[-10:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_which_image_tokens_are_read():
    for name, reads in (("prefix", False), ("prefix-mlp", False), ("prefix-all", True)):
        model = build(name).eval()
        feats = model.image_features(inputs()[0])
        other = feats.clone()
        other[:, 3] = torch.randn(24)
        assert torch.equal(model.method.encode_image(feats), model.method.encode_image(other)) != reads, name


def test_settings_that_do_not_fit_are_refused():
    gpt2 = GPT2(GPT2Config(vocab_size=37, n_positions=32, n_layer=3, n_head=4, n_embd=32))
    vit = CLIPViT(16, 4, 24, 2, 2, 8)
    for bad, flag in ((dict(prefix_length=0), "prefix_length"), (dict(heads=5), "heads"),
                      (dict(mapper="mlp", tokens="all"), "tokens all")):
        with pytest.raises(UserError, match=flag):
            Prefix(Prefix.Config(**bad), gpt2, vit)
