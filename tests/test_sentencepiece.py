"""SentencePiece files made by hand, byte by byte, and texts cut by slower code than ours.

parity/test_t5_parity.py compares with the package sentencepiece, on models that it trains.
"""

import base64
import itertools
import json
import random
import struct

import pytest

from lib.cli import UserError
from weights.sentencepiece import (BPE, BYTE, CONTROL, NORMAL, UNIGRAM, UNKNOWN, UNUSED, USER,
                                   SentencePiece, T5Tokenizer, fields, get_t5_tokenizer,
                                   read_sentencepiece)

SPECIAL = [("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)]
WORDS = {"▁": -3, "a": -3, "b": -4, "ab": -5.5, "▁a": -5, "aa": -5.25, "aab": -9, "▁ab": -8,
         "1": -6}
BYTES = [(f"<0x{b:02X}>", 0.0, BYTE) for b in range(256)]


def pieces(words=WORDS, *more):
    return [*SPECIAL, *((w, float(s), NORMAL) for w, s in words.items()), *more]


def number(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(key, value):
    """One field of a message: a number, a 32-bit float, or bytes with their length in front."""
    if isinstance(value, float):
        return number(key << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, bytes):
        return number(key << 3 | 2) + number(len(value)) + value
    return number(key << 3) + number(value)


def message(pieces, trainer={}, normalizer={}):
    """A whole file. A piece's field 3 is left out where it is the default, as in real ones."""
    parts = [field(1, field(1, text.encode()) + field(2, score)
                   + (field(3, kind) if kind != NORMAL else b"")) for text, score, kind in pieces]
    for key, table in ((2, trainer), (3, normalizer)):
        parts.append(field(key, b"".join(field(k, v) for k, v in table.items())))
    return b"".join(parts)


def write(path, *args):
    path.write_bytes(message(*args))
    return path


def charsmap(rules):
    """{text: replacement} as the double array that a file holds; a child takes the first place that
    is free together with those of its siblings."""
    tree, words, units = {}, b"", {0: 0}
    for text, replacement in rules.items():
        node = tree
        for byte in text.encode():
            node = node.setdefault(byte, {})
        node[None] = len(words)
        words += replacement.encode() + b"\0"
    todo = [(tree, 0)]
    while todo:
        node, at = todo.pop()
        labels = [byte or 0 for byte in node]
        base = next(b for b in itertools.count(1) if not any(b ^ c in units for c in labels))
        units[at] |= (at ^ base) << 10 | (None in node) << 8
        for byte, child in node.items():
            units[base ^ (byte or 0)] = child | 1 << 31 if byte is None else byte
            if byte is not None:
                todo.append((child, base ^ byte))
    raw = b"".join(struct.pack("<I", units.get(i, 1)) for i in range(max(units) + 1))
    return struct.pack("<I", len(raw)) + raw + words


def test_a_message_made_by_hand_is_read():
    """150 is 0x96 0x01, seven bits a byte: the example of protobuf's own manual."""
    assert list(fields(bytes.fromhex("089601"))) == [(1, 150)]
    assert list(fields(b"\x12\x02hi\x1d\0\0\x80\x3f")) == [(2, b"hi"), (3, 1.0)]


def test_a_file_is_read_as_it_was_written(tmp_path):
    ours = read_sentencepiece(write(tmp_path / "spiece.model", pieces(), {3: UNIGRAM}))
    assert (ours.pieces, ours.kinds[:4]) == ([p for p, _, _ in pieces()], [3, 3, 2, 1])
    assert (ours.n_vocab, ours.eot_token, ours.unk, ours.bos) == (12, 1, 2, None)
    assert read_sentencepiece(tmp_path).scores == ours.scores  # a folder, too


# ---------------------------------------------------------------------------- cutting

def texts(n, alphabet="aab1 x"):
    rng = random.Random(0)
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 9))) for _ in range(n)]


def test_viterbi_finds_the_best_of_all_cuts():
    """2^(n-1) ways to cut a text; a single letter that is no piece costs the worst score - 10."""
    ours = SentencePiece(pieces(), UNIGRAM)
    for text in texts(100):
        clean, scores = ours.normalize("a" + text), {}
        for cut in itertools.product((False, True), repeat=len(clean) - 1):
            parts = "".join(c + "|" * edge for c, edge in zip(clean, (*cut, False))).split("|")
            if all(p in WORDS or len(p) == 1 for p in parts):
                scores[tuple(parts)] = sum(WORDS.get(p, -19) for p in parts)
        found = [p for p, _ in ours.viterbi(clean)]
        assert scores[tuple(found)] == max(scores.values()), (text, found)


def test_bpe_equals_a_loop_that_looks_at_all_pairs_each_time():
    ours = SentencePiece(pieces(), BPE)
    for text in texts(300):
        parts = list(ours.normalize(text))
        while True:
            pairs = [(-WORDS[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:]))
                     if a + b in WORDS]
            if not pairs:
                break
            i = min(pairs)[1]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        assert [p for p, _ in ours.merge(ours.normalize(text))] == parts, text


@pytest.mark.parametrize("how, text, cut", [
    ({}, "ab ab", "▁ab ▁ab"), ({}, "  ab   ab ", "▁ab ▁ab"), ({}, "", ""), ({}, "   ", ""),
    (dict(trim=False), " ab", "▁ ▁ab"), (dict(dummy=False), "ab a", "ab ▁a"),
    ({}, "xyza", "▁ <unk> a"), ({}, "x a", "▁ <unk> ▁a"), ({}, "</s>a", "▁ <unk> a"),
    (dict(byte_fallback=True), "é1", "▁ <0xC3> <0xA9> 1"), ({}, "\ud800a", "▁ <unk> a"),
    (dict(charsmap=charsmap({"Ａ": "a", "é": "b", "é!": "1", "\t": " ", "\x07": ""})),
     "Ａ\tAé é!\x07a", "▁a ▁ <unk> b ▁ 1 a"),
    (dict(escape=False), "a", "<unk> a")])
@pytest.mark.parametrize("kind", [UNIGRAM, BPE])
def test_texts_are_normalised_and_cut(kind, how, text, cut):
    """One space in front, none doubled; what is unknown is one piece; the longest rule wins."""
    ours = SentencePiece(pieces(WORDS, *BYTES), kind, **how)
    assert " ".join(ours.pieces[i] for i in ours.encode_ordinary(text)) == cut


@pytest.mark.parametrize("kind, text, cut", [
    (UNIGRAM, "aab<x>b", "▁a ab <x> b"), (UNIGRAM, "bb", "▁ b b"), (UNIGRAM, "ab<", "▁ ab <unk>"),
    (BPE, "aab<x>b", "▁a ab <x> b"), (BPE, "bb", "▁ b b"), (BPE, "bbb", "▁ bbb")])
def test_pieces_of_users_are_whole_and_unused_ones_never_stay(kind, text, cut):
    """bb is unused: BPE makes bbb of it, but where it would be left it falls apart again."""
    words = {w: s for w, s in WORDS.items() if w not in ("aab", "aa", "▁ab")} | {"bbb": -9}
    ours = SentencePiece(pieces(words, ("<x>", 0.0, USER), ("bb", -2.0, UNUSED)), kind)
    assert " ".join(ours.pieces[i] for i in ours.encode_ordinary(text)) == cut


@pytest.mark.parametrize("text, expected", [
    ("▁ab ▁a </s> 1", "ab a1"), ("<unk> a", " ⁇ a"), ("▁ ▁a", "a"), ("<0xC3> <0xA9>", "é"),
    ("a <0xC3> <0xE2> <0x82>", "a���")])
def test_ids_become_text_again(text, expected):
    ours = SentencePiece(pieces(WORDS, *BYTES), UNIGRAM)
    assert ours.decode([ours.ids[p] for p in text.split(" ")]) == expected


# ---------------------------------------------------------------------------- wrong files

GOOD = message(pieces(), {3: UNIGRAM}, {2: charsmap({"é": "b"})})


@pytest.mark.parametrize("raw, complaint", [
    (b"", "no pieces"), (b"GGUF" + bytes(60), "field"), (b"{}" * 9, "SentencePiece"),
    (GOOD[:-1], "cut off"), (b"\x0a\xff\xff\xff\xff\x7f", "cut off"), (b"\x80" * 30, "ten bytes"),
    (message(pieces(), {3: 3}), "model type 3"), (message(pieces(), {24: 1}), "behind a word"),
    (message(pieces() + [("a", 0.0, NORMAL)]), "twice"), (message(pieces({"": 1})), "empty"),
    (message(pieces({"a": float("nan")})), "strange score"),
    (message(pieces(WORDS, ("z", 0.0, 9))), "kind"), (message(SPECIAL[:2]), "no pieces"),
    (message(pieces(), {35: 1}), "256 bytes"),
    (message([*pieces(), ("zz", 0.0, BYTE)]), "byte that"),
    (message(pieces(), {}, {2: b"\xff" * 9}), "map of"),
    (message(pieces(), {}, {2: 10**15}), "SentencePiece"),
    (field(1, field(1, b"\xff")), "SentencePiece")])
def test_what_is_no_sentencepiece_model_is_one_line(raw, complaint, tmp_path):
    (tmp_path / "spiece.model").write_bytes(raw)
    with pytest.raises(UserError, match=complaint) as e:
        read_sentencepiece(tmp_path)
    assert "\n" not in str(e.value)


def test_a_damaged_file_is_refused_or_works(tmp_path):
    """Any cut, any byte changed: never another exception, and no endless loop."""
    rng = random.Random(0)
    for i in range(0, len(GOOD), 5):
        hurt = bytearray(GOOD)
        hurt[i] = rng.randrange(256)
        for raw in (GOOD[:i], bytes(hurt)):
            (tmp_path / "x").write_bytes(raw)
            try:
                ours = read_sentencepiece(tmp_path / "x")
                ours.decode(ours.encode_ordinary("a é ab </s> 1"))
            except UserError as e:
                assert "\n" not in str(e)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="spiece.model: No such file"):
        read_sentencepiece(tmp_path)


# ---------------------------------------------------------------------------- T5

def test_t5s_sentinels_stand_behind_its_pieces(tmp_path):
    """12 pieces, then <extra_id_99> ... <extra_id_0>; the embedding has rows to spare."""
    write(tmp_path / "spiece.model", pieces())
    ours = get_t5_tokenizer(tmp_path, 128)
    assert ours.n_vocab == 112 and ours.sentinels["<extra_id_0>"] == 111
    ids = ours.encode("ab<extra_id_0> a<extra_id_1>")
    assert ids == [*ours.encode_ordinary("ab"), 111, *ours.encode_ordinary("a"), 110, 1]
    assert ours.decode([0, *ids, 127, 0]) == "ab <extra_id_0> a <extra_id_1>"
    assert len(T5Tokenizer(ours.pieces, 15).sentinels) == 3


def unigram_json(**changes):
    """What the library tokenizers writes, sentinels among the pieces."""
    rules = base64.b64encode(charsmap({"é": "b"})).decode()
    vocab = [[p, s] for p, s, _ in pieces()] + [["<extra_id_1>", 0.0], ["<extra_id_0>", 0.0]]
    return json.dumps({"model": {"type": "Unigram", "unk_id": 2, "vocab": vocab},
                       "normalizer": {"type": "Precompiled", "precompiled_charsmap": rules},
                       "added_tokens": [{"id": i, "special": True} for i in (0, 1, 2, 12, 13)]}
                      | changes)


def test_t5s_tokenizer_may_be_json(tmp_path):
    (tmp_path / "tokenizer.json").write_text(unigram_json())
    ours = get_t5_tokenizer(tmp_path, 16)
    write(tmp_path / "spiece.model", pieces(), {}, {2: charsmap({"é": "b"})})
    other = get_t5_tokenizer(tmp_path, 14)
    assert ours.n_vocab == other.n_vocab == 14
    for text in (*texts(50), "ab é <extra_id_0> a <extra_id_1>"):
        assert ours.encode(text) == other.encode(text)
    assert ours.decode([3, 13, 15, 4]) == other.decode([3, 13, 15, 4]) == "<extra_id_0> a"


@pytest.mark.parametrize("text", [
    unigram_json(model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0], ["\ud800", 0]]}),
    unigram_json(model={"type": "BPE", "unk_id": 2}), unigram_json(model={}), "[]", "{" * 99999,
    unigram_json(normalizer={"type": "Precompiled", "precompiled_charsmap": "////////"}),
    unigram_json(model={"type": "Unigram", "unk_id": 0, "vocab": [["a"]]}), "Entry not found"])
def test_broken_json_is_one_line(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="not a unigram model in JSON") as e:
        get_t5_tokenizer(tmp_path, 99)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("words, size, complaint", [
    (pieces(), 11, "12 pieces, but the model has 11"), (pieces()[2:], 99, "no piece </s>")])
def test_a_tokenizer_of_another_t5_is_refused(words, size, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        get_t5_tokenizer(write(tmp_path / "spiece.model", words), size)
    with pytest.raises(UserError, match="no spiece.model beside the weights"):
        get_t5_tokenizer(tmp_path / "..", 99)
