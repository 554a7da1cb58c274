"""The contract that every method keeps, run on each by name.

All trained tensors are perturbed first: at their starting values many mistakes do not show (a zero
output map hides a wrong mask, a zero bias a missing one).
"""

import pytest
import torch

from clip_vit import CLIPViT
from gpt2 import GPT2, Cache, GPT2Config
from model import METHODS, TextState, SeeGPT, find_method

V, T, B, K = 37, 7, 2, 3
VARIANTS = {  # settings other than the defaults
    "vcgpt": dict(n_fusion=2),
    "ituning-sequential": dict(placement="sequential"),
    "vanilla-gate": dict(gate=True),
    "vcgpt-alone": dict(n_fusion=2, self_ensemble=False),
    "prefix-mlp": dict(mapper="mlp"),
    "prefix-all": dict(tokens="all"),
    "dvp": dict(insert_layer=1),
    "dvp-full": dict(insert_layer=2, adapter=0),
    "dvp-all": dict(visual="all"),
}
IDENTITY = {"ituning", "ituning-sequential", "vanilla-gate"}  # those whose step 0 is plain GPT-2
ATTENDS = ["ituning", "vanilla", "vcgpt"]  # those whose words look at the image, each anew


def build(name, seed=0, perturb=True, **switches):
    """A small random SeeGPT with the method; everything perturbed, norms and biases too."""
    torch.manual_seed(seed)
    vit = CLIPViT(16, patch=4, width=24, layers=2, heads=2, embed_dim=8)
    gpt2 = GPT2(GPT2Config(vocab_size=V, n_positions=32, n_layer=3, n_head=4, n_embd=32))
    cls, config = find_method(name.split("-")[0])
    model = SeeGPT(vit, gpt2, cls(config(**VARIANTS.get(name, {})), gpt2, vit), **switches)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if perturb or not n.startswith("method."):
                p.add_(0.3 * torch.randn_like(p) if n.startswith("method.") else 0.1 * torch.randn_like(p))
    return model.train()


def inputs(seed=1):
    torch.manual_seed(seed)
    idx = torch.randint(0, V, (B * K, T))
    targets = torch.randint(0, V, (B * K, T))
    targets[0, 4:] = -1  # a short caption
    targets[5] = -1  # a filler row
    return torch.randn(B, 3, 16, 16), idx, targets


def exactly(name):
    """Model, images and ids in float64: a perturbed stack lets rounding errors grow, and no mistake may hide there."""
    images, idx, _ = inputs()
    return build(name).eval().double(), images.double(), idx


every = pytest.mark.parametrize("name", sorted({*METHODS, *VARIANTS}))


@every
def test_frozen_weights_do_not_move(name):
    """Ten steps of AdamW: the frozen tensors stay bit-equal, get no gradient and no optimiser state."""
    model = build(name)
    images, idx, targets = inputs()
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.trained().values(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        model(images, idx, targets)[1].backward()
        optimizer.step()
    for n, p in model.named_parameters():
        if n in model.trained():
            assert p in optimizer.state
        else:
            assert torch.equal(p, before[n]) and p.grad is None and p not in optimizer.state, n
    assert set(model.trained()) == {f"method.{n}" for n in model.method.state_dict()}


@every
def test_every_trained_tensor_gets_a_gradient(name):
    """Biases of keys are exempt: softmax ignores a constant added to all scores of a query."""
    model = build(name)
    model(*inputs())[1].backward()
    for n, p in model.trained().items():
        if not n.endswith(".k.bias"):
            assert p.grad is not None and p.grad.abs().max() > 0, n


@every
def test_the_image_changes_the_logits(name):
    model = build(name).eval()
    images, idx, _ = inputs()
    assert (model(images, idx)[0] - model(images + 1, idx)[0]).abs().max() > 1e-3
    # and each image only its own rows
    other = model(torch.stack([images[0], images[1] + 1]), idx)[0]
    assert torch.equal(other[:K], model(images, idx)[0][:K])


@every
def test_no_later_token_changes_an_earlier_logit(name):
    model, images, idx = exactly(name)
    logits, _ = model(images, idx)
    for j in range(1, T):
        changed = idx.clone()
        changed[:, j:] = (changed[:, j:] + 5) % V
        torch.testing.assert_close(model(images, changed)[0][:, :j], logits[:, :j], rtol=0, atol=1e-5)


@every
def test_cached_logits_equal_uncached(name):
    """The text read in pieces of 3, 1, 1 and 2 tokens gives the logits of the text read at once."""
    model, images, idx = exactly(name)
    full, _ = model(images, idx)
    ctx = model.method.encode_image(model.image_features(images))
    cache = Cache(model.method.layers(model.lm), T + model.method.n_prompt)
    parts, t = [], 0
    for n in (3, 1, 1, 2):
        parts.append(model.forward_text(idx[:, t:t + n], ctx, TextState(cache, t)))
        t += n
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=0, atol=1e-5)


@every
def test_picked_logits_are_those_of_all_positions(name):
    """The loss looks at targets only; the logits of padding are never made, and change nothing."""
    model = build(name).eval()
    images, idx, targets = inputs()
    none, loss = model(images, idx, targets)
    logits, slow = model(images, idx, targets, all_logits=True)
    assert none is None and logits.shape == (B * K, T, V)
    torch.testing.assert_close(loss, slow)
    by_hand = [-logits[r, t].log_softmax(0)[targets[r, t]] for r in range(B * K) for t in range(T)
               if targets[r, t] != -1]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())


@every
def test_rows_of_one_image_equal_rows_with_an_image_each(name):
    """Sharing keys and values among the captions of an image is exact."""
    model, images, idx = exactly(name)
    shared, _ = model(images, idx)
    single, _ = model(images.repeat_interleave(K, 0), idx)
    torch.testing.assert_close(shared, single, rtol=0, atol=1e-5)


@every
def test_features_may_be_given_in_place_of_images(name):
    model = build(name).eval()
    images, idx, _ = inputs()
    assert torch.equal(model(images, idx)[0], model(model.vit(images), idx)[0])


@every
def test_save_and_load_round_trip(name, tmp_path):
    """The file holds exactly what was trained, and puts another model in the same state."""
    from weights.reading import read
    model, other = build(name, seed=0), build(name, seed=0)
    model.save(tmp_path / "x.safetensors", step=3)
    tensors = read(tmp_path / "x.safetensors")
    assert set(tensors) == set(model.trained()) and all(n.startswith("method.") for n in tensors)
    with torch.no_grad():
        for p in other.trained().values():
            p.zero_()
    other.restore(tensors, "x")
    images, idx, _ = inputs()
    assert torch.equal(model.eval()(images, idx)[0], other.eval()(images, idx)[0])


@every
def test_step_zero_is_plain_gpt2_where_promised(name):
    model = build(name, perturb=False).eval()
    images, idx, _ = inputs()
    assert torch.equal(model(images, idx)[0], model.lm(idx)) == (name in IDENTITY)


@every
@pytest.mark.parametrize("switch, prefix", [("train_lm", "gpt2."), ("train_vision", "vit.")])
def test_tuned_backbones_learn_only_with_their_switch(name, switch, prefix):
    model = build(name, **{switch: True})
    model(*inputs())[1].backward()
    trained = {n for n in model.trained() if not n.startswith("method.")}
    assert trained and all(n.startswith(prefix) for n in trained)
    if name in ("dvp", "dvp-all"):  # copies of the norms take the place of GPT-2's own
        trained = {n for n in trained if ".ln_" not in n}
    for n in trained:
        p = model.trained()[n]
        # The key third of a joint bias has no gradient, the rest of it has.
        assert p.grad is not None and p.grad.abs().max() > 0, n
    assert not any(n.startswith(prefix) for n in build(name).trained())


@every
def test_a_tuned_backbone_is_in_the_checkpoint(name, tmp_path):
    """With both switches: every trained tensor by its full name, enough to bring the model back."""
    from weights.reading import read
    model, other = (build(name, train_lm=True, train_vision=True) for _ in range(2))
    model.save(tmp_path / "x.safetensors")
    tensors = read(tmp_path / "x.safetensors")
    assert set(tensors) == set(model.trained())
    assert {"gpt2.wte.weight", "gpt2.h.2.mlp.c_proj.weight", "vit.conv1.weight"} <= set(tensors)
    with torch.no_grad():
        for p in other.trained().values():
            p.zero_()
    other.restore(tensors, "x")
    images, idx, _ = inputs()
    assert torch.equal(model.eval()(images, idx)[0], other.eval()(images, idx)[0])


@pytest.mark.parametrize("name", ATTENDS)
def test_watched_attention_sums_to_one_and_changes_nothing(name):
    """(R, nh, T, N) per layer, each row of text over its own image's tokens, in their order."""
    model, images, idx = exactly(name)
    feats = model.image_features(images)

    def watch(feats, idx):
        model.method.record_attention = []
        logits, _ = model(feats, idx)
        seen, model.method.record_attention = model.method.record_attention, None
        return logits, seen

    watched, seen = watch(feats, idx)
    torch.testing.assert_close(watched, model(feats, idx)[0], rtol=0, atol=1e-5)
    first = len(model.lm.h) if name == "vcgpt" else 0
    assert [l for l, _ in seen] == list(range(first, model.method.layers(model.lm)))
    # Row 4 alone with its image sees what it saw among the others; token n of the image is column n.
    order = torch.randperm(17)
    _, alone = watch(feats[1:, order], idx[4:5])
    for (_, att), (_, one) in zip(seen, alone):
        assert att.shape == (6, 4, 7, 17)
        torch.testing.assert_close(att.sum(-1), torch.ones(6, 4, 7).double())
        torch.testing.assert_close(one[0], att[4][..., order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_eight_pairs_are_learnt_by_heart_and_the_image_is_what_tells_them_apart(name):
    """Eight images, eight texts that begin alike: near-zero loss, greedy gives them back, and with
    shuffled images the loss is high again. A prefix moves words only through GPT-2's own attention,
    which does nothing useful with random weights: there GPT-2 learns too, as in ClipCap."""
    model = build(name, perturb=False, train_lm=name == "prefix")
    with torch.no_grad():  # the frozen head must be able to be sure: ln_f bounds the states it reads
        model.lm.wte.weight.mul_(5)
    torch.manual_seed(3)
    images = torch.randn(8, 17, 24)  # feats: a random ViT makes all noise look alike
    texts = torch.randint(0, 36, (8, 5))
    eot = torch.full((8, 1), 36)
    idx, targets = torch.cat([eot, texts], 1), torch.cat([texts, eot], 1)
    optimizer = torch.optim.Adam(model.trained().values(), lr=3e-3 if name == "prefix" else 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = model(images, idx, targets)[1]
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    out, _ = model.eval().beam(images, eot, beam=1, max_new_tokens=6)
    assert out == torch.cat([texts, eot], 1).tolist()
    assert model(images.roll(1, 0), idx, targets)[1] > 1
