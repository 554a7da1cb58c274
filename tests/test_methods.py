"""The contract that every method keeps, run on each by name: the README's own one is among them.

    python -m pytest tests/test_methods.py --method mymethod      on your mymethod.py alone

All trained tensors are perturbed first: at their starting values many mistakes do not show (a zero
output map hides a wrong mask, a zero bias a missing one).
"""

import re
import subprocess
import sys

import pytest
import torch
from conftest import OWN, ROOT

from clip_vit import CLIPViT
from gpt2 import GPT2, Cache, GPT2Config
from lib.cli import UserError, parse
from lib.settings import METHODS, find_method
from model import Method, SeeGPT, TextState
from weights.reading import read

V, T, B, K = 37, 7, 2, 3
VARIANTS = {  # settings other than the defaults
    "vcgpt": dict(n_fusion=2),
    "vanilla-gate": dict(gate=True),
    "vcgpt-alone": dict(n_fusion=2, self_ensemble=False),
    "prefix-mlp": dict(mapper="mlp"),
    "prefix-all": dict(tokens="all"),
    "dvp": dict(insert_layer=1),
    "dvp-full": dict(insert_layer=2, adapter=0),
    "dvp-all": dict(visual="all"),
}
IDENTITY = {"ituning", "vanilla-gate"}  # those whose step 0 is plain GPT-2
every = pytest.mark.parametrize("name", [OWN] if OWN else sorted(
    {*METHODS, *VARIANTS, "mymethod"}))


class Letters:
    """A tokenizer of one letter a token, "A" being 0; the id of the text's end can be any, and ids
    from n_vocab on are padding."""

    def __init__(self, eot=V - 1, n_vocab=V):
        self.eot_token, self.n_vocab = eot, n_vocab

    def encode_ordinary(self, text):
        return [(ord(c) - 65) % (V - 1) for c in text]

    def decode(self, ids):
        return "".join(chr(65 + i) for i in ids)


@pytest.fixture(scope="module", autouse=True)
def mymethod(tmp_path_factory):
    """The README's Python block as mymethod.py in the working folder."""
    path = tmp_path_factory.mktemp("own") / "mymethod.py"
    block, = re.findall(r'^```python\n("""mymethod\.py.*?)^```', (ROOT / "README.md").read_text(
        "utf-8"), re.S | re.M)
    path.write_text(block, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        if not OWN:
            patch.chdir(path.parent)
        yield path


def backbones():
    """A random ViT that makes 17 tokens, and a random GPT-2 of three layers."""
    vit = CLIPViT(16, patch=4, width=24, layers=2, heads=2, embed_dim=8)
    lm = GPT2(GPT2Config(vocab_size=V, n_positions=32, n_layer=3, n_head=4, n_embd=32))
    lm.tokenizer = Letters()
    return perturbed(vit, 0.1), perturbed(lm, 0.1)


@torch.no_grad()
def perturbed(module, std):
    for p in module.parameters():
        p.add_(std * torch.randn_like(p))
    return module


def build(name, seed=0, perturb=True, settings=None, **switches):
    """A small random SeeGPT with the method; everything perturbed, norms and biases too."""
    torch.manual_seed(seed)
    vit, lm = backbones()
    cls = find_method(name.split("-")[0])
    method = cls(cls.Config(**VARIANTS.get(name, {}) if settings is None else settings), lm, vit)
    return SeeGPT(vit, lm, perturbed(method, 0.3 * perturb), **switches).train()


def inputs(seed=1):
    torch.manual_seed(seed)
    idx = torch.randint(0, V, (B * K, T))
    targets = torch.randint(0, V, (B * K, T))
    targets[0, 4:] = -1  # a short caption
    targets[5] = -1  # a filler row
    return torch.randn(B, 3, 16, 16), idx, targets


def exactly(name):
    """Model, images and ids in float64: a perturbed stack lets rounding errors grow, and no mistake
    may hide there."""
    images, idx, _ = inputs()
    return build(name).eval().double(), images.double(), idx


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@every
@pytest.mark.parametrize("switch, prefix", [(None, "method."), ("train_lm", "lm."),
                                            ("train_vision", "vit.")])
def test_what_is_frozen_stays_and_all_that_is_trained_learns(name, switch, prefix):
    """Ten steps of AdamW: frozen tensors stay bit-equal, without gradient or optimiser state."""
    model = build(name, **{switch: True} if switch else {})
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.trained().values(), lr=1e-2, weight_decay=0)
    for _ in range(10):
        optimizer.zero_grad()
        model(*inputs())[1].backward()
        optimizer.step()
    assert {n for n in model.trained() if n.startswith("method.")} == {
        f"method.{n}" for n in model.method.state_dict()}
    assert {n.split(".")[0] + "." for n in model.trained()} == {"method.", prefix}
    for n, p in model.named_parameters():
        if n not in model.trained():
            assert torch.equal(p, before[n]) and p.grad is None and p not in optimizer.state, n
        # Exempt: softmax ignores what is added to all scores of a query; DVP has its own norms.
        elif not n.endswith(".k.bias") and not (name in ("dvp", "dvp-all") and ".ln_" in n):
            assert not torch.equal(p, before[n]), n


@every
def test_an_image_changes_the_logits_of_its_own_rows_and_of_no_others(name):
    model = build(name).eval()
    images, idx, _ = inputs()
    logits = model(images, idx)[0]
    other = model(torch.stack([images[0], images[1] + 1]), idx)[0]
    assert torch.equal(other[:K], logits[:K]) and (other[K:] - logits[K:]).abs().max() > 1e-3


@every
def test_no_later_token_changes_an_earlier_logit(name):
    model, images, idx = exactly(name)
    logits, _ = model(images, idx)
    for j in range(1, T):
        changed = idx.clone()
        changed[:, j:] = (changed[:, j:] + 5) % V
        close(model(images, changed)[0][:, :j], logits[:, :j])


@every
def test_cached_logits_equal_uncached(name):
    """Text read in pieces of 3, 1, 1 and 2 tokens gives the logits of the text read at once; the
    first piece holds the rows' conditions, of unequal length."""
    model, images, idx = exactly(name)
    ctx = model.method.encode_image(model.image_features(images))
    lengths = torch.tensor([3, 1, 2] * B)
    cache = Cache(model.method.cache_layers(model.lm), T + model.method.n_prompt)
    parts = [model.forward_text(idx[:, pos:pos + n], ctx, TextState(cache, pos, lengths))
             for pos, n in ((0, 3), (3, 1), (4, 1), (5, 2))]
    close(torch.cat(parts, 1), model(images, idx, condition_len=lengths)[0])


@every
def test_logits_are_made_where_there_are_targets_and_nowhere_else(name):
    model = build(name).eval()
    images, idx, targets = inputs()
    everywhere, none = model(images, idx)
    scored = targets != -1
    logits, loss = model(images, idx, targets)
    assert none is None and everywhere.shape == (B * K, T, V)
    close(logits, everywhere[scored], 1e-4)
    wanted = scored.flatten().nonzero()[:, 0]
    assert torch.equal(model(images, idx, targets, None, wanted)[0], logits)
    if type(model.method).loss is Method.loss:  # a method of one's own may have another
        by_hand = [-everywhere[r, t].log_softmax(0)[targets[r, t]] for r, t in scored.nonzero()]
        torch.testing.assert_close(loss, torch.stack(by_hand).mean())


@every
def test_rows_that_share_an_image_or_its_features_equal_rows_with_an_image_each(name):
    model, images, idx = exactly(name)
    shared, _ = model(images, idx)
    close(shared, model(images.repeat_interleave(K, 0), idx)[0])
    assert torch.equal(shared, model(model.vit(images), idx)[0])


@every
@pytest.mark.parametrize("tuned", [False, True])
def test_a_checkpoint_holds_what_was_trained_and_brings_it_back(name, tuned, tmp_path):
    switches = dict(train_lm=tuned, train_vision=tuned)
    model, other = build(name, **switches).eval(), build(name, perturb=False, **switches).eval()
    model.save(tmp_path / "x.safetensors", step=3)
    tensors = read(tmp_path / "x.safetensors")
    assert set(tensors) == set(model.trained())
    assert tuned == ({"lm.wte.weight", "lm.h.2.attn.c_attn.bias", "vit.conv1.weight"} <= {*tensors})
    other.restore(tensors, "x")
    images, idx, _ = inputs()
    assert torch.equal(model(images, idx)[0], other(images, idx)[0])


@every
def test_step_zero_is_plain_gpt2_where_promised(name):
    model = build(name, perturb=False).eval()
    images, idx, _ = inputs()
    same = torch.equal(model(images, idx)[0], model.lm(idx))
    if OWN:  # promises nothing
        pytest.skip(f"step 0 is {'' if same else 'not '}plain GPT-2")
    assert same == (name in IDENTITY)


@pytest.mark.parametrize("name", ["ituning", "vanilla", "vcgpt"])
def test_recorded_attention_sums_to_one_and_changes_nothing(name):
    """(R, nh, T, N) per layer, each row of text over its own image's tokens, in their order."""
    model, images, idx = exactly(name)
    feats, order = model.image_features(images), torch.randperm(17)
    plain, _ = model(feats, idx)
    found, alone = [], []
    model.method.record_attention = found
    close(model(feats, idx)[0], plain)
    first = len(model.lm.h) if name == "vcgpt" else 0
    assert [l for l, _ in found] == list(range(first, model.method.cache_layers(model.lm)))
    # Row 4 alone with its image attends as it did among the others; token n of the image is column
    # n, and in which order they come changes nothing else.
    model.method.record_attention = alone
    close(model(feats[1:, order], idx[4:5])[0][0], plain[4])
    for (_, att), (_, one) in zip(found, alone):
        assert att.shape == (6, 4, 7, 17)
        torch.testing.assert_close(att.sum(-1), torch.ones(6, 4, 7).double())
        close(one[0], att[4][..., order])


@pytest.mark.parametrize("name", METHODS)
def test_eight_pairs_are_learnt_by_heart_and_the_image_is_what_tells_them_apart(name):
    """Eight images, eight texts that begin alike: near-zero loss, greedy gives them back, and with
    shuffled images the loss is high again. A prefix moves words only through GPT-2's own attention,
    which does nothing useful with random weights: there GPT-2 learns too, as in ClipCap."""
    model = build(name, perturb=False, train_lm=name == "prefix")
    with torch.no_grad():  # the frozen head must be able to be sure: ln_f bounds what it reads
        model.lm.wte.weight.mul_(5)
    torch.manual_seed(3)
    images = torch.randn(8, 17, 24)  # feats: a random ViT makes all noise look alike
    texts, eot = torch.randint(0, 36, (8, 5)), torch.full((8, 1), 36)
    idx, targets = torch.cat([eot, texts], 1), torch.cat([texts, eot], 1)
    optimizer = torch.optim.Adam(model.trained().values(), lr=3e-3 if name == "prefix" else 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = model(images, idx, targets)[1]
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    found = model.eval().generate(images, beam=1, max_new_tokens=6, with_ids=True)
    assert [ids for _, ids in found] == texts.tolist()
    assert model(images.roll(1, 0), idx, targets)[1] > 1


# ---------------------------------------------------------------------------- sizes and settings

BASE, MEDIUM, LARGE = (768, 12, 12), (1024, 24, 16), (1280, 36, 20)
HEAD = dict(readout="head", answers=[str(i) for i in range(3129)])


@pytest.mark.parametrize("name, size, settings, total", [
    ("ituning", BASE, {}, 14_178_816), ("ituning", BASE, dict(heads=4), 14_178_816),
    ("ituning", MEDIUM, {}, 44_101_632), ("ituning", LARGE, {}, 94_487_040),
    ("vanilla", BASE, {}, 28_366_848), ("vanilla", BASE, dict(gate=True), 28_366_848 + 12),
    ("vcgpt", BASE, dict(n_fusion=3), 88_217_856), ("vcgpt", BASE, dict(n_fusion=6), 137_836_800),
    ("vcgpt", BASE, dict(n_fusion=12, heads=4, self_ensemble=False), 237_074_688),
    ("prefix", BASE, dict(mapper="mlp"), 32_451_840), ("prefix", BASE, {}, 43_729_920),
    ("prefix", BASE, dict(tokens="all"), 38_414_592),
    ("dvp", BASE, {}, 5_960_448), ("dvp", BASE, dict(adapter=0), 2_362_368),
    ("dvp", BASE, HEAD, 11_953_977)])
def test_the_number_of_trained_parameters_is_the_paper_s(name, size, settings, total):
    """With ViT-B/16, D = 768; d the width of GPT-2, L its layers.

    ituning: L (2 d r + 2 D r + 3 r + d), r = d / 2. vanilla: L (4 d^2 + 4 d + 2 d), a gate is one
    number a layer. vcgpt: n (text 16 d^2 + 19 d + visual 12 d^2 + 13 d) + W_fuse 50,257 d + 2 d.
    prefix, P = 10: mlp D 5 d + 5 d + 5 d 10 d + 10 d; transformer 8 (8 d^2 + 11 d) + 10 d + 10 (D d
    + d), with all tokens read 9 (D d + d) less. dvp: cross-attention 2,362,368, 24 adapters
    3,559,680, 25 norms 38,400, VQA head 5,993,529.
    """
    C, L, nh = size
    with torch.device("meta"):
        lm = GPT2(GPT2Config(n_layer=L, n_head=nh, n_embd=C))
        vit = CLIPViT(224, 16, 768, 12, 12, 512)
        method = find_method(name)
        model = SeeGPT(vit, lm, method(method.Config(**settings), lm, vit))
    assert sum(p.numel() for p in model.trained().values()) == total


@pytest.mark.parametrize("name, settings, says", [
    ("ituning", dict(first_layer=-1), "--first_layer"), ("ituning", dict(first_layer=3), "0 to 2"),
    ("ituning", dict(width_ratio=0.2), "width"), ("vanilla", dict(heads=5), "heads"),
    ("vcgpt", dict(heads=-1), "heads"), ("vcgpt", dict(n_fusion=0), "n_fusion"),
    ("prefix", dict(prefix_length=0), "prefix_length"), ("prefix", dict(heads=5), "heads"),
    ("prefix", dict(mapper="mlp", tokens="all"), "tokens all"),
    ("dvp", dict(insert_layer=3), "layers 0 to 2"), ("dvp", dict(heads=5), "heads"),
    ("dvp", dict(adapter=33), "adapter"),
    ("dvp", dict(readout="head", answers=["x"]), "two answers or more")])
def test_settings_that_do_not_fit_are_refused(name, settings, says):
    with pytest.raises(UserError, match=says):
        build(name, settings=settings)


def test_the_readme_s_method_is_a_file_of_40_lines_with_flags_of_its_own(mymethod):
    assert len(mymethod.read_text("utf-8").splitlines()) <= 40
    config, = parse(find_method("mymethod").Config, argv=["--scale", "0.5"])
    assert config.scale == 0.5


def test_one_command_finds_what_is_wrong_with_a_method_of_one_s_own(mymethod, tmp_path):
    """One that stores GPT-2, which would be saved with it, and that reads future tokens."""
    text = mymethod.read_text("utf-8").replace("__init__()", "__init__(); self.lm = lm")
    text = text.replace("x, ctx, state):", "x, ctx, state):\n        x = x + x.mean(1)[:, None]")
    (tmp_path / "mine.py").write_text(text, "utf-8")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", ROOT / "tests/test_methods.py",
                           "--method", "mine"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "passed" in done.stdout
    failed = re.findall(r"^FAILED .*::test_(\w+)", done.stdout, re.M)
    assert {"what_is_frozen_stays_and_all_that_is_trained_learns",
            "no_later_token_changes_an_earlier_logit"} <= {*failed}
