"""GPT-2: the same numbers as transformers, from every kind of file; a cache that changes nothing.

golden/gpt2 is a tiny GPT-2 written by transformers 5, with noise on every parameter, and the logits
it gives there (make_golden.py). parity/ compares live, where transformers is installed.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from layouts import (GOLDEN, GPT2_LAYOUTS, gpt2_half, gpt2_public_alone, perturb, write_config,
                     write_safetensors)

import gpt2
from gpt2 import GPT2, Cache, GPT2Config
from lib.cli import UserError
from lib.decoding import sample_token
from weights.reading import read

FOLDER = GOLDEN / "gpt2"
CONFIG = json.loads((FOLDER / "config.json").read_text())
THEIRS, EXPECTED = read(FOLDER), read(FOLDER / "expected.safetensors")
WTE, WPE = "transformer.wte.weight", "transformer.wpe.weight"


def random_model(seed=0, **sizes):
    """A small model that is not square: 61 tokens, 33 positions, width 24."""
    torch.manual_seed(seed)
    small = dict(vocab_size=61, n_positions=33, n_layer=3, n_head=3, n_embd=24)
    return perturb(GPT2(GPT2Config(**{**small, **sizes})), seed, 0.2).requires_grad_(False)


def load(folder, tensors, config=CONFIG):
    write_safetensors(folder / "model.safetensors", tensors)
    return GPT2.from_pretrained(write_config(folder, config))


def furthest(logits, expected):
    assert logits.shape == expected.shape
    return (logits - expected).abs().max().item()


# ---------------------------------------------------------------------------- the same numbers

@pytest.mark.parametrize("layout, tolerance", [
    *((layout, 1e-4) for layout in GPT2_LAYOUTS.values()), (gpt2_half, 0.05)])  # rounded to 16 bits
def test_logits_equal_those_of_transformers(layout, tolerance, tmp_path):
    """The same weights in all kinds of file; each must give the logits that transformers gave. (The
    exact GELU in place of its tanh form would be 4e-4 away.)"""
    model = GPT2.from_pretrained(layout(tmp_path / "it", THEIRS, CONFIG))
    logits = model(EXPECTED["idx"])
    assert furthest(logits, EXPECTED["logits"]) <= tolerance and logits.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training


@pytest.mark.parametrize("seed, sizes", [
    (0, dict(n_head=2)), (1, dict(n_embd=64, n_head=1)),
    (2, dict(n_embd=64, n_head=1, n_positions=64, vocab_size=64))])
def test_a_lone_public_file_needs_no_config(seed, sizes, tmp_path):
    """Vocabulary, positions, width and layers are shapes; heads are 64 wide, or the metadata tell.
    As in gpt2's own file, whose header has 14,283 bytes, the numbers begin at an odd address."""
    ours = random_model(seed, **sizes)
    tensors = {f"transformer.{k}": t.t().contiguous() if k.endswith(gpt2.CONV1D) else t
               for k, t in ours.state_dict().items()}
    path = gpt2_public_alone(tmp_path, tensors, vars(ours.config))
    assert int.from_bytes(path.read_bytes()[:8], "little") % 2 == 1
    loaded = GPT2.from_pretrained(path)
    assert loaded.config == ours.config
    idx = torch.randint(61, (2, 9))
    assert furthest(loaded(idx), ours(idx)) <= 1e-5


@pytest.mark.parametrize("name, n_layer, n_head, n_embd, count", [
    ("distilgpt2", 6, 12, 768, 81_912_576), ("gpt2", 12, 12, 768, 124_439_808),
    ("gpt2-medium", 24, 16, 1024, 354_823_168), ("gpt2-large", 36, 20, 1280, 774_030_080),
    ("gpt2-xl", 48, 25, 1600, 1_557_611_200)])
def test_the_public_sizes_count_the_published_parameters(name, n_layer, n_head, n_embd, count):
    with torch.device("meta"):  # shapes without numbers
        model = GPT2(GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd))
    assert sum(p.numel() for p in model.parameters()) == count
    assert name != "gpt2" or GPT2Config() == model.config  # the default is the smallest


def test_a_new_model_starts_as_the_paper_says():
    """GPT-2 paper, 2.3: std 0.02, and 0.02 / sqrt(2 L) where a layer adds to the residual stream.
    With 8 layers that is 0.005."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(500, 64, n_layer=8, n_head=4, n_embd=128))
    layer = model.h[3]
    for part, std in ((model.wte, .02), (layer.attn.c_attn, .02), (layer.attn.c_proj, .005),
                      (layer.mlp.c_proj, .005)):
        assert part.weight.std().item() == pytest.approx(std, rel=0.03)


# ---------------------------------------------------------------------------- wrong files

def test_a_missing_tensor_and_one_of_the_wrong_shape_are_named(tmp_path):
    """One axis too many, all in one row, one row too many. wte and wpe tell the sizes."""
    for name, t in THEIRS.items():
        short, rest = name.removeprefix("transformer."), {**THEIRS}
        del rest[name]
        wrong = [(*t.shape, 2), (t.numel(), 1), (len(t) + 1, *t.shape[1:])]
        wrong = wrong[:1] if name in (WTE, WPE) else wrong
        for tensors in (rest, *({**THEIRS, name: torch.zeros(shape)} for shape in wrong)):
            with pytest.raises(UserError, match=short):
                load(tmp_path, tensors)


C_FC = "transformer.h.1.mlp.c_fc.weight"
CROSS = "transformer.h.0.crossattention.q_attn.weight"


@pytest.mark.parametrize("tensors, config, complaint", [
    ({"h.0.attn.rotary.inv_freq": torch.zeros(3)}, {}, "h.0.attn.rotary.inv_freq is unknown"),
    ({"transformer.h.1.ln_3.weight": torch.zeros(3)}, {}, "h.1.ln_3.weight is unknown"),
    ({"value_head.weight": torch.zeros(3)}, {}, "value_head.weight is unknown"),
    ({WTE: torch.zeros(48, 21)}, {"n_head": 1}, r"wpe.weight is \(40, 24\), not \(40, 21\)"),
    ({C_FC: THEIRS[C_FC].t()}, {}, r"h.1.mlp.c_fc.weight is \(24, 96\), not \(96, 24\)"),
    ({"lm_head.weight": THEIRS[WTE] + 1e-3}, {}, "lm_head.weight differs from wte.weight"),
    ({CROSS: torch.zeros(24, 24)}, {}, "cross-?attention"),
    # names, sizes and numbers of heads that only a damaged or a hostile file has
    ({"transformer.h.x.ln_1.weight": torch.zeros(3)}, {}, "h.x does not fit"),
    ({"transformer.h.99999999.ln_1.weight": torch.zeros(3)}, {}, "h.99999999 does not fit"),
    ({WTE: torch.tensor(1.0)}, {}, "no matrix wte.weight"),
    ({WTE: torch.zeros(0, 2**40)}, {}, "wte.weight has no numbers"),
    ({WPE: torch.zeros(0, 24)}, {}, "wpe.weight has no numbers"),
    ({}, {"n_head": "x"}, "cannot be split into x heads"),
    ({}, {"n_head": float("inf")}, "cannot be split into inf heads"),
    ({}, {"n_head": 10**30}, "cannot be split into 1000"),
    ({}, {"activation_function": "gelu"}, "activation_function"),
    ({}, {"layer_norm_epsilon": 1e-12}, "layer_norm_epsilon"),
    ({}, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ({}, {"n_head": 5}, "width 24 cannot be split into 5 heads"),
    ({}, {"n_head": 0}, "cannot be split into 0 heads"),  # 24 is less than one head of 64
    ({}, '{"a":' * 99_999, "config.json"),
    ({}, "", "config.json"), ({}, "Entry not found", "config.json"), ({}, [1, 2], "config.json")])
def test_what_is_no_gpt2_is_refused(tensors, config, complaint, tmp_path):
    config = {**CONFIG, **config} if isinstance(config, dict) else config
    write_config(tmp_path, config)
    if isinstance(config, str):
        (tmp_path / "config.json").write_text(config)
    write_safetensors(tmp_path / "model.safetensors", {**THEIRS, **tensors})
    with pytest.raises(UserError, match=complaint):
        GPT2.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------- the cache

def test_a_text_longer_than_the_positions_is_refused():
    model = random_model()
    model(torch.zeros(1, 33, dtype=torch.int64))
    with pytest.raises(UserError, match="34 tokens is too long.* 33 positions"):
        model(torch.zeros(1, 34, dtype=torch.int64))
    with pytest.raises(UserError, match="too long"):
        model.generate(torch.zeros(1, 30, dtype=torch.int64), 5)


@pytest.mark.parametrize("pieces", [(10,), (1,) * 10, (4, 6), (7, 1, 1, 1), (1, 5, 4)])
def test_a_text_fed_to_the_cache_in_pieces_gives_the_logits_of_the_whole(pieces):
    """Positions, mask and keys must all know how much came before. With pieces (4, 6) the sixth new
    token sees 10 keys, the first new one 5 of them."""
    model, cache = random_model(), Cache(3, 10)
    idx = torch.randint(61, (3, 10))
    logits = torch.cat([model(piece, cache) for piece in idx.split(pieces, 1)], 1)
    assert furthest(logits, model(idx)) <= 1e-5 and cache.len == [10] * 3
    with pytest.raises(ValueError, match="made for 10 tokens, not 11"):
        model(idx[:, :1], cache)


@pytest.mark.parametrize("how", [dict(temperature=0), dict(temperature=1.0, top_k=5)])
def test_generation_equals_reading_the_whole_text_again_for_each_token(how):
    """20 tokens, greedy or drawn with the same dice."""
    model, prompt = random_model(), torch.randint(61, (4, 6))
    torch.manual_seed(1)
    written = model.generate(prompt, 20, **how)
    torch.manual_seed(1)
    slow = prompt
    for _ in range(20):
        logits = model(slow)[:, -1]
        token = sample_token(logits, **how) if how["temperature"] else logits.argmax(-1)
        slow = torch.cat([slow, token[:, None]], 1)
    assert torch.equal(written, slow)


@pytest.mark.parametrize("how, expected", [
    (dict(), [.15, .5, .05, .3]), (dict(top_p=0), [0, 1, 0, 0]), (dict(top_p=.49), [0, 1, 0, 0]),
    (dict(top_p=.6), [0, .625, 0, .375]), (dict(top_p=.81), [.158, .526, 0, .316]),
    (dict(top_k=2), [0, .625, 0, .375]), (dict(top_k=2, top_p=.6), [0, 1, 0, 0]),
    (dict(temperature=2, top_k=2), [0, .564, 0, .436])])
def test_tokens_are_drawn_as_often_as_the_model_says(how, expected):
    """Of .5 .3 .15 .05 the first alone sums to .49, .6 needs two, which are then .625 and .375;
    temperature 2 takes the roots of the probabilities."""
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().repeat(4000, 1)
    torch.manual_seed(0)
    drawn = sample_token(logits, **{"temperature": 1.0, **how}).bincount(minlength=4) / 4000
    assert furthest(drawn, torch.tensor(expected)) < 0.03
    assert drawn.nonzero().tolist() == torch.tensor(expected).nonzero().tolist()


@pytest.mark.parametrize("k, rows", [
    (1, [1, 0]), (1, [1, 1]), (3, [1, 0, 2, 4, 3, 5]), (3, [0, 0, 0, 5, 5, 5]),
    (3, [0, 1, 2, 3, 4, 5])])
def test_reordering_the_cache_equals_reading_again(k, rows):
    """Two prompts with k beams each, which share their prompt and move within their group."""
    model, cache = random_model(), Cache(3, 10)
    prompt = torch.randint(61, (2, 5))
    first, new = torch.randint(61, (2 * k, 2)), torch.randint(61, (2 * k, 3))
    model(prompt, cache)
    if k > 1:
        cache.repeat(k)
    model(first, cache)
    cache.reorder(rows)
    texts = torch.cat([prompt.repeat_interleave(k, 0), first], 1)[rows]
    again = model(torch.cat([texts, new], 1))[:, 7:]
    assert furthest(model(new, cache), again) <= 1e-5 and cache.shared == [5 * (k > 1)] * 3


# ---------------------------------------------------------------------------- the rest

def test_a_model_finds_the_tokenizer_beside_its_weights(tmp_path):
    """Also where the vocabulary is padded: the end of text is not the last id then."""
    path = gpt2_public_alone(tmp_path, {**THEIRS, WTE: F.pad(THEIRS[WTE], (0, 0, 0, 9))}, CONFIG)
    (tmp_path / "vocab.json").write_bytes((FOLDER / "vocab.json").read_bytes())
    model, padded = GPT2.from_pretrained(FOLDER), GPT2.from_pretrained(path)
    assert padded.eot == model.eot == model.config.vocab_size - 1 == padded.config.vocab_size - 10
    assert padded.tokenizer.encode_ordinary(" the") == model.tokenizer.encode_ordinary(" the")


def test_the_command_continues_a_text(capsys):
    gpt2.main(gpt2.Config(["a", "red"], str(FOLDER), new=5, temperature=0.0))
    assert capsys.readouterr().out.startswith("a red")
