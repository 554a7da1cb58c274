"""Our GPT-2 beside transformers' GPT2LMHeadModel: random weights, noise on every parameter."""

import json

import pytest
import torch

pytest.importorskip("transformers")
from layouts import GPT2_LAYOUTS, gpt2_public, perturb, write_config
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2 import CONFIG, GPT2
from weights.reading import read

TOLERANCE = 1e-4

# Width, positions and vocabulary all differ; the last size is square all over. In the last two
# heads are 64 wide, so that a lone file can do without config.json and metadata.
SIZES = [dict(n_embd=48, n_head=3, n_layer=3, n_positions=29, vocab_size=101),
         dict(n_embd=128, n_head=2, n_layer=2, n_positions=40, vocab_size=97),
         dict(n_embd=64, n_head=1, n_layer=4, n_positions=64, vocab_size=64)]


def build(folder, seed=0, size=SIZES[0], **how):
    """Their model, saved in the folder, and what config.json says there."""
    torch.manual_seed(seed)
    theirs = perturb(GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)), seed)
    theirs.save_pretrained(folder, **how)
    return theirs, json.loads((folder / "config.json").read_text())


@torch.no_grad()
def compare(ours, theirs):
    idx = torch.randint(theirs.config.vocab_size, (2, min(64, theirs.config.n_positions)))
    logits = theirs(idx).logits
    difference = (ours(idx) - logits).abs().max().item()
    print(f"largest difference {difference:.1e}")  # shown by pytest -rP
    assert logits.std() > 0.3 and difference <= TOLERANCE


@pytest.mark.parametrize("layout", GPT2_LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size['n_embd']} wide")
@pytest.mark.parametrize("seed", range(2))
def test_logits_are_equal_from_every_layout(layout, size, seed, tmp_path):
    """The other layouts are written from what save_pretrained wrote."""
    theirs, config = build(tmp_path / "saved", seed, size)
    path = GPT2_LAYOUTS[layout](tmp_path / "it", read(tmp_path / "saved"), config)
    ours = GPT2.from_pretrained(path)
    assert vars(ours.config) == {k: config[k] for k in vars(ours.config)}
    compare(ours, theirs)


@pytest.mark.parametrize("shard, files", [("1GB", 1), ("100KB", 5)])
def test_what_save_pretrained_writes_is_loaded_as_it_is(shard, files, tmp_path):
    theirs, _ = build(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("model*.safetensors"))) == files
    compare(GPT2.from_pretrained(tmp_path), theirs)


def test_our_public_layout_is_one_that_transformers_reads(tmp_path):
    """So that the imitation of the published file, masks and odd header included, is a fair one."""
    theirs, config = build(tmp_path / "saved")
    path = gpt2_public(tmp_path / "public", read(tmp_path / "saved"), config)
    again = GPT2LMHeadModel.from_pretrained(path).eval()
    compare(GPT2.from_pretrained(path), again)
    compare(lambda idx: theirs(idx).logits, again)


@pytest.mark.parametrize("key, value", [
    ("activation_function", "gelu"), ("scale_attn_by_inverse_layer_idx", True),
    ("scale_attn_weights", False), ("layer_norm_epsilon", 1e-2)])
@torch.no_grad()
def test_what_a_config_may_not_say_would_change_the_logits(key, value, tmp_path):
    """What is refused is refused with reason: transformers computes something else then."""
    _, config = build(tmp_path)
    ours, idx = GPT2.from_pretrained(tmp_path), torch.randint(101, (1, 20))
    assert key in CONFIG
    other = GPT2LMHeadModel.from_pretrained(write_config(tmp_path, {**config, key: value})).eval()
    assert (other(idx).logits - ours(idx)).abs().max() > TOLERANCE


def test_greedy_generation_writes_the_same_tokens(tmp_path):
    theirs, _ = build(tmp_path)
    prompt = torch.randint(1, 101, (3, 5))
    written = theirs.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None,
                              pad_token_id=0, attention_mask=torch.ones_like(prompt))
    assert torch.equal(GPT2.from_pretrained(tmp_path).generate(prompt, 20, temperature=0), written)


@pytest.mark.slow
def test_logits_are_equal_at_the_size_of_gpt2(tmp_path):
    """124 million parameters, in the layout of the published file: 548 MB with its masks."""
    config = GPT2Config()
    theirs = perturb(GPT2LMHeadModel(config), 0, 0.03)
    tensors = {k: p.data for k, p in theirs.named_parameters()}
    assert sum(t.numel() for t in tensors.values()) == 124_439_808
    file = gpt2_public(tmp_path, tensors, config.to_dict()) / "model.safetensors"
    assert 548_090_880 < file.stat().st_size < 548_200_000  # the published one has 548,105,171
    ours = GPT2.from_pretrained(tmp_path)
    file.unlink()
    compare(ours, theirs)
