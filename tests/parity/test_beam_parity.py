"""Our beam search beside transformers' on the same weights: the same tokens, scores to 1e-4."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")
from layouts import perturb
from transformers import GPT2Config, GPT2LMHeadModel

from clip_vit import CLIPViT
from gpt2 import GPT2
from lib.decoding import Beams
from model import Method, SeeGPT

V, B, NEW = 53, 24, 12


def pair(tmp_path, end, seed):
    """Both models with the same weights; the larger `end`, the earlier their texts end."""
    torch.manual_seed(seed)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), V - 1)
    config = GPT2Config(vocab_size=V, n_positions=40, n_layer=2, n_head=4, n_embd=32, **special)
    theirs = perturb(GPT2LMHeadModel(config), seed, 0.25).eval()
    with torch.no_grad():
        theirs.transformer.wte.weight[-1] *= end
    theirs.save_pretrained(tmp_path)
    ours = SeeGPT(CLIPViT(16, 4, 24, 1, 2, 8), GPT2.from_pretrained(tmp_path), Method())
    ours.lm.tokenizer = SimpleNamespace(n_vocab=V)
    return theirs, ours.eval()


@torch.no_grad()
@pytest.mark.parametrize("end", [0.1, 1.0, 6.0])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [1, 3, 5])
def test_beam_search_finds_the_same_texts_with_the_same_scores(beams, penalty, end, tmp_path):
    theirs, ours = pair(tmp_path, end, seed=beams)
    idx = torch.randint(V - 1, (B, 3))
    out = theirs.generate(idx, num_beams=beams, length_penalty=penalty, max_new_tokens=NEW,
                          do_sample=False, return_dict_in_generate=True, output_scores=True)
    search = Beams(B, beams, NEW, penalty, V - 1)
    ours.decode(None, idx, search, NEW)
    rows = out.sequences[:, 3:].tolist()
    texts = [row[:row.index(V - 1) + 1] if V - 1 in row else row for row in rows]
    assert search.texts == texts
    if beams > 1:
        expected = out.sequences_scores
    else:  # a greedy search has no scores there: sum what it says of its tokens
        step = theirs.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
        expected = torch.stack([row[:len(t)].sum() / len(t) ** penalty
                                for row, t in zip(step, texts)])
    assert (search.scores - expected).abs().max() <= 1e-4
    lengths = {len(t) for t in texts}
    assert {0.1: lengths == {NEW}, 1.0: True, 6.0: penalty == 2 or min(lengths) < NEW}[end], lengths
