"""The tokenizers of GPT-2 and CLIP: the same ids as Hugging Face's, from every layout of files.

golden/*/tokens.json holds awkward texts and the ids that Hugging Face's library gives them
(make_golden.py). parity/ compares live, where the library is installed.
"""

import gzip
import json
import urllib.request

import pytest
import tiktoken
import torch
from layouts import GOLDEN

from lib.cli import UserError
from weights.tokenizers import EOT, byte_symbols, get_clip_tokenizer, get_tokenizer, pretokenize

GPT2, CLIP = GOLDEN / "gpt2", GOLDEN / "clip"
VOCAB = json.loads((GPT2 / "vocab.json").read_text("utf-8"))
MERGES = (GPT2 / "merges.txt").read_text("utf-8")
PAIRS = [line.split(" ") for line in MERGES.splitlines()[1:]]


def test_the_symbols_of_bytes_are_in_the_order_of_their_ids():
    """Id 0 is "!", the first printable byte; a space, byte 32, is written as chr(256 + 32)."""
    symbols = byte_symbols()
    assert list(symbols)[0] == "!" and symbols[chr(288)] == 32
    assert sorted(symbols.values()) == list(range(256)) and len(symbols) == 256


# ---------------------------------------------------------------------------- GPT-2

def without(token):
    return {t: i for t, i in VOCAB.items() if t != token}


def put(folder, files):
    """Writes files {name: text, or what becomes JSON} into a folder."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / name).write_text(text, "utf-8")
    return folder


def tokenizer_json(merges, vocab=VOCAB):
    return {"tokenizer.json": {"added_tokens": [{"id": VOCAB[EOT], "content": EOT}],
                               "model": {"type": "BPE", "vocab": vocab, "merges": merges}}}


LAYOUTS = {
    "vocab.json": {"vocab.json": VOCAB},
    "vocab.json and merges.txt": {"vocab.json": VOCAB, "merges.txt": MERGES},
    "encoder.json and vocab.bpe": {"encoder.json": VOCAB, "vocab.bpe": MERGES},
    "tokenizer.json": tokenizer_json(PAIRS),
    "tokenizer.json of old": tokenizer_json([" ".join(pair) for pair in PAIRS]),
    "tokenizer.json, EOT apart": tokenizer_json(PAIRS, without(EOT)),
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_ids_are_those_of_hugging_face_from_every_layout(files, tmp_path):
    """In this small vocabulary "Hello" is H e l l o, and " the" is one token."""
    tokenizer = get_tokenizer(put(tmp_path, files))
    assert tokenizer.n_vocab == len(VOCAB) and tokenizer.eot_token == VOCAB[EOT] == len(VOCAB) - 1
    for text, ids in json.loads((GPT2 / "tokens.json").read_text()):
        assert tokenizer.encode_ordinary(text) == ids, text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode_ordinary(" the") == [VOCAB["Ġthe"]]
    file = get_tokenizer(tmp_path / next(iter(files)))
    assert file.encode_ordinary(" theme") == tokenizer.encode_ordinary(" theme")


FIRST = {EOT: 0} | {token: i + 1 for token, i in without(EOT).items()}


@pytest.mark.parametrize("files, eot", [
    ({"vocab.json": FIRST}, 0),
    ({"vocab.json": FIRST, "merges.txt": MERGES}, 0),
    ({"vocab.json": VOCAB | {EOT: 500}}, 500),
    ({"vocab.json": VOCAB | {"PAD": len(VOCAB), "<pad>": 511}, "merges.txt": MERGES}, VOCAB[EOT]),
])
def test_the_end_of_text_has_the_id_that_the_file_gives_it(files, eot, tmp_path):
    """At the beginning, behind a gap, or before padding; and 512 rows in the model's embedding."""
    tokenizer = get_tokenizer(put(tmp_path, files), vocab_size=512)
    assert tokenizer.eot_token == eot
    assert tokenizer.encode_ordinary(" the") == [files["vocab.json"]["Ġthe"]]
    assert tokenizer.encode("a" + EOT, allowed_special="all")[1:] == [eot]
    if "merges.txt" in files:  # padding is no text, even where a text says so
        assert tokenizer.encode_ordinary("PAD") == [files["vocab.json"][c] for c in "PAD"]


def test_a_vocabulary_may_hold_the_word_model(tmp_path):
    """GPT-2's does. So a JSON file with the key "model" is not always a tokenizer.json."""
    vocab = [*byte_symbols(), "mo", "mod", "mode", "model", EOT]
    put(tmp_path, {"vocab.json": {token: i for i, token in enumerate(vocab)},
                   "merges.txt": "m o\nmo d\nmod e\nmode l\n"})
    assert get_tokenizer(tmp_path).encode_ordinary("models") == [259, vocab.index("s")]


@pytest.mark.parametrize("files, complaint", [
    ({"vocab.json": without("A")}, "some of the 256 bytes"),
    ({"vocab.json": without("Ġthe")}, "without a gap"),
    ({"vocab.json": VOCAB | {"Ġthe": VOCAB["he"]}}, "without a gap"),
    ({"vocab.json": VOCAB | {EOT: -1}}, "without a gap"),
    ({"vocab.json": VOCAB | {"<pad>": VOCAB[EOT]}, "merges.txt": MERGES}, "without a gap"),
    ({"vocab.json": VOCAB | {"Ġthe": "many"}}, "not a GPT-2 tokenizer file"),
    ({"vocab.json": VOCAB | {"日": len(VOCAB)}}, "not a GPT-2 tokenizer file"),
    ({"vocab.json": without(EOT)}, "no token <|endoftext|>"),
    ({"vocab.json": VOCAB | {"he": VOCAB["Ġthe"], "Ġthe": VOCAB["he"]}, "merges.txt": MERGES},
     "order in which they were learnt"),
    ({"vocab.json": VOCAB, "merges.txt": "q q\n" + MERGES.split("\n", 1)[1]},
     "order in which they were learnt"),
    ({"vocab.json": VOCAB, "merges.txt": MERGES + "one two three\n"}, "not a GPT-2 tokenizer file"),
    ({"vocab.json": "Entry not found"}, "not a GPT-2 tokenizer file"),
    ({"vocab.json": '{"a":' * 99_999}, "not a GPT-2 tokenizer file"),
    ({"vocab.json": VOCAB | {"Ġthe": float("inf")}}, "not a GPT-2 tokenizer file"),
    ({"vocab.json": VOCAB | {EOT: 2**40}}, "without a gap"),
    ({"vocab.json": json.dumps(VOCAB | {"\ud800": 512}), "merges.txt": MERGES}, "not a GPT-2"),
    (tokenizer_json([5]), "not a GPT-2 tokenizer file"),
    ({"tokenizer.json": {"model": {"type": "WordPiece", "vocab": {"a": 0}}}}, "not a GPT-2 token"),
])
def test_a_broken_vocabulary_is_refused(files, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint.replace("|", r"\|")):
        get_tokenizer(put(tmp_path, files))


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """No network, and empty caches; gives our own."""
    def fail(*args, **kw):
        raise OSError("no network")

    for name in ("SEEGPT_CACHE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    return tmp_path / "SEEGPT_CACHE"


@pytest.mark.parametrize("ask, file", [(get_tokenizer, "gpt2/vocab.json"),
                                       (get_clip_tokenizer, "clip/bpe_simple_vocab_16e6.txt.gz")])
def test_without_network_and_files_one_line_says_what_to_put_where(ask, file, cache, monkeypatch):
    monkeypatch.chdir(GPT2)  # the working folder is not searched
    with pytest.raises(UserError) as e:
        ask()
    assert f"put it at {cache / file}" in str(e.value) and "https://" in str(e.value)
    assert "\n" not in str(e.value)


def test_only_a_model_of_gpt2s_size_gets_gpt2s_own(tmp_path):
    with pytest.raises(UserError, match="with 61 tokens they do not use GPT-2's own"):
        get_tokenizer(tmp_path, 61)
    with pytest.raises(UserError, match="no such file"):
        get_tokenizer(tmp_path / "mistyped")


# ---------------------------------------------------------------------------- CLIP

@pytest.fixture(scope="module")
def encode():
    return get_clip_tokenizer(CLIP)


def test_clips_ids_equal_those_of_transformers(encode):
    """A word's last letter is marked: "red" is one token, which does not occur in "redder"."""
    for text, ids in json.loads((CLIP / "tokens.json").read_text()):
        row = encode([text])[0]
        assert row.shape == (77,) and row.dtype == torch.int64
        assert row.tolist() == ids + [0] * (77 - len(ids)), text


@pytest.mark.parametrize("text, cut", [
    ("It's 2024!", "it 's 2 0 2 4 !"),
    ("they've we're I'm you'll she'd don't", "they 've we 're i 'm you 'll she 'd don 't"),
    ("rock 'n' roll", "rock ' n ' roll"),
    ("&amp;lt;b&amp;gt; Tom &amp; Jerry", "< b > tom & jerry"),  # unescaped twice, as OpenAI does
    ("  two\t\nspaces\u00a0here ", "two spaces here"),
    ("wait... what?!", "wait ... what ?!"),
    ("naïve ÄÖÜ 日本語 cafe\u0301", "naïve äöü 日本語 café"),  # e and an accent: one letter
    ("x²+½", "x ² + ½"),
    ("a\0b", "ab"),
    ("", ""),
])
def test_texts_are_cleaned_and_cut_into_words_as_clip_does(text, cut):
    assert list(pretokenize(text)) == cut.split()


def test_a_text_of_75_tokens_fits_and_one_more_does_not(encode):
    assert encode(["7 " * 75])[0, -1] == encode([""])[0, 1]  # EOT
    with pytest.raises(UserError, match="78 tokens is too long for CLIP"):
        encode(["7 " * 76])
    assert encode(["a red", "a"]).shape == (2, 77) and encode(["a red"], context=9).shape == (1, 9)
    assert encode([]).shape == (0, 77)


def test_merges_are_read_from_a_file_or_openais_packed_list(encode, tmp_path):
    """OpenAI's list begins with its own name and goes on beyond the 48,894 merges that count."""
    lines = (CLIP / "merges.txt").read_text("utf-8").splitlines()[1:]
    header = '"bpe_simple_vocab_16e6.txt#version: 0.2'
    (tmp_path / "list.txt.gz").write_bytes(gzip.compress("\n".join([header, *lines, ""]).encode()))
    (tmp_path / "bare.txt").write_text("\n".join(lines), "utf-8")
    text = ["A red circle, they've got another 10"]
    for path in (CLIP / "merges.txt", tmp_path / "list.txt.gz", tmp_path / "bare.txt"):
        assert torch.equal(get_clip_tokenizer(path)(text), encode(text))
    symbols = [chr(i) for i in range(0x100, 0x143)]
    more = [f"{a} {b}" for a in symbols for b in symbols] * 12
    (tmp_path / "long.txt").write_text("\n".join([header, *lines, *more]), "utf-8")
    assert get_clip_tokenizer(tmp_path / "long.txt")(["a"]).max() == 49407  # as in public CLIPs


@pytest.mark.parametrize("name, content, complaint", [
    ("merges.txt", b"#version: 0.2\none two three\n", "not a list of CLIP's merges"),
    ("merges.txt", "a 日\n".encode(), "not a list of CLIP's merges"),
    ("merges.txt", b"\xff\xfe\x00", "not a list of CLIP's merges"),
    ("merges.txt.gz", b"PK\x03\x04", "Not a gzipped file"),
    ("merges.txt.gz", gzip.compress(b"a b\n" * 99)[:-9], "not a list of CLIP's merges"),
    ("merges.txt.gz", gzip.compress(b"a b\n" * 6_000_000, 1), "unpacks to 20,000,000 bytes"),
    ("another.txt", b"", "merges.txt: No such file"),
])
def test_a_broken_or_missing_list_of_merges_is_refused(name, content, complaint, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        get_clip_tokenizer(tmp_path / name if name.endswith("gz") else tmp_path)
