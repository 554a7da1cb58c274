"""LLaMA: the same numbers as a slow version written here, from every layout; what GPT-2's cache and
the methods' prompt tokens do to rotary positions. parity/ compares with transformers.
"""

import json
import math

import numpy as np
import pytest
import torch
from layouts import perturb, write_config, write_safetensors
from llama_layouts import (CONFIG, DIVISORS, LAYOUTS, SCALED, gguf, meta, random_tensors,
                           transformers)

import plm.llama
from clip_vit import CLIPViT
from gpt2 import Cache
from ituning import VCGPT, ITuning, Vanilla
from lib.cli import UserError
from model import SeeGPT
from plm.llama import LLaMA, LLaMAConfig, RMSNorm, rotate
from prompts import DVP, Prefix
from weights.tokenizers import EOT, byte_symbols

UNTIED = {"tie_word_embeddings": False}
CHANGES = {"tied": {}, "untied": UNTIED, "no groups": {"num_key_value_heads": 4},
           "one key head, scaled": {"num_key_value_heads": 1, "rope_parameters": SCALED}}


def random_model(seed=0, **sizes):
    torch.manual_seed(seed)
    small = dict(vocab_size=61, n_positions=33, n_layer=3, n_head=4, n_kv_head=2, n_embd=24,
                 head_size=8, n_inner=40, rope_theta=100.0)
    model = LLaMA(LLaMAConfig(**{**small, **sizes}))
    return perturb(model, seed, 0.2).requires_grad_(False)


def slow_logits(tensors, config, ids):
    """The model as the papers write it, token after token, in numpy: a head's neighbours 2i, 2i + 1
    are one complex number, which position p turns by p * freq_i. Meta's names and order."""
    t = {k: v.double().numpy() for k, v in tensors.items()}
    C, hs = config["hidden_size"], config["head_dim"]
    nh, kv = config["num_attention_heads"], config["num_key_value_heads"]
    rope, eps = config["rope_parameters"], config["rms_norm_eps"]
    freq = rope["rope_theta"] ** (-np.arange(0, hs, 2) / hs)
    freq = freq / DIVISORS if rope["rope_type"] == "llama3" else freq
    norm = lambda x, name: x / np.sqrt((x * x).sum() / C + eps) * t[f"{name}.weight"]
    turned = lambda y, p: (y.reshape(-1, hs // 2, 2) @ [1, 1j]) * np.exp(1j * p * freq)
    xs = [t["tok_embeddings.weight"][i] for i in ids]
    for l in range(config["num_hidden_layers"]):
        w = lambda name: t[f"layers.{l}.{name}.weight"]
        hidden = [norm(x, f"layers.{l}.attention_norm") for x in xs]
        keys = [turned(w("attention.wk") @ h, p) for p, h in enumerate(hidden)]
        values = [(w("attention.wv") @ h).reshape(kv, hs) for h in hidden]
        for p, h in enumerate(hidden):
            q, out = turned(w("attention.wq") @ h, p), []
            for head in range(nh):
                g = head * kv // nh
                scores = [(q[head] @ k[g].conj()).real / math.sqrt(hs) for k in keys[:p + 1]]
                att = np.exp(scores) / np.exp(scores).sum()
                out.append(sum(a * v[g] for a, v in zip(att, values)))
            xs[p] = xs[p] + w("attention.wo") @ np.concatenate(out)
            h = norm(xs[p], f"layers.{l}.ffn_norm")
            gate = w("feed_forward.w1") @ h
            gate = gate / (1 + np.exp(-gate))
            xs[p] = xs[p] + w("feed_forward.w2") @ (gate * (w("feed_forward.w3") @ h))
    head = t.get("output.weight", t["tok_embeddings.weight"])
    return torch.tensor(np.array([head @ norm(x, "norm") for x in xs]))


def furthest(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# ---------------------------------------------------------------------------- the same numbers

@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", CHANGES)
def test_logits_equal_the_slow_version_from_every_layout(layout, change, tmp_path):
    config = {**CONFIG, **CHANGES[change]}
    tensors, idx = random_tensors(config), torch.randint(61, (1, 20))
    model = LLaMA.from_pretrained(LAYOUTS[layout](tmp_path / "it", tensors, config))
    expected = slow_logits(tensors, config, idx[0])
    assert furthest(model(idx)[0], expected) <= 1e-4 and expected.std() > 1
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    c = model.config
    assert (c.n_kv_head, c.tied, c.n_positions) == (
        config["num_key_value_heads"], config["tie_word_embeddings"], 33)


def test_scaled_frequencies_and_the_order_of_rows_matter(tmp_path):
    """What the test above would not see if its numbers were too small."""
    tensors, idx = random_tensors(CONFIG), torch.randint(61, (1, 33))
    logits = slow_logits(tensors, CONFIG, idx[0])
    scaled = slow_logits(tensors, {**CONFIG, "rope_parameters": SCALED}, idx[0])
    assert furthest(scaled, logits) > .01
    model = LLaMA.from_pretrained(transformers(tmp_path, tensors, CONFIG))
    for key, t in random_tensors(CONFIG).items():
        if key.endswith("wk.weight"):
            model.h[int(key.split(".")[1])].attn.k_proj.weight.data = t
    assert furthest(model(idx)[0], logits) > .1


@pytest.mark.parametrize("name, sizes, count", [
    ("SmolLM2-135M", {}, 134_515_008),
    ("LLaMA-7B", dict(vocab_size=32000, n_layer=32, n_head=32, n_kv_head=32, n_embd=4096,
                      head_size=128, n_inner=11008, tied=False), 6_738_415_616),
    ("TinyLlama-1.1B", dict(vocab_size=32000, n_layer=22, n_head=32, n_kv_head=4, n_embd=2048,
                            n_inner=5632, tied=False), 1_100_048_384),
    ("Llama-3.2-1B", dict(vocab_size=128256, n_layer=16, n_head=32, n_kv_head=8, n_embd=2048,
                          n_inner=8192), 1_235_814_400)])
def test_the_public_sizes_count_the_published_parameters(name, sizes, count):
    with torch.device("meta"):
        model = LLaMA(LLaMAConfig(**sizes))
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_norm_makes_the_root_mean_square_1_and_ignores_scale():
    norm, x = RMSNorm(LLaMAConfig(n_embd=24, eps=0.0)), torch.randn(5, 24)
    assert furthest(norm(x).square().mean(-1), torch.ones(5)) < 1e-5
    assert furthest(norm(7 * x), norm(x)) < 1e-5
    assert norm(x.bfloat16()).dtype == torch.float32  # the weight's; x was rounded first


def test_scores_know_distances_alone():
    """q at place a and k at place b give what they give at a + 9 and b + 9."""
    config = LLaMAConfig(head_size=8, rope_theta=100.0)
    q, k = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 6, 8)
    scores = [rotate(q, s, config) @ rotate(k, s, config).mT for s in (0, 9)]
    assert furthest(*scores) < 1e-5 and furthest(scores[0], q @ k.mT) > 0.1
    assert furthest(rotate(q, 0, config)[:, :, 0], q[:, :, 0]) == 0


# ---------------------------------------------------------------------------- the cache

@pytest.mark.parametrize("pieces", [(10,), (1,) * 10, (4, 6), (7, 1, 1, 1)])
def test_a_text_fed_to_the_cache_in_pieces_gives_the_logits_of_the_whole(pieces):
    model, cache, idx = random_model(), Cache(3, 10), torch.randint(61, (3, 10))
    logits = torch.cat([model(piece, cache) for piece in idx.split(pieces, 1)], 1)
    assert furthest(logits, model(idx)) <= 1e-5 and cache.len == [10] * 3
    assert cache.kv[0].shape == (2, 3, 2, 10, 8)  # two heads of keys, not four


def test_a_token_in_front_of_some_layers_takes_a_position_there_with_a_cache_as_without():
    """A prompt from layer 1 on, in one go or with a cache, which is longer there by one place."""
    model, idx, prompt = random_model(), torch.randint(61, (2, 7)), torch.randn(2, 1, 24)

    def read(new, pos=0, cache=None):
        x = model.embed(new, pos)
        for l, layer in enumerate(model.h):
            x = torch.cat([prompt, x], 1) if l == 1 and pos == 0 else x
            x = layer(x, cache, l)
        return model.head(x[:, pos == 0:])

    cache = Cache(3, 8)
    parts = [read(idx[:, :5], 0, cache), read(idx[:, 5:6], 5, cache), read(idx[:, 6:], 6, cache)]
    assert furthest(torch.cat(parts, 1), read(idx)) < 1e-5 and cache.len == [7, 8, 8]
    assert furthest(read(idx), model(idx)) > 1e-2


def test_generation_equals_reading_the_whole_text_again_and_stops_at_the_last_position():
    model, slow = random_model(), torch.randint(61, (4, 6))
    written = model.generate(slow, 20, temperature=0)
    for _ in range(20):
        slow = torch.cat([slow, model(slow)[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, slow)
    with pytest.raises(UserError, match="34 tokens is too long.* 33 positions"):
        model(torch.zeros(1, 34, dtype=torch.int64))


# ---------------------------------------------------------------------------- the methods

@pytest.mark.parametrize("method, config, same", [
    (ITuning, dict(), True), (Vanilla, dict(gate=True), True), (VCGPT, dict(n_fusion=1), False),
    (Prefix, dict(prefix_length=2, mapper_layers=1, heads=2), False),
    *((DVP, dict(insert_layer=K, adapter=4, heads=2, readout="lm"), False) for K in (0, 2))],
    ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_every_method_runs_on_it_as_on_gpt2(method, config, same, tied, monkeypatch):
    """Cached greedy generation equals reading again; and step 0 is LLaMA where it should be."""
    lm = random_model(tied=tied)
    monkeypatch.setattr(LLaMA, "eot", 0)
    monkeypatch.setattr(LLaMA, "tokenizer", type("T", (), {
        "n_vocab": 61, "eot_token": 0, "encode_ordinary": lambda self, s: [int(c) for c in s],
        "decode": lambda self, ids: " ".join(map(str, ids))})())
    torch.manual_seed(0)
    vit = CLIPViT(32, 8, 16, 1, 2, None)
    model = SeeGPT(vit, lm, method(method.Config(**config), lm, vit)).eval()
    with torch.no_grad():
        for p in model.trained().values():
            p.add_(torch.randn_like(p), alpha=0.0 if same else 0.1)
    images = torch.randn(2, 3, 32, 32)
    idx = torch.tensor([[0, 5, 1, 2]] * 2)
    logits, _ = model(images, idx, condition_len=torch.tensor([4, 4]))
    assert furthest(logits, lm(idx)) < 1e-5 if same else furthest(logits, lm(idx)) > 1e-3
    written = model.generate(images, "512", beam=1, max_new_tokens=5, with_ids=True)
    for i, (_, ids) in enumerate(written):
        row = idx[:1]
        for token in ids:
            length = torch.tensor([4])
            assert model(images[i:i + 1], row, condition_len=length)[0][0, -1].argmax() == token
            row = torch.cat([row, torch.tensor([[token]])], 1)


# ---------------------------------------------------------------------------- wrong files

Q1 = "model.layers.1.self_attn.q_proj.weight"


def load(folder, change, config):
    """transformers' file, with tensors replaced or (None) left out."""
    transformers(folder, random_tensors(CONFIG), CONFIG)
    tensors = {**plm.llama.read_llama(folder / "model.safetensors")[0]}
    tensors = {key if key == "lm_head.weight" else f"model.{key}": t for key, t in tensors.items()}
    tensors = {k: t for k, t in {**tensors, **change}.items() if t is not None}
    write_safetensors(folder / "model.safetensors", tensors)
    return LLaMA.from_pretrained(write_config(folder, {**CONFIG, **config}))


@pytest.mark.parametrize("change, config, complaint", [
    ({Q1: None}, {}, "h.1.attn.q_proj.weight is missing"),
    ({Q1: torch.zeros(32, 23)}, {}, r"h.1.attn.q_proj.weight is \(32, 23\), not \(32, 24\)"),
    ({Q1: torch.zeros(31, 24)}, {}, "h.1.attn.q_proj.weight is"),
    ({"model.layers.1.self_attn.q_proj.bias": torch.zeros(32)}, {}, "q_proj.bias is unknown"),
    ({"model.layers.3.mlp.up_proj.weight": torch.zeros(3)}, {}, "4 layers .* says 3 layers"),
    *(({name: torch.ones(24)}, {}, "twice, under two names") for name in
      ("norm.weight", "ln_f.weight", "blk.1.ffn_norm.weight")),
    ({"rope_freqs.weight": torch.ones(4)}, {}, "rope_freqs.weight is unknown"),
    ({"model.norm.weight": None}, {}, "ln_f.weight is missing"),
    ({"model.embed_tokens.weight": None}, {}, "no matrix wte.weight"),
    ({"lm_head.weight": torch.zeros(61, 24)}, {}, "lm_head.weight differs"),
    ({}, {"tie_word_embeddings": False}, "lm_head.weight is missing"),
    ({}, {"model_type": "bert"}, "model_type = 'bert'"),
    ({}, {"attention_bias": True}, "attention_bias"),
    ({}, {"num_hidden_layers": 10**9}, "says 1000000000 layers"),
    ({}, {"num_attention_heads": 5}, "does not fit|says"),
    ({}, {"num_attention_heads": "4"}, "num_attention_heads is '4'"),
    ({}, {"num_attention_heads": None}, "num_attention_heads is None"),
    ({}, {"num_key_value_heads": 3}, "says 3 layers, 4 heads"),
    ({}, {"head_dim": 6}, "of size 6"),
    ({}, {"rms_norm_eps": -1.0}, "rms_norm_eps"),
    ({}, {"rope_parameters": {"rope_type": "yarn"}}, "'yarn'"),
    ({}, {"rope_parameters": "yarn"}, "'yarn'"),
    ({}, {"rope_parameters": {**SCALED, "factor": None}}, "factor is None")])
def test_what_is_no_llama_is_refused(change, config, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint) as e:
        load(tmp_path, change, config)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("notes, complaint", [
    ({"general.architecture": "qwen2"}, "'qwen2', only 'llama'"),
    ({"general.architecture": 3}, "is 3, only"),
    ({"llama.rope.scaling.type": "yarn"}, "'yarn'"),
    ({"llama.attention.head_count": [4, 4, 4]}, "num_attention_heads is"),
    ({"llama.attention.head_count": 0}, "num_attention_heads is 0"),
    ({"llama.rope.freq_base": math.inf}, "rope_theta is inf"),
    ({"llama.rope.dimension_count": 4}, "of size 4")])
def test_a_gguf_of_something_else_is_refused(notes, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        LLaMA.from_pretrained(gguf(tmp_path, random_tensors(CONFIG), CONFIG, notes=notes))


def test_other_accidents_of_a_folder_are_told(tmp_path):
    tensors = random_tensors(CONFIG)
    with pytest.raises(UserError, match="no config.json beside it"):
        folder = transformers(tmp_path / "bare", tensors, CONFIG)
        (folder / "config.json").unlink()
        LLaMA.from_pretrained(folder)
    folder = meta(tmp_path / "meta", tensors, CONFIG)
    (folder / "consolidated.01.pth").touch()
    with pytest.raises(UserError, match="a piece of every matrix"):
        LLaMA.from_pretrained(folder)
    (folder / "params.json").unlink()
    with pytest.raises(UserError, match="params.json: no such file"):
        LLaMA.from_pretrained(folder)
    two = gguf(tmp_path / "two", tensors, CONFIG)
    (two / "b.gguf").touch()
    with pytest.raises(UserError, match="2 GGUF files"):
        LLaMA.from_pretrained(two)


def test_the_command_continues_a_text(capsys, tmp_path):
    config = {**CONFIG, "vocab_size": 257}
    transformers(tmp_path, random_tensors(config), config)
    vocab = {symbol: i for i, symbol in enumerate([*byte_symbols(), EOT])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    plm.llama.main(plm.llama.Config(["a", "red"], str(tmp_path), new=5))
    assert capsys.readouterr().out.startswith("a red")
