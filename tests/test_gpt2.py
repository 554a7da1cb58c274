"""GPT-2: the same numbers as transformers, from every kind of file; a cache that changes nothing.

golden/gpt2 is a tiny GPT-2 written by transformers 5, with noise on every parameter, and the logits
it gives there (make_golden.py). parity/ compares live, where transformers is installed.
"""

import json
import math

import numpy as np
import pytest
import torch

import gpt2
import weights
from lib.cli import UserError
from gpt2 import GPT2, MLP, Block, Cache, GPT2Config, draw
from layouts import (GOLDEN, GPT2_LAYOUTS, bare, gpt2_half, gpt2_public_alone, perturb,
                     write_config, write_safetensors)

TOLERANCE = 1e-4  # of logits, float32, as everywhere in these comparisons
FOLDER = GOLDEN / "gpt2"
CONFIG = json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(scope="module")
def theirs():
    return weights.read(FOLDER)


@pytest.fixture(scope="module")
def expected():
    return weights.read(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def model():
    return GPT2.from_pretrained(FOLDER)


def random_model(seed=0, **sizes):
    """A small model that is not square: 61 tokens, 33 positions, width 24."""
    torch.manual_seed(seed)
    small = dict(vocab_size=61, n_positions=33, n_layer=3, n_head=3, n_embd=24)
    return perturb(GPT2(GPT2Config(**{**small, **sizes})), seed, 0.2)


def conv1d(model):
    """A model's tensors as a public file stores them: prefix, and some matrices as (in, out)."""
    return {f"transformer.{k}": t.t().contiguous() if ".c_" in k and t.dim() == 2 else t
            for k, t in model.state_dict().items()}


# ---------------------------------------------------------------------------- the same numbers

@pytest.mark.parametrize("layout", GPT2_LAYOUTS)
def test_logits_equal_those_of_transformers(layout, theirs, expected, tmp_path):
    """The same weights in six kinds of file; each must give the logits that transformers gave."""
    model = GPT2.from_pretrained(GPT2_LAYOUTS[layout](tmp_path / "it", theirs, CONFIG))
    logits = model(expected["idx"])
    assert logits.shape == (2, 13, CONFIG["vocab_size"]) and logits.dtype == torch.float32
    assert expected["logits"].std() > 0.5  # not a comparison of nothing with nothing
    assert (logits - expected["logits"]).abs().max() <= TOLERANCE


def slow_gpt2(tensors, idx, n_head):
    """GPT-2 a second time, for one text: double precision, one query and one head at a time."""
    w = {k: t.double().numpy() for k, t in bare(tensors).items()}
    C = w["wte.weight"].shape[1]
    hs = C // n_head

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv1d(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][idx] + w["wpe.weight"][:len(idx)]
    for l in range(sum(k.endswith("ln_1.bias") for k in w)):
        qkv, y = conv1d(norm(x, f"h.{l}.ln_1"), f"h.{l}.attn.c_attn"), np.zeros_like(x)
        for t in range(len(idx)):
            for n in range(n_head):
                part = slice(n * hs, (n + 1) * hs)
                q, k, v = qkv[t, part], qkv[:t + 1, C:2 * C][:, part], qkv[:t + 1, 2 * C:][:, part]
                att = np.exp(k @ q / math.sqrt(hs))
                y[t, part] = att / att.sum() @ v
        x = x + conv1d(y, f"h.{l}.attn.c_proj")
        h = conv1d(norm(x, f"h.{l}.ln_2"), f"h.{l}.mlp.c_fc")
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h ** 3)))
        x = x + conv1d(h, f"h.{l}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def test_logits_equal_a_slow_version_in_numpy(theirs, expected, model):
    idx = expected["idx"][0]
    slow = torch.from_numpy(slow_gpt2(theirs, idx, CONFIG["n_head"]))
    assert (slow - expected["logits"][0]).abs().max() <= TOLERANCE  # the slow one is right
    assert (slow - model(idx[None])[0]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("seed, sizes", [
    (0, dict(n_head=2)), (1, dict(n_embd=64, n_head=1)),
    (2, dict(n_embd=64, n_head=1, n_positions=64, vocab_size=64))])
def test_a_lone_public_file_needs_no_config(seed, sizes, tmp_path):
    """Vocabulary, positions, width and layers are shapes; heads are 64 wide, or the metadata tell.
    The last size is square all over: 64 tokens, 64 positions, width 64."""
    ours = random_model(seed, **sizes)
    tensors = conv1d(ours)
    path = gpt2_public_alone(tmp_path, tensors, vars(ours.config))
    assert path.is_file()
    loaded = GPT2.from_pretrained(path)
    assert loaded.config == ours.config
    idx = torch.randint(61, (9,))
    slow = torch.from_numpy(slow_gpt2(tensors, idx, ours.config.n_head))
    assert (loaded(idx[None])[0] - slow).abs().max() <= TOLERANCE


def test_the_data_of_the_public_file_are_not_aligned(theirs, tmp_path):
    """gpt2's own header has 14,283 bytes: the numbers begin at an odd address, no view will do."""
    path = gpt2_public_alone(tmp_path, theirs, CONFIG)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 2 == 1
    GPT2.from_pretrained(path)


def test_the_activation_is_the_tanh_form_of_gelu():
    """At 1.0 the tanh form is 0.84119, the exact one 0.84134: near enough to go unnoticed."""
    mlp = MLP(GPT2Config(n_embd=1))
    torch.nn.init.zeros_(mlp.c_fc.weight), torch.nn.init.ones_(mlp.c_fc.bias)
    torch.nn.init.constant_(mlp.c_proj.weight, 0.25), torch.nn.init.zeros_(mlp.c_proj.bias)
    assert mlp(torch.zeros(1)).item() == pytest.approx(0.841192, abs=2e-6)
    assert torch.nn.functional.gelu(torch.ones(())).item() == pytest.approx(0.841345, abs=2e-6)


def test_every_parameter_is_seen_by_the_comparison(theirs, expected, tmp_path):
    """Each tensor of the file in turn, a square one transposed and any other one turned round along
    its last axis, must move the logits far beyond the tolerance. So a forgotten transpose of
    c_proj, a swapped norm or a lost bias could not hide behind it. (Of the key's bias softmax
    knows nothing; the queries' and values' thirds of c_attn.bias are seen.)"""
    for name, t in theirs.items():
        square = t.dim() == 2 and t.shape[0] == t.shape[1]
        spoilt = {**theirs, name: t.t() if square else t.flip(-1)}
        path = write_safetensors(tmp_path / "model.safetensors", spoilt, {"n_head": "3"})
        change = (GPT2.from_pretrained(path)(expected["idx"]) - expected["logits"]).abs().max()
        assert change > 100 * TOLERANCE, name


def test_half_precision_files_become_float32_in_eval_mode(theirs, expected, tmp_path):
    model = GPT2.from_pretrained(gpt2_half(tmp_path, theirs, CONFIG))
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    difference = (model(expected["idx"]) - expected["logits"]).abs().max()
    assert TOLERANCE < difference < 0.05  # rounded, not broken


@pytest.mark.parametrize("name, n_layer, n_head, n_embd, count", [
    ("distilgpt2", 6, 12, 768, 81_912_576), ("gpt2", 12, 12, 768, 124_439_808),
    ("gpt2-medium", 24, 16, 1024, 354_823_168), ("gpt2-large", 36, 20, 1280, 774_030_080),
    ("gpt2-xl", 48, 25, 1600, 1_557_611_200)])
def test_the_public_sizes_count_the_published_parameters(name, n_layer, n_head, n_embd, count):
    with torch.device("meta"):  # shapes without numbers
        model = GPT2(GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd))
    assert sum(p.numel() for p in model.parameters()) == count
    assert name != "gpt2" or vars(GPT2Config()) == vars(model.config)  # the default is the smallest


def test_a_new_model_starts_as_the_paper_says():
    """GPT-2 paper, 2.3: std 0.02, and 0.02 / sqrt(2 L) where a layer adds to the residual stream.
    With 8 layers that is 0.005. A new model knows nothing: its loss is ln V."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(500, 64, n_layer=8, n_head=4, n_embd=128))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.h[0].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for proj in (model.h[3].attn.c_proj, model.h[3].mlp.c_proj):
        assert proj.weight.std().item() == pytest.approx(0.005, rel=0.03)
    idx = torch.randint(500, (4, 64))
    loss = torch.nn.functional.cross_entropy(model(idx)[:, :-1].flatten(0, 1), idx[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(500), abs=0.1)


# ---------------------------------------------------------------------------- wrong files

def load(tmp_path, tensors, config=CONFIG):
    write_safetensors(tmp_path / "model.safetensors", tensors)
    return GPT2.from_pretrained(write_config(tmp_path, config))


def test_a_missing_tensor_is_named(theirs, tmp_path):
    for name in theirs:
        short = name.removeprefix("transformer.")
        complaint = "no wte.weight and wpe.weight" if short[0] == "w" else f"{short} is missing"
        with pytest.raises(UserError, match=complaint):
            load(tmp_path, {k: t for k, t in theirs.items() if k != name})


@pytest.mark.parametrize("extra", ["h.0.attn.rotary.inv_freq", "transformer.h.1.ln_3.weight",
                                   "value_head.weight"])
def test_an_unknown_tensor_is_named_and_not_skipped(extra, theirs, tmp_path):
    with pytest.raises(UserError, match=f"{extra.removeprefix('transformer.')} is unknown"):
        load(tmp_path, {**theirs, extra: torch.zeros(3)})


def test_a_tensor_of_the_wrong_shape_is_named(theirs, tmp_path):
    """One axis too many, all in one row, one row too many. Vocabulary, positions and width are read
    off wte and wpe, so of a wte of another width it is the others that are called wrong."""
    for name, t in theirs.items():
        wrong = [torch.zeros(*t.shape, 2), torch.zeros(t.numel(), 1)]
        if "wpe" not in name:
            wrong.append(torch.zeros(len(t) + 1, *t.shape[1:]))
        for shape in wrong if "wte" not in name else wrong[:1]:
            with pytest.raises(UserError, match=name.removeprefix("transformer.")):
                load(tmp_path, {**theirs, name: shape})
    with pytest.raises(UserError, match=r"wpe.weight is \(40, 24\), not \(40, 21\)"):
        load(tmp_path, {**theirs, "transformer.wte.weight": torch.zeros(48, 21)})


def test_a_matrix_that_was_transposed_already_is_refused_unless_it_is_square(theirs, tmp_path):
    name = "transformer.h.1.mlp.c_fc.weight"
    with pytest.raises(UserError, match=r"h.1.mlp.c_fc.weight is \(24, 96\), not \(96, 24\)"):
        load(tmp_path, {**theirs, name: theirs[name].t()})


def test_an_output_matrix_of_its_own_is_refused(theirs, tmp_path):
    wte = theirs["transformer.wte.weight"]
    load(tmp_path, {**theirs, "lm_head.weight": wte.clone()})
    other = wte.clone()
    other[5, 7] += 1e-3
    with pytest.raises(UserError, match="lm_head.weight differs from wte.weight"):
        load(tmp_path, {**theirs, "lm_head.weight": other})


def test_a_captioner_with_cross_attention_is_refused(theirs, tmp_path):
    extra = {"transformer.h.0.crossattention.q_attn.weight": torch.zeros(24, 24),
             "transformer.h.0.ln_cross_attn.weight": torch.zeros(24)}
    with pytest.raises(UserError, match="cross-attention"):
        load(tmp_path, {**theirs, **extra})


@pytest.mark.parametrize("key, value", [
    ("activation_function", "gelu"), ("activation_function", "relu"), ("layer_norm_epsilon", 1e-12),
    ("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True)])
def test_a_config_that_asks_for_other_mathematics_is_refused(key, value, theirs, tmp_path):
    with pytest.raises(UserError, match=key):
        load(tmp_path, theirs, {**CONFIG, key: value})


def test_heads_that_do_not_divide_the_width_are_refused(theirs, tmp_path):
    with pytest.raises(UserError, match="width 24 cannot be split into 5 heads"):
        load(tmp_path, theirs, {**CONFIG, "n_head": 5})
    with pytest.raises(UserError, match="cannot be split"):  # alone: 24 is less than a head of 64
        GPT2.from_pretrained(tmp_path / "model.safetensors")


@pytest.mark.parametrize("text", ["", "Entry not found", "[1, 2]"])
def test_a_config_that_is_none_is_refused(text, theirs, tmp_path):
    (write_config(tmp_path, {}) / "config.json").write_text(text)
    write_safetensors(tmp_path / "model.safetensors", theirs)
    with pytest.raises(UserError, match="config.json"):
        GPT2.from_pretrained(tmp_path)


def test_another_model_is_not_taken_for_a_gpt2():
    with pytest.raises(UserError, match="not a GPT-2; it holds logit_scale"):
        GPT2.from_pretrained(GOLDEN / "clip")


# ---------------------------------------------------------------------------- time runs one way

def test_a_later_token_never_changes_an_earlier_logit():
    model = random_model()
    idx = torch.randint(61, (2, 12))
    before = model(idx)
    for t in (1, 5, 11):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % 61
        after = model(changed)
        assert (after[:, :t] - before[:, :t]).abs().max() <= 1e-6
        assert (after[:, t:] - before[:, t:]).abs().amax(-1).min() > 1e-3  # all later ones notice


def test_a_batch_gives_what_its_rows_give_alone():
    model = random_model()
    idx = torch.randint(61, (5, 9))
    singles = torch.cat([model(row[None]) for row in idx])
    assert (model(idx) - singles).abs().max() <= 1e-5


def test_a_text_longer_than_the_positions_is_refused():
    model = random_model()
    model(torch.zeros(1, 33, dtype=torch.int64))
    with pytest.raises(UserError, match="34 tokens is too long: this GPT-2 has 33"):
        model(torch.zeros(1, 34, dtype=torch.int64))
    with pytest.raises(UserError, match="too long"):
        model.generate(torch.zeros(1, 30, dtype=torch.int64), 5)


# ---------------------------------------------------------------------------- the cache

@pytest.mark.parametrize("pieces", [(10,), (1,) * 10, (4, 6), (7, 1, 1, 1), (1, 5, 4), (9, 1)])
def test_a_text_fed_to_the_cache_in_pieces_gives_the_logits_of_the_whole(pieces):
    """Positions, mask and keys must all know how much came before. With pieces (4, 6) the sixth new
    token sees 10 keys, the first new one 5 of them."""
    model = random_model()
    idx = torch.randint(61, (3, 10))
    cache = Cache(3, 10)
    with torch.no_grad():
        logits = torch.cat([model(piece, cache) for piece in idx.split(pieces, 1)], 1)
        assert (logits - model(idx)).abs().max() <= 1e-5
    assert cache.len == [10] * 3


@pytest.mark.parametrize("how", [dict(temperature=0), dict(temperature=0.7),
                                 dict(temperature=1.0, top_k=5), dict(temperature=1.0, top_p=0.5)])
def test_cached_generation_equals_uncached(how):
    """The same 20 tokens, greedy or drawn with the same dice, whether or not the past is kept."""
    model = random_model()
    prompt = torch.randint(61, (4, 6))
    written = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        written.append(model.generate(prompt, 20, use_cache=use_cache, **how))
    assert written[0].shape == (4, 26) and torch.equal(written[0][:, :6], prompt)
    assert torch.equal(*written)


def test_temperature_0_takes_the_likeliest_token():
    model = random_model()
    idx = torch.randint(61, (2, 4))
    out = model.generate(idx, 5, temperature=0)
    for t in range(4, 9):
        assert torch.equal(out[:, t], model(out[:, :t])[:, -1].argmax(-1))
    assert torch.equal(out, model.generate(idx, 5, temperature=0.8, top_k=1))


def test_top_p_keeps_the_fewest_tokens_that_sum_to_it():
    """Probabilities .5 .3 .15 .05: for .49 one is enough, .6 needs two; after top_k 2 they are .625 and .375."""
    p = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    kept = lambda **how: set(draw(p.log().repeat(2000, 1), 1.0, **how).tolist())
    torch.manual_seed(0)
    assert kept(top_p=0) == kept(top_p=0.49) == {1}
    assert kept(top_p=0.6) == kept(top_p=0.79) == {1, 3}
    assert kept(top_p=0.81) == {0, 1, 3} and kept() == {0, 1, 2, 3}
    assert kept(top_k=2, top_p=0.6) == {1}


def test_sampling_follows_the_probabilities():
    """4,000 rows of the same prompt: each of the 3 best tokens comes as often as the model says,
    the others cut off and the rest scaled to 1; no other token comes. The best logits are 3.35, 2.08
    and 1.61; halved by temperature 2 they give 51, 27 and 22 per cent."""
    model = random_model(4)
    torch.manual_seed(0)
    out = model.generate(torch.full((4000, 2), 7), 1, temperature=2.0, top_k=3)[:, -1]
    best = (model(torch.full((1, 2), 7))[0, -1] / 2.0).topk(3)
    for token, p in zip(best.indices.tolist(), best.values.softmax(-1).tolist()):
        assert (out == token).float().mean().item() == pytest.approx(p, abs=0.03)
    assert set(out.tolist()) <= set(best.indices.tolist())


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 1], [0, 1, 2], [0, 2, 2]])
def test_reordering_the_cache_equals_reading_again(rows):
    model = random_model()
    idx, new = torch.randint(61, (3, 6)), torch.randint(61, (3, 4))
    cache = Cache(3, 10)
    with torch.no_grad():
        model(idx, cache)
        cache.reorder(rows)
        cached = model(new, cache)
        again = model(torch.cat([idx[rows], new], 1))[:, 6:]
    assert (cached - again).abs().max() <= 1e-5


@pytest.mark.parametrize("rows", [[1, 0, 2, 4, 3, 5], [0, 0, 0, 5, 5, 5], [0, 1, 2, 3, 4, 5]])
def test_beams_share_their_prompt_and_move_within_their_group(rows):
    """Two prompts with three beams each. reorder moves what came after the prompt only."""
    model = random_model()
    idx, first, new = torch.randint(61, (2, 5)), torch.randint(61, (6, 2)), torch.randint(61, (6, 3))
    cache = Cache(3, 10)
    with torch.no_grad():
        model(idx, cache)
        cache.repeat(3)
        model(first, cache)
        cache.reorder(rows)
        cached = model(new, cache)
        texts = torch.cat([idx.repeat_interleave(3, 0), first], 1)
        again = model(torch.cat([texts[rows], new], 1))[:, 7:]
    assert cache.same == [5] * 3 and (cached - again).abs().max() <= 1e-5


def test_generation_goes_on_after_a_reordering():
    model = random_model()
    idx, rows = torch.randint(61, (3, 5)), [2, 2, 0]
    cache, text = Cache(3, 12), idx
    with torch.no_grad():
        for step in range(6):
            nxt = model(text[:, cache.len[0]:], cache)[:, -1].argmax(-1, keepdim=True)
            text = torch.cat([text, nxt], 1)
            if step == 2:
                cache.reorder(rows)
                text = text[rows]
    assert torch.equal(text, model.generate(idx, 6, temperature=0)[rows])


def test_every_layer_has_a_length_of_its_own():
    """A prompt token before the text of layer 1 only: that layer then holds one more than layer 0,
    and a third layer, which is nobody's, holds none."""
    torch.manual_seed(0)
    blocks = [perturb(Block(GPT2Config(n_embd=24, n_head=3)), seed, 0.2) for seed in (1, 2)]
    x, prompt = torch.randn(2, 7, 24), torch.randn(2, 1, 24)
    with torch.no_grad():
        whole = blocks[1](torch.cat([prompt, blocks[0](x)], 1))[:, 1:]
        cache, out = Cache(3, 8), []
        for t in range(0, 7, 3):
            h = blocks[0](x[:, t:t + 3], cache, 0)
            if t == 0:
                out.append(blocks[1](torch.cat([prompt, h], 1), cache, 1)[:, 1:])
            else:
                out.append(blocks[1](h, cache, 1))
    assert cache.len == [7, 8, 0]
    assert (torch.cat(out, 1) - whole).abs().max() <= 1e-5
    cache.repeat(2)  # the empty layer stays empty
    cache.reorder([1, 0, 3, 2])
    assert cache.len == [7, 8, 0] and cache.kv[2] is None


def test_the_cache_is_not_overrun():
    model = random_model()
    cache = Cache(3, 5)
    model(torch.zeros(1, 4, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="made for 5 tokens, not 6"):
        model(torch.zeros(1, 2, dtype=torch.int64), cache)


# ---------------------------------------------------------------------------- the rest

def test_a_model_finds_the_tokenizer_beside_its_weights(model, theirs, tmp_path):
    assert model.eot == model.tokenizer.n_vocab - 1 == model.config.vocab_size - 1
    alone = GPT2.from_pretrained(gpt2_public_alone(tmp_path, theirs, CONFIG))
    (tmp_path / "vocab.json").write_bytes((FOLDER / "vocab.json").read_bytes())
    assert alone.tokenizer.encode_ordinary(" the") == model.tokenizer.encode_ordinary(" the")


def test_the_command_continues_a_text(capsys):
    gpt2.main(gpt2.Config(["a red"], str(FOLDER), new=5, temperature=0.0))
    assert capsys.readouterr().out.startswith("a red")
