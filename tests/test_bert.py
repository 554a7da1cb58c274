"""BERT: the same numbers as slow code of its own, from every kind of file; unseen padding.

parity/test_bert_parity.py compares with transformers, also on published weights.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layouts import perturb, pickled, saved, shards, write_safetensors

from lib.cli import UserError
from plm import bert
from plm.bert import BERT, BERTConfig
from weights.wordpiece import get_wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdexyz1日", "##a", "##b", "##1", "the",
         "star", "##s", "cafe", ",", "?", "[", "]", "$", "un", "##able", "circle", "is", "ΣΑΣ",
         "σας"]
V, PLACE = len(WORDS), "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
CONFIG = {"num_attention_heads": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-12}


def random_model(seed=0, **sizes):
    """A small model in which no two sizes are equal."""
    torch.manual_seed(seed)
    small = dict(vocab_size=V, n_positions=21, n_types=2, n_layer=3, n_head=3, n_embd=24,
                 n_inner=50)
    return perturb(BERT(BERTConfig(**{**small, **sizes})), seed, 0.2).requires_grad_(False)


OURS = random_model()
THEIRS = {k if k.startswith("cls.") else f"bert.{k}": t for k, t in OURS.state_dict().items()}
torch.manual_seed(1)
IDX, MASK = torch.randint(V, (3, 12)), torch.arange(12) < torch.tensor([12, 5, 1])[:, None]


def furthest(x, expected):
    assert x.shape == expected.shape
    return (x - expected).abs().max().item()


# ---------------------------------------------------------------------------- the same numbers

def norm(x, w, b):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * w + b


def slow(tensors, ids, heads, types=None):
    """BERT for one text without padding, token by token and head by head, in 64-bit numpy."""
    p = {k.removeprefix("bert."): t.double().numpy() for k, t in tensors.items()}
    lin = lambda x, name: x @ p[f"{name}.weight"].T + p[f"{name}.bias"]
    ln = lambda x, name: norm(x, p[f"{name}.weight"], p[f"{name}.bias"])
    gelu = lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    e = "embeddings."
    x = ln(np.stack([p[e + "word_embeddings.weight"][i] + p[e + "position_embeddings.weight"][t]
                     + p[e + "token_type_embeddings.weight"][types[t] if types else 0]
                     for t, i in enumerate(ids)]), e + "LayerNorm")
    for l in range(3):
        at = f"encoder.layer.{l}."
        q, k, v = (np.split(lin(x, f"{at}attention.self.{name}"), heads, 1)
                   for name in ("query", "key", "value"))
        y = []
        for h in range(heads):
            a = np.exp(q[h] @ k[h].T / math.sqrt(q[h].shape[1]))
            y.append(a / a.sum(1, keepdims=True) @ v[h])
        x = ln(x + lin(np.concatenate(y, 1), at + "attention.output.dense"),
               at + "attention.output.LayerNorm")
        h = gelu(lin(x, at + "intermediate.dense"))
        x = ln(x + lin(h, at + "output.dense"), at + "output.LayerNorm")
    t = ln(gelu(lin(x, "cls.predictions.transform.dense")), "cls.predictions.transform.LayerNorm")
    logits = t @ p[e + "word_embeddings.weight"].T + p["cls.predictions.bias"]
    return torch.from_numpy(x).float(), torch.from_numpy(logits).float()


def test_states_and_logits_equal_those_of_slow_code():
    types = [0] * 4 + [1] * 8
    states, logits = OURS(IDX, MASK), OURS.mlm(IDX, MASK)
    for row, (ids, mask) in enumerate(zip(IDX, MASK)):
        x, y = slow(THEIRS, ids[mask].tolist(), 3)
        assert furthest(states[row, mask], x) < 1e-5 and furthest(logits[row, mask], y) < 1e-5
    pair = OURS(IDX[:1], types=torch.tensor([types]))
    assert furthest(pair[0], slow(THEIRS, IDX[0].tolist(), 3, types)[0]) < 1e-5
    assert furthest(pair, states[:1]) > 0.01


def published(folder, tensors, config):
    """As in 2018: gamma and beta, copies of what is tied, a pooler, a head for pairs, a buffer."""
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias",
                                                                    "LayerNorm.beta"): t
           for k, t in tensors.items()}
    old |= {"cls.predictions.decoder.weight": tensors[PLACE].clone(),
            "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone(),
            "bert.embeddings.position_ids": torch.arange(21)[None],
            "bert.pooler.dense.weight": torch.ones(24, 24), "bert.pooler.dense.bias": IDX[0] * 1.0,
            "cls.seq_relationship.weight": torch.ones(2, 24),
            "cls.seq_relationship.bias": torch.ones(2)}
    return pickled(folder, old, config)


def bare(folder, tensors, config):
    """BertModel alone: nothing in front of its names, and no head."""
    return saved(folder, {k.removeprefix("bert."): t for k, t in tensors.items()
                          if not k.startswith("cls.")}, config)


def alone(folder, tensors, config):
    return write_safetensors(folder / "my.safetensors", tensors, {"n_head": "3"}, odd=True)


@pytest.mark.parametrize("layout", [saved, published, bare, shards, alone])
def test_all_layouts_give_the_same_model(layout, tmp_path):
    loaded = BERT.from_pretrained(layout(tmp_path / "it", THEIRS, CONFIG))
    assert furthest(loaded(IDX, MASK), OURS(IDX, MASK)) < 1e-6 and not loaded.training
    if layout is bare:
        with pytest.raises(UserError, match="without the head for masked words"):
            loaded.mlm(IDX, MASK)
    else:
        assert loaded.config == OURS.config
        assert furthest(loaded.mlm(IDX, MASK), OURS.mlm(IDX, MASK)) < 1e-5


def test_the_public_size_counts_the_published_parameters():
    """109,482,240 with the pooler's 590,592. The head's matrix is the embedding, not its bias."""
    with torch.device("meta"):
        model = BERT(BERTConfig())
    head = sum(p.numel() for p in model.cls.parameters())
    assert sum(p.numel() for p in model.parameters()) - head == 109_482_240 - 590_592
    assert head == 768 * 768 + 3 * 768 + 30522


# ---------------------------------------------------------------------------- who sees whom

def test_padding_changes_nothing_and_all_else_does():
    states = OURS(IDX, MASK)
    other = torch.where(MASK, IDX, (IDX + 1) % V)
    assert furthest(OURS(other, MASK)[MASK], states[MASK]) == 0
    for t in range(5):  # every token of the second text reaches its first
        changed = IDX.clone()
        changed[1, t] = (changed[1, t] + 1) % V
        assert furthest(OURS(changed, MASK)[1, 0], states[1, 0]) > 1e-3


@pytest.mark.parametrize("K", [0, 2, 3])
def test_a_token_may_stand_in_front_from_any_layer_on(K):
    """Layers are called one by one. One that the mask hides changes nothing, one that is seen
    changes all; the text keeps its positions."""
    def states(seen):
        x, mask = OURS.embed(IDX), MASK
        for l, layer in enumerate(OURS.h):
            if l == K:
                x, mask = torch.cat([torch.ones(3, 1, 24), x], 1), F.pad(MASK, (1, 0), value=seen)
            x = layer(x, mask, l)
        return x[:, -12:]

    away = (states(True) - OURS(IDX, MASK))[MASK].abs().amax(1)
    assert furthest(states(False)[MASK], OURS(IDX, MASK)[MASK]) < 1e-5
    assert (away > 1e-3).all() if K < 3 else (away == 0).all()


def test_a_text_longer_than_the_positions_is_refused():
    OURS(torch.zeros(1, 21, dtype=torch.int64))
    with pytest.raises(UserError, match="22 tokens is too long.* 21 positions"):
        OURS(torch.zeros(1, 22, dtype=torch.int64))


# ---------------------------------------------------------------------------- wrong files

def test_a_missing_tensor_and_one_of_the_wrong_shape_are_named(tmp_path):
    for name, t in THEIRS.items():
        if ".layer.0." in name or ".layer.2." in name:  # as layer 1
            continue
        short, rest = name.removeprefix("bert."), {**THEIRS}
        del rest[name]
        for tensors in (rest, {**THEIRS, name: torch.zeros(*t.shape, 2)}):
            with pytest.raises(UserError, match=short):
                BERT.from_pretrained(saved(tmp_path, tensors, CONFIG))


@pytest.mark.parametrize("tensors, config, complaint", [
    ({"bert.encoder.layer.0.crossattention.self.key.bias": torch.zeros(24)}, {}, "is unknown"),
    ({"bert.encoder.layer.x.output.dense.bias": torch.zeros(24)}, {}, "layer.x does not fit 4 layers"),
    ({"classifier.weight": torch.zeros(2, 24)}, {}, "classifier.weight is unknown"),
    ({QUERY: torch.zeros(24, 23)}, {}, r"query.weight is \(24, 23\), not \(24, 24\)"),
    ({"cls.predictions.decoder.weight": THEIRS[PLACE] + 1e-3}, {}, "BERT shares the two"),
    ({"cls.predictions.decoder.bias": torch.zeros(V)}, {}, "BERT shares the two"),
    ({}, {"hidden_act": "gelu_new"}, "hidden_act"), ({}, {"layer_norm_eps": 1e-5}, "norm_eps"),
    ({}, {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({}, {"is_decoder": True}, "is_decoder"),
    ({}, {"num_attention_heads": 5}, "cannot be split into 5 heads"),
    ({}, {"num_attention_heads": "many"}, "into many heads"),
    ({}, {"num_attention_heads": math.inf}, "into inf heads")])
def test_what_is_no_bert_is_refused(tensors, config, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint) as e:
        BERT.from_pretrained(saved(tmp_path, {**THEIRS, **tensors}, {**CONFIG, **config}))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("prefix", ["roberta.", "distilbert.", "transformer.", "model."])
def test_another_model_is_refused(prefix, tmp_path):
    theirs = {k.replace("bert.", prefix): t for k, t in THEIRS.items()}
    with pytest.raises(UserError, match="no matrix .*word_embeddings.* so this is not a BERT"):
        BERT.from_pretrained(saved(tmp_path, theirs, CONFIG))


# ---------------------------------------------------------------------------- WordPiece

@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    return saved(tmp_path, THEIRS, CONFIG)


@pytest.mark.parametrize("text, cut", [
    ("The STAR stars", "the star star ##s"), ("Café cafe\u0301", "cafe cafe"), ("", ""),
    ("a\u00a0b\tc\r\nd\u3000e", "a b c d e"), ("a\x00b\u200bc\ufffd", "[UNK]"), ("日日x", "日 日 x"),
    ("a,b??", "a , b ? ?"), ("$1", "$ 1"), ("ab1", "a ##b ##1"), ("abq", "[UNK]"),
    ("[MASK]", "[ [UNK] ]"), ("unable", "un ##able"), ("ΣΑΣ σας", "[UNK] σας"),
    ("a" * 100, "a" + " ##a" * 99), ("a" * 101, "[UNK]")])
def test_words_are_cut_into_the_longest_pieces(text, cut, folder):
    """A sigma at the end of a word is like any other: ΣΑΣ is no σας."""
    ours = get_wordpiece(folder)
    ids = ours.encode_ordinary(text)
    assert " ".join(ours.pieces[i] for i in ids) == cut
    assert ours.encode(text)[1:-1] == ids or "MASK" in text


def test_special_tokens_are_understood_where_they_are_asked_for(folder):
    ours = get_wordpiece(folder)
    ids = ours.encode("the [MASK]a [SEP] stars")
    assert " ".join(ours.pieces[i] for i in ids) == "[CLS] the [MASK] a [SEP] star ##s [SEP]"
    assert ours.decode(ids) == "the [MASK] a stars"
    assert (ours.eot_token, ours.pad, ours.n_vocab) == (3, 0, V)


def test_a_cased_model_keeps_capitals_and_accents(folder):
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    ours = get_wordpiece(folder)
    assert [ours.pieces[i] for i in ours.encode_ordinary("ΣΑΣ The café")] == ["ΣΑΣ"] + 2 * ["[UNK]"]


@pytest.mark.parametrize("name, content, complaint", [
    ("vocab.txt", "a\nb\n", r"no token \[PAD\]"),
    ("vocab.txt", "\n".join(WORDS + ["a"]), "0, 1, 2"),
    ("vocab.txt", b"\xff\xfe", "UnicodeDecodeError"), ("tokenizer.json", "{}", "KeyError"),
    ("tokenizer.json", '{"model": {"vocab": [1]}, "normalizer": {"lowercase": 1}}', "Attribute"),
    ("tokenizer.json", "[" * 99999, "RecursionError"), ("tokenizer.json", "Not found", "JSON")])
def test_a_broken_vocabulary_is_refused(name, content, complaint, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=complaint):
        get_wordpiece(tmp_path)


def test_only_a_model_of_berts_size_gets_berts_own(tmp_path):
    with pytest.raises(UserError, match="no vocab.txt beside .* with 61 tokens it does not"):
        get_wordpiece(tmp_path, 61)
    with pytest.raises(UserError, match="No such file"):
        get_wordpiece(tmp_path / "mistyped")


# ---------------------------------------------------------------------------- the command

def test_the_command_fills_in(folder, capsys):
    bert.main(bert.Config(["the", "star", "is", "[MASK]", "the", "circle"], str(folder), top=3))
    guesses, text = capsys.readouterr().out.splitlines()
    assert guesses.count("%") == 3 and text.startswith("the star is ") and "[MASK]" not in text
    with pytest.raises(UserError, match=r"no \[MASK\] in 'the star'"):
        bert.main(bert.Config(["the star"], str(folder)))
    with pytest.raises(UserError, match="without the head"):
        bert.main(bert.Config(["[MASK]"], str(bare(folder, THEIRS, CONFIG))))
