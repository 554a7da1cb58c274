"""The prefix and DVP: what stands in front of the text, who asks the image, and that the text never
notices where it stands."""

import pytest
import torch
import torch.nn.functional as F
from test_methods import B, T, V, build, close, exactly, inputs

COND = torch.tensor([3, 5, 2, 4, 4, 1])  # lengths of the questions of inputs()'s six rows

# ---------------------------------------------------------------------------- the prefix


@torch.no_grad()
@pytest.mark.parametrize("name", ["prefix", "prefix-mlp", "prefix-all"])
def test_the_prefix_stands_in_front_of_every_row_of_its_image(name):
    """Logits equal those of GPT-2's layers run over [prefix | text], one row at a time."""
    model, images, idx = exactly(name)
    logits, prefix = model(images, idx)[0], model.method.encode_image(model.image_features(images))
    assert prefix.shape == (2, 10, 32)
    for r in range(6):  # text positions begin at 0
        x = torch.cat([prefix[r // 3], model.lm.embed(idx[r:r + 1])[0]])[None]
        for layer in model.lm.h:
            x = layer(x)
        close(logits[r], model.lm.head(x)[0, 10:])


def map_by_mlp(m, feats):
    """The class token alone, through two matrices."""
    fc, _, proj, _ = m.mlp
    return (proj.weight @ torch.tanh(fc.weight @ feats[0] + fc.bias) + proj.bias).view(10, 32)


def map_by_transformer(m, feats, whole=False):
    """[image | constants] through the transformer, of which the last P are the prefix."""
    image = m.linear(feats) if whole else (m.linear.weight @ feats[0] + m.linear.bias).view(10, 32)
    x = torch.cat([image, m.const])
    for block in m.transformer.resblocks:
        x = x + block.attn(block.ln_1(x)[None], causal=False)[0]
        fc, _, proj = block.mlp
        x = x + proj(fc(block.ln_2(x)).clamp(min=0))
    return x[-10:]


@torch.no_grad()
@pytest.mark.parametrize("name, slow", [
    ("prefix-mlp", map_by_mlp), ("prefix", map_by_transformer),
    ("prefix-all", lambda m, feats: map_by_transformer(m, feats, True))])
def test_mappers_are_what_their_docstrings_say_one_image_at_a_time(name, slow):
    model, images, _ = exactly(name)
    feats = model.image_features(images)
    prefix = model.method.encode_image(feats)
    for b in range(B):
        close(prefix[b], slow(model.method, F.layer_norm(feats[b], (24,))))


# ---------------------------------------------------------------------------- DVP: what flows where

def states(model, images, idx, condition_len=COND):
    """The states that enter every layer."""
    found, block = [], model.method.block
    model.method.block = lambda l, layer, x, *more: (found.append(x), block(l, layer, x, *more))[1]
    model(images, idx, condition_len=condition_len)
    del model.method.block
    return found


def changed(idx, place):
    """Another token at a place."""
    idx = idx.clone()
    idx[..., place] = (idx[..., place] + 5) % V
    return idx


def test_below_layer_k_there_is_text_only_and_above_one_token_more_that_every_word_sees():
    model = build("dvp").eval()  # K = 1: the state that enters layer 1 has no prompt yet
    images, idx, _ = inputs()
    found, other = states(model, images, idx), states(model, images + 1, idx)
    assert [x.shape[1] for x in found] == [T, T, T + 1]
    assert torch.equal(found[1], other[1]) and not torch.equal(found[2], other[2])
    moved = model(images, idx, None, COND)[0] - model(images + 1, idx, None, COND)[0]
    assert (moved.abs().amax(-1) > 1e-4).all()


def test_the_last_word_of_the_question_asks():
    """Another last word, another prompt; another word behind it, the same prompt, bit for bit."""
    model = build("dvp").eval()
    images, idx, _ = inputs()
    prompt = states(model, images, idx)[2][:, 0]
    for r, n in enumerate(COND.tolist()):
        for place, same in ((n - 1, False), (n, True)):
            other = idx.clone()
            other[r] = changed(idx[r], place)
            assert torch.equal(states(model, images, other)[2][r, 0], prompt[r]) == same


@pytest.mark.parametrize("settings", [{}, dict(adapter=0), dict(visual="all")])
def test_no_answer_reaches_the_query(settings):
    """Changing answer tokens changes no logits before them."""
    model = build("dvp", settings=dict(insert_layer=2, **settings)).eval().double()
    images, idx, _ = inputs()
    logits = model(images.double(), idx, condition_len=COND)[0]
    for j in range(1, T):
        other = model(images.double(), changed(idx, slice(j, T)), condition_len=COND)[0]
        rows = COND <= j
        close(other[rows, :j], logits[rows, :j])


def test_the_prompt_moves_no_word_and_without_an_image_there_is_none():
    """With adapters silent and norms as they were, GPT-2's logits come back: positions count words
    only. An item without an image is read as text alone, in generation, too."""
    model = build("dvp", perturb=False).eval()
    for layer in model.method.adapted:
        for adapter in (layer.after_attn, layer.after_mlp):
            torch.nn.init.zeros_(adapter.up.weight)
    images, idx, targets = inputs()
    assert torch.equal(model(None, idx)[0], model.lm(idx))
    assert not torch.equal(model(images, idx)[0], model.lm(idx))
    assert model(None, idx, targets)[1].isfinite()
    assert model.generate(None, ["ab", "c"], max_new_tokens=3) == [
        model.generate(None, [text], max_new_tokens=3)[0] for text in ("ab", "c")]


def test_a_question_is_answered_at_its_own_last_word_whatever_stands_beside_it():
    """Best first, with probabilities; the padding behind shorter questions changes nothing."""
    settings = dict(insert_layer=1, readout="head", answers=list("abcde"))
    model = build("dvp", settings=settings).eval()
    images, questions = inputs()[0][[0, 1, 0]], ["ab", "abcdef", "a"]
    together = model.answer(images, questions)
    for image, question, found in zip(images, questions, together):
        p = dict(found)
        assert list(p.values()) == sorted(p.values(), reverse=True) and {*p} == {*"abcde"}
        assert p == pytest.approx(dict(model.answer(image[None], [question])[0]), abs=1e-5)
        assert sum(p.values()) == pytest.approx(1)
    assert together[0] != together[2]
