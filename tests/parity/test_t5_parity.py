"""Our T5 beside transformers' with random weights, and our SentencePiece beside the original.

    pip install --no-deps sentencepiece    # the original; models are trained here, in a second
    pip install --no-deps mistral-common   # holds a published one, of LLaMA's kind
"""

import io
import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
from layouts import perturb
from make_golden import AWKWARD, CORPUS
from parity.test_tokenizer_parity import strings
from transformers import T5Config, T5ForConditionalGeneration

from plm.t5 import T5, bucket, generate
from weights.sentencepiece import CONTROL, get_t5_tokenizer, read_sentencepiece

TOLERANCE = 1e-4
SIZE = dict(vocab_size=101, d_model=48, d_kv=8, num_heads=4, num_layers=3, num_decoder_layers=2,
            d_ff=77, decoder_start_token_id=0)
SQUARE = dict(vocab_size=64, d_model=64, d_kv=64, num_heads=1, num_layers=2, d_ff=64,
              decoder_start_token_id=0)
V11 = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def build(folder, size=SIZE, own_head=False, seed=0, **how):
    torch.manual_seed(seed)
    theirs = T5ForConditionalGeneration(T5Config(**size))
    if own_head:  # version 5 ties the two in a new model, in spite of the config
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(size["vocab_size"], size["d_model"]))
    theirs = perturb(theirs, seed, 0.05)
    theirs.save_pretrained(folder, **how)
    return theirs


def batch(size):
    """150 tokens: distances beyond 128, where the classes end."""
    generator = torch.Generator().manual_seed(0)
    idx, write = torch.randint(2, size["vocab_size"], (2, 4, 150), generator=generator)
    return idx, torch.arange(150) < torch.tensor([150, 149, 11, 1])[:, None], write


@pytest.mark.parametrize("how", [{}, dict(max_shard_size="50KB")], ids=["one file", "shards"])
@pytest.mark.parametrize("size", [SIZE, SQUARE], ids=["48 wide", "64 wide"])
@pytest.mark.parametrize("version, own", [({}, False), (V11, True), (V11, False)],
                         ids=["1.0", "1.1", "1.1 tied"])
@torch.no_grad()
def test_logits_are_equal(version, own, size, how, tmp_path):
    theirs, (idx, mask, write) = build(tmp_path, size | version, own, **how), batch(size)
    ours = T5.from_pretrained(tmp_path)
    for m in (None, mask):
        logits = theirs(input_ids=idx, attention_mask=m, decoder_input_ids=write).logits
        difference = (ours(idx, m, write) - logits).abs().max().item()
        print(f"largest difference {difference:.1e}, logits of size {logits.std():.1f}")
        assert difference <= TOLERANCE and logits.std() > 0.3


@pytest.mark.parametrize("told", [{}, {"tie_word_embeddings": False}])
@torch.no_grad()
def test_configs_of_version_4_are_read_as_theirs(told, tmp_path):
    """They have no scale_decoder_outputs: whether states are scaled hangs on "tied" alone."""
    build(tmp_path, SIZE | V11, own_head=bool(told))
    config = json.loads((tmp_path / "config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("scale_decoder_outputs",
                                                           "tie_word_embeddings")} | told
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs, (idx, mask, write) = T5ForConditionalGeneration.from_pretrained(tmp_path), batch(SIZE)
    logits = theirs.eval()(input_ids=idx, attention_mask=mask, decoder_input_ids=write).logits
    assert (T5.from_pretrained(tmp_path)(idx, mask, write) - logits).abs().max() <= TOLERANCE


@pytest.mark.parametrize("both", [True, False])
def test_classes_of_distances_are_equal(both, tmp_path):
    theirs = build(tmp_path).encoder.block[0].layer[0].SelfAttention
    far = torch.arange(-2000, 2001)
    for n, most in ((32, 128), (16, 64), (32, 1000), (8, 20)):
        assert torch.equal(bucket(far, both, n, most),
                           theirs._relative_position_bucket(far, both, n, most))


@pytest.mark.parametrize("version", [{}, V11], ids=["1.0", "1.1"])
def test_greedy_generation_writes_the_same_tokens(version, tmp_path):
    """With padding; a row may end before the others."""
    theirs, (idx, mask, _) = build(tmp_path, SIZE | version, bool(version), seed=3), batch(SIZE)
    written = theirs.generate(idx, attention_mask=mask, max_new_tokens=40, do_sample=False)
    ours = generate(T5.from_pretrained(tmp_path), idx, mask, 40)
    assert torch.equal(ours, written[:, 1:])


# ---------------------------------------------------------------------------- SentencePiece

SENTENCES = [*(CORPUS[i:i + 200] for i in range(0, len(CORPUS), 200)), "日本語 の 本 で 中文 语言",
             *["naïve café ÄÖÜ straße 2024 1999 3.14", "🙂 🙂🙂 smile ½ ²"] * 4] * 3
T5S = dict(model_type="unigram", vocab_size=300, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
           normalization_rule_name="nmt_nfkc")
LLAMAS = dict(model_type="bpe", vocab_size=600, byte_fallback=True, split_digits=True,
              normalization_rule_name="identity", remove_extra_whitespaces=False)
TRAINED = {"T5's": T5S, "LLaMA's": LLAMAS, "small letters": T5S | {
    "normalization_rule_name": "nmt_nfkc_cf"}, "BPE, NFKC": dict(model_type="bpe", vocab_size=300),
    "user's pieces": dict(model_type="bpe", vocab_size=300, user_defined_symbols=["<sep>", "aa"]),
    "bytes": dict(model_type="unigram", vocab_size=400, byte_fallback=True, add_dummy_prefix=False,
                  remove_extra_whitespaces=False)}
MORE = ["a" * 50, "ab" * 40, "▁", "▁a▁", "", "   ", "<sep>red aaared", "</s> <s> <unk>", "ﬁne ＡＢ ①",
        "\u3000x\u200b", "🙂" * 9, "e\u0301 é Ḗ", "한국어 가나다"]


def train(folder, how):
    """The original, and ours reading its file."""
    original = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    original.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), model_writer=model,
                                        hard_vocab_limit=False, minloglevel=2, **how)
    (folder / "spiece.model").write_bytes(model.getvalue())
    theirs = original.SentencePieceProcessor(model_proto=model.getvalue())
    return theirs, read_sentencepiece(folder)


@pytest.mark.parametrize("how", TRAINED.values(), ids=TRAINED)
def test_texts_have_the_same_ids(how, tmp_path):
    theirs, ours = train(tmp_path, how)
    assert ours.n_vocab == theirs.get_piece_size() and ours.unk == theirs.unk_id()
    for text in [*AWKWARD, *MORE, *SENTENCES, *strings(2500, 1)]:
        assert ours.encode_ordinary(text) == theirs.encode(text), text


@pytest.mark.parametrize("how", TRAINED.values(), ids=TRAINED)
def test_ids_become_the_same_text(how, tmp_path):
    theirs, ours = train(tmp_path, how)
    seen = [i for i, kind in enumerate(ours.kinds) if kind != CONTROL]
    rng = random.Random(0)
    for _ in range(1000):
        ids = [rng.choice(seen) for _ in range(rng.randint(0, 12))]
        assert ours.decode(ids) == theirs.decode(ids), ids


def test_a_published_model_of_llamas_kind_gives_the_same_ids_and_texts():
    """BPE of 32,000 pieces with bytes, from the first Mistral."""
    original, spec = pytest.importorskip("sentencepiece"), find_spec("mistral_common")
    if spec is None:  # found, not imported: its data count
        pytest.skip("no published SentencePiece here: pip install --no-deps mistral-common")
    path = Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    theirs, ours = original.SentencePieceProcessor(model_file=str(path)), read_sentencepiece(path)
    assert ours.n_vocab == 32000 and ours.byte_fallback
    for text in [*AWKWARD, *MORE, *strings(2500, 7)]:
        ids = theirs.encode(text)
        assert ours.encode_ordinary(text) == ids and ours.decode(ids) == theirs.decode(ids), text


def test_t5s_tokenizer_is_that_of_transformers(tmp_path):
    """With sentinels and the end; without white space that theirs treats in its own way."""
    from transformers import T5Tokenizer
    _, pieces = train(tmp_path, T5S)
    table = list(zip(pieces.pieces, pieces.scores))
    table += [(f"<extra_id_{n}>", 0.0) for n in range(99, -1, -1)]
    theirs, ours = T5Tokenizer(vocab=table), get_t5_tokenizer(tmp_path, pieces.n_vocab + 128)
    theirs.save_pretrained(tmp_path / "json")
    again = get_t5_tokenizer(tmp_path / "json", pieces.n_vocab + 128)
    assert len(theirs) == ours.n_vocab == again.n_vocab and again.sentinels == ours.sentinels
    for text in [*SENTENCES[:9], "a <extra_id_0> red<extra_id_1> circle <extra_id_99>"]:
        text = text.replace("½ ²", "").replace("\n", " ")
        assert ours.encode(text) == again.encode(text) == theirs(text)["input_ids"], text
