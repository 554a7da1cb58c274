"""T5: the same numbers as slow code of its own, from every kind of file; distances, cache, greed.

parity/test_t5_parity.py compares with transformers.
"""

import math

import numpy as np
import pytest
import torch
from layouts import perturb, pickled, saved, shards, write_safetensors
from test_sentencepiece import pieces, write

from lib.cli import UserError
from plm import t5
from plm.t5 import T5, T5Config, bucket
from weights import t5_layout

Q = "encoder.block.1.layer.0.SelfAttention.q.weight"
TABLE = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
CONFIG = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
V11 = {**CONFIG, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def random_model(seed=0, **sizes):
    """A small model in which no two sizes are equal; heads times their size is not the width."""
    torch.manual_seed(seed)
    small = dict(vocab_size=61, n_encoder=3, n_layer=2, n_head=3, n_embd=24, n_inner=50,
                 head_size=10)
    return perturb(T5(T5Config(**{**small, **sizes})), seed, 0.2).requires_grad_(False)


OLD, NEW = random_model(), random_model(1, gated=True, tied=False, scaled=False)
MODELS = pytest.mark.parametrize("ours, config", [(OLD, CONFIG), (NEW, V11)], ids=["1.0", "1.1"])
torch.manual_seed(2)
IDX, MASK = torch.randint(2, 61, (3, 40)), torch.arange(40) < torch.tensor([40, 7, 1])[:, None]
WRITE = torch.randint(2, 61, (3, 30))


def furthest(x, expected):
    assert x.shape == expected.shape
    return (x - expected).abs().max().item()


# ---------------------------------------------------------------------------- the same numbers

def class_of(distance, both, n=32, most=128):
    """The class of one distance by the rule of the paper's section 2.1, in plain numbers."""
    half, behind = (n // 2, distance > 0) if both else (n, False)
    d, exact = abs(distance) if both else max(-distance, 0), half // 2
    if d >= exact:
        d = min(half - 1, exact + int(math.log(d / exact) / math.log(most / exact)
                                      * (half - exact) + 1e-6))
    return behind * half + d


def slow(model, ids, write):
    """T5 for one text without padding, score by score and head by head, in 64-bit numpy."""
    c, p = model.config, {k: t.double().numpy() for k, t in model.state_dict().items()}
    norm = lambda x, name: x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * p[name + ".weight"]
    tanh_gelu = lambda x: x / 2 * (1 + np.tanh((2 / math.pi) ** .5 * (x + .044715 * x ** 3)))

    def attend(x, other, name, table, causal):
        y = []
        for h in range(c.n_head):
            q, k, v = (z @ p[f"{name}.{m}.weight"][h * c.head_size:(h + 1) * c.head_size].T
                       for z, m in ((x, "q"), (other, "k"), (other, "v")))
            scores = q @ k.T
            for i in range(len(x)):
                for j in range(len(other)):
                    scores[i, j] += table[class_of(j - i, not causal), h] if len(table) else 0
                    scores[i, j] -= 1e9 * (causal and j > i)
            a = np.exp(scores - scores.max(1, keepdims=True))
            y.append(a / a.sum(1, keepdims=True) @ v)
        return np.concatenate(y, 1) @ p[f"{name}.o.weight"].T

    def stack(x, side, n, other=None):
        table = p[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        for l in range(n):
            at = [f"{side}.block.{l}.layer.{i}." for i in range(3)]
            h = norm(x, at[0] + "layer_norm")
            x = x + attend(h, h, at[0] + "SelfAttention", table, other is not None)
            if other is not None:
                x = x + attend(norm(x, at[1] + "layer_norm"), other, at[1] + "EncDecAttention",
                               [], False)
            last = at[1 if other is None else 2]
            h, mlp = norm(x, last + "layer_norm"), last + "DenseReluDense."
            h = tanh_gelu(h @ p[mlp + "wi_0.weight"].T) * (h @ p[mlp + "wi_1.weight"].T) \
                if c.gated else np.maximum(h @ p[mlp + "wi.weight"].T, 0)
            x = x + h @ p[mlp + "wo.weight"].T
        return norm(x, f"{side}.final_layer_norm")

    text = stack(p["shared.weight"][ids], "encoder", c.n_encoder)
    x = stack(p["shared.weight"][write], "decoder", c.n_layer, text)
    x = x @ p["lm_head.weight"].T if not c.tied else x / c.n_embd ** .5 @ p["shared.weight"].T
    return torch.from_numpy(x).float()


@MODELS
def test_logits_equal_those_of_slow_code(ours, config):
    logits = ours(IDX, MASK, WRITE)
    assert logits.dtype == torch.float32 and logits.std() > 0.3
    for row in range(3):
        expected = slow(ours, IDX[row, MASK[row]].tolist(), WRITE[row].tolist())
        assert furthest(logits[row], expected) < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("both", [True, False])
def test_distances_have_the_classes_of_the_paper(both):
    """-1 is class 1, +1 is class 17; all from 128 on are one; the decoder knows none behind it."""
    far = torch.arange(-300, 301)
    classes = bucket(far, both, 32, 128)
    assert classes.tolist() == [class_of(d, both) for d in far.tolist()]
    assert bucket(torch.tensor([-1, 0, 1]), both, 32, 128).tolist() == [1, 0, 17 if both else 0]
    assert classes.unique().tolist() == [c for c in range(32) if not both or c != 16]


# ---------------------------------------------------------------------------- files

def published(folder, tensors, config):
    """With all copies that files are known to hold, and the table that no code reads."""
    shared = tensors["shared.weight"]
    more = {f"{side}.embed_tokens.weight": shared.clone() for side in ("encoder", "decoder")}
    more[t5_layout.UNUSED] = torch.ones(32, 3)
    if "lm_head.weight" not in tensors:
        more["lm_head.weight"] = shared.clone()
    return pickled(folder, tensors | more, config)


def alone(folder, tensors, config):
    return write_safetensors(folder / "my.safetensors", tensors, odd=True)


@MODELS
@pytest.mark.parametrize("layout", [saved, published, shards, alone])
def test_all_layouts_give_the_same_model(layout, ours, config, tmp_path):
    """Shapes tell everything, the number of heads, too."""
    loaded = T5.from_pretrained(layout(tmp_path / "it", ours.state_dict(), config))
    assert loaded.config == ours.config and not loaded.training
    assert furthest(loaded(IDX, MASK, WRITE), ours(IDX, MASK, WRITE)) < 1e-4


@pytest.mark.parametrize("told, copy, factor", [
    ({}, False, 1), ({}, True, 1), ({"scale_decoder_outputs": False}, False, 24 ** 0.5),
    ({"tie_word_embeddings": False}, True, 24 ** 0.5), ({"tie_word_embeddings": False}, False, 0)])
def test_what_config_says_of_the_head_is_heard(told, copy, factor, tmp_path):
    """Scaled or not, and a head that only looks like the embedding. A missing one is named."""
    head = {"lm_head.weight": OLD.shared.weight.clone()} if copy else {}
    saved(tmp_path, OLD.state_dict() | head, {**CONFIG, **told})
    if not factor:
        with pytest.raises(UserError, match="lm_head.weight is missing"):
            T5.from_pretrained(tmp_path)
    else:
        logits = T5.from_pretrained(tmp_path)(IDX, MASK, WRITE)
        assert furthest(logits, OLD(IDX, MASK, WRITE) * factor) < 1e-4


@pytest.mark.parametrize("name, layers, width, inner, new, count", [
    ("t5-small", 6, 512, 2048, {}, 60_506_624), ("t5-base", 12, 768, 3072, {}, 222_903_552),
    ("flan-t5-base", 12, 768, 2048, dict(gated=True, tied=False), 247_577_856)])
def test_the_public_sizes_count_the_published_parameters(name, layers, width, inner, new, count):
    with torch.device("meta"):
        model = T5(T5Config(32128, layers, layers, width // 64, width, inner, **new))
    assert sum(p.numel() for p in model.parameters()) == count
    norms = [m for m in model.modules() if isinstance(m, torch.nn.RMSNorm)]
    assert name != "t5-base" or sum(m.weight.numel() for m in norms) == 47_616


def test_a_missing_tensor_and_one_of_the_wrong_shape_are_named(tmp_path):
    tensors = NEW.state_dict()
    for name in tensors:
        if "decoder.block.1" in name or "relative" in name or "block" not in name:
            rest = {k: t for k, t in tensors.items() if k != name}
            for wrong in (rest, {**tensors, name: torch.zeros(*tensors[name].shape, 2)}):
                with pytest.raises(UserError, match=name):
                    T5.from_pretrained(saved(tmp_path, wrong, V11))


@pytest.mark.parametrize("tensors, config, complaint", [
    ({TABLE.replace("block.0", "block.1"): torch.ones(32, 3)}, {}, "block.1.* is unknown"),
    ({"classifier.weight": torch.ones(3)}, {}, "classifier.* is unknown"),
    ({"encoder.embed_tokens.weight": torch.ones(61, 24)}, {}, "T5 shares the two"),
    ({Q: torch.zeros(30, 25)}, {}, r"q.weight is \(30, 25\), not \(30, 24\)"),
    ({TABLE.replace("decoder", "encoder"): torch.zeros(32, 7)}, {}, "cannot be split into 7 heads"),
    ({TABLE: torch.zeros(16, 3)}, {}, r"bias.weight is \(16, 3\), not \(32, 3\)"),
    ({}, {"feed_forward_proj": "gated-silu"}, "feed_forward"), ({}, {"eos_token_id": 2}, "eos"),
    ({}, {"relative_attention_max_distance": 64}, "max_distance"),
    ({}, {"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon")])
def test_what_is_no_t5_is_refused(tensors, config, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint) as e:
        T5.from_pretrained(saved(tmp_path, {**OLD.state_dict(), **tensors}, {**CONFIG, **config}))
    assert "\n" not in str(e.value)


def test_another_model_is_refused(tmp_path):
    encoder = {k: t for k, t in OLD.state_dict().items() if not k.startswith("decoder")}
    for tensors in ({"wte.weight": torch.ones(2, 2)}, encoder, {"shared.weight": torch.ones(3)}):
        with pytest.raises(UserError, match="so this is not a T5"):
            T5.from_pretrained(saved(tmp_path, tensors, CONFIG))


# ---------------------------------------------------------------------------- who sees whom

def test_padding_changes_nothing_and_nobody_sees_what_comes():
    logits = OLD(IDX, MASK, WRITE)
    assert furthest(OLD(torch.where(MASK, IDX, 3), MASK, WRITE), logits) == 0
    changed = WRITE.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 61
    moved = (OLD(IDX, MASK, changed) - logits).abs().amax((0, 2))
    assert (moved[:10] == 0).all() and (moved[10:] > 1e-3).all()
    assert furthest(OLD(IDX[:1], None, WRITE[:1]), logits[:1]) < 1e-4  # no mask: all are seen


@MODELS
@pytest.mark.parametrize("split", [(30,), (1,) * 30, (7, 3, 20), (1, 28, 1)])
def test_a_text_written_in_pieces_gives_the_logits_of_the_whole(ours, config, split):
    """Distances must know how much came before, in every layer."""
    reading = ours.read(IDX, MASK, 30)
    logits = torch.cat([ours.write(piece, reading) for piece in WRITE.split(split, 1)], 1)
    assert furthest(logits, ours(IDX, MASK, WRITE)) < 1e-4 and reading.len == [30] * 2


@pytest.mark.parametrize("K", [0, 1])
def test_a_token_may_stand_in_front_of_the_text_from_any_layer_on(K):
    """Layers are called one by one, and distances fit the number of tokens that each of them sees:
    read in one piece or token by token, the states are the same."""
    p = torch.ones(3, 1, 24)

    def states(split):
        reading, out = OLD.read(IDX, MASK, 31), []
        for n, piece in enumerate(WRITE.split(split, 1)):
            x = OLD.embed(piece)
            for l, layer in enumerate(OLD.h):
                x = layer(torch.cat([p, x], 1) if l == K and n == 0 else x, reading, l)
            out.append(x[:, -piece.shape[1]:])
        assert reading.len == [30 + (l >= K) for l in range(2)]
        return OLD.head(torch.cat(out, 1))

    assert furthest(states((30,)), states((1,) * 30)) < 1e-4
    assert furthest(states((30,)), OLD(IDX, MASK, WRITE)) > 0.01


@MODELS
def test_greedy_generation_equals_reading_all_again_for_each_token(ours, config):
    written, slow = t5.generate(ours, IDX, MASK, 12), torch.zeros(3, 1, dtype=torch.int64)
    for _ in range(written.shape[1]):
        slow = torch.cat([slow, ours(IDX, MASK, slow)[:, -1:].argmax(-1)], 1)
    for row, expected in zip(written.tolist(), slow[:, 1:].tolist()):
        end = expected.index(1) + 1 if 1 in expected else len(expected)
        assert row == expected[:end] + [0] * (len(row) - end)
    assert len(written[0].unique()) > 1 or ours is OLD  # whose large embeddings echo one token


def test_a_row_that_has_ended_is_padded_and_all_ended_is_the_end():
    """A head that always answers EOS."""
    model = random_model(tied=False)
    model.lm_head.weight.zero_()
    model.decoder.final_layer_norm.weight.zero_()
    model.head = lambda x: torch.eye(61)[1].expand(*x.shape[:2], 61)
    assert t5.generate(model, IDX, MASK, 9).tolist() == [[1]] * 3


def test_a_new_model_starts_as_mesh_tensorflow_does():
    """q so small that scores need no division: (C hs)^-0.5. The embedding has std 1."""
    torch.manual_seed(0)
    model = T5(T5Config(500, 1, 1, n_head=4, n_embd=64, n_inner=256, head_size=32))
    part = model.encoder.block[0]
    for p, std in ((model.shared, 1), (part.attn.q, 64 * 32), (part.attn.k, 64), (part.attn.o, 128),
                   (part.mlp.wi, 64), (part.mlp.wo, 256), (part.attn.relative_attention_bias, 64)):
        assert p.weight.std().item() == pytest.approx(std ** -0.5, rel=0.15)


def test_the_command_writes(tmp_path, capsys):
    saved(tmp_path, OLD.state_dict(), CONFIG)
    write(tmp_path / "spiece.model", pieces())
    t5.main(t5.Config(["ab", "a", "<extra_id_0>"], str(tmp_path), new=5))
    assert capsys.readouterr().out.endswith("\n")
    model = T5.from_pretrained(tmp_path)
    assert model.eot == model.tokenizer.eot_token == 1 and model.tokenizer.n_vocab == 61
