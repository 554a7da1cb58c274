"""What evaluate.speed measures for transformers is the same computation as vanilla here."""

import pytest
import torch

pytest.importorskip("transformers")
from clip_vit import CLIPViT
from evaluate import peers
from evaluate.workloads import Task, make_models, our_piece
from gpt2 import GPT2, GPT2Config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("speed")
    sizes = dict(vocab_size=300, n_positions=64, n_layer=2, n_head=4, n_embd=32)
    peers.save(make_models(where, GPT2(GPT2Config(**sizes)), CLIPViT(32, 8, 32, 2, 4, 16)), where)
    return str(where)


@pytest.mark.parametrize("work", ["train", "train-features", "greedy-8", "beam5-8"])
def test_the_peer_computes_the_same(work, folder):
    """The same losses, before and after an update, or the same token ids."""
    ours, theirs = (piece(Task(folder, work, name, "float32", torch.device("cpu"), False))[0]()
                    for piece, name in ((our_piece, "vanilla"), (peers.piece, "transformers")))
    if work.startswith("train"):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    else:
        assert ours == theirs and len({*map(tuple, ours)}) > 1
