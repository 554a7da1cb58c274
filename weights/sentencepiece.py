"""SentencePiece models, read by hand: the tokenizers of T5 (unigram) and of LLaMA 1 and 2 (BPE).

Text is one string in which a space is written "▁", and no rule cuts it into words beforehand:

    "A red star"  ->  normalise: ▁A▁red▁star  ->  cut: ▁A ▁red ▁st ar  ->  ids

unigram: every piece has a score, its log probability. Of all ways to cut the text the one with
         the largest sum is taken: Viterbi, from left to right.
BPE:     every piece has a rank as its score. Of all neighbours that join to a piece, those with
         the best rank become one, again and again; of two that tie, those on the left.

What no piece spells is unknown: one id for a whole run of it, or with byte_fallback an id for each
byte. The file is a protobuf message: fields, each with a number, a kind, and a value.

Sources: Kudo and Richardson 2018, "SentencePiece"; Kudo 2018, "Subword Regularization" (unigram);
google/sentencepiece src/{sentencepiece_model.proto, normalizer.cc, unigram_model.cc, bpe_model.cc},
s-yata/darts-clone include/darts.h. differs: spaces behind words are refused, and denormalizers
are not read, as no model here has either. A user's own pieces count what their file says, mostly 0,
which beats all others; releases of the original differ in this. So of two cuts that are as likely
("aa a" or "a aa", where aa is such a piece) the last bit of a sum may choose the other there.
"""

import base64
import codecs
import heapq
import json
import math
import os
import re
import struct
from pathlib import Path

import numpy as np

from lib.cli import UserError
from lib.files import open_file, plain_errors
from weights.public import tokenizer_file
from weights.reading import DAMAGED

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # what a piece may be
UNIGRAM, BPE = 1, 2
# mT5's, one of the largest, has 250,100 pieces and 4.3 MB, as JSON 16.
MAX_BYTES, MAX_PIECES = 32_000_000, 1_000_000


# ---------------------------------------------------------------------------- the file

def varint(raw, i):
    """A number in 7 bits a byte, the lowest first; the 8th bit says that more come."""
    n = 0
    for shift in range(0, 70, 7):
        if i >= len(raw):
            raise ValueError("cut off inside a number")
        n |= (raw[i] & 127) << shift
        i += 1
        if raw[i - 1] < 128:
            return n, i
    raise ValueError("a number of more than ten bytes")


def fields(raw):
    """The fields of a protobuf message: (number, value), an int or bytes, or a float of 4 bytes."""
    i = 0
    while i < len(raw):
        key, i = varint(raw, i)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, i = varint(raw, i)
        else:
            size, i = varint(raw, i) if kind == 2 else ({1: 8, 5: 4}.get(kind, math.inf), i)
            if size > len(raw) - i:
                raise ValueError(f"field {number} of kind {kind} is unknown or cut off")
            value, i = raw[i:i + size], i + size
            value = struct.unpack("<f", value)[0] if kind == 5 else value
        yield number, value


def read_small(path):
    """The bytes of a file that is no larger than a tokenizer may be."""
    with plain_errors(path), open_file(path) as f:
        raw = f.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path}: no tokenizer, those have less than {MAX_BYTES // 10**6} MB")
    return raw


def read_sentencepiece(path):
    """A "spiece.model" or "tokenizer.model", or the one in a folder, as a SentencePiece."""
    path = Path(path)
    if os.path.isdir(path):
        names = [path / name for name in ("spiece.model", "tokenizer.model")]
        path = next(filter(os.path.exists, names), names[0])
    pieces, trainer, normalizer, raw = [], {}, {}, read_small(path)
    try:
        for number, value in fields(raw):
            if number == 1:
                piece = dict(fields(value))
                pieces.append((piece.get(1, b"").decode("utf-8"), float(piece.get(2, 0.0)),
                               piece.get(3, NORMAL)))
                if len(pieces) > MAX_PIECES:
                    raise ValueError(f"more than {MAX_PIECES:,} pieces")
            elif number == 2:
                trainer = dict(fields(value))
            elif number == 3:
                normalizer = dict(fields(value))
        if trainer.get(24):
            raise ValueError("it writes the space behind a word, which is not known here")
        return SentencePiece(pieces, trainer.get(3, UNIGRAM), normalizer.get(2, b""),
                             dummy=bool(normalizer.get(3, True)),
                             trim=bool(normalizer.get(4, True)),
                             escape=bool(normalizer.get(5, True)),
                             byte_fallback=bool(trainer.get(35, False)))
    except DAMAGED as e:
        raise UserError(f"{path}: not a SentencePiece model, or a damaged one ({e}); fetch it "
                        "again") from None


def read_tokenizer_json(path):
    """The same from the JSON that the library tokenizers writes, for unigram models."""
    try:
        content = json.loads(read_small(path))
        model, unknown = content["model"], content["model"]["unk_id"]
        if model["type"] != "Unigram":
            raise ValueError(f"a {model['type']}, not a unigram model")
        special = {token["id"] for token in content["added_tokens"] if token["special"]}
        kinds = [UNKNOWN if i == unknown else CONTROL if i in special else NORMAL
                 for i in range(len(model["vocab"]))]
        pieces = [(str(piece), float(np.float32(score)), kind)
                  for (piece, score), kind in zip(model["vocab"], kinds)]
        steps = content["normalizer"] or {}
        maps = [base64.b64decode(step["precompiled_charsmap"])
                for step in steps.get("normalizers", [steps]) if step.get("type") == "Precompiled"]
        return SentencePiece(pieces, UNIGRAM, maps[0] if maps else b"",
                             byte_fallback=bool(model.get("byte_fallback")))
    except DAMAGED as e:
        raise UserError(f"{path}: not a unigram model in JSON ({type(e).__name__}: {e}); fetch it "
                        "again") from None


# ---------------------------------------------------------------------------- normalising

class Charsmap:
    """What is written otherwise: full-width letters, ligatures, tabs, ... -> plain ones.

    The bytes are a trie over UTF-8, packed into a "double array" of 32-bit units, and the
    replacements, each ended by a zero byte. A unit knows the byte that leads to it (its label) and
    where its children begin (its offset): the child for byte b is at offset ^ b.
    """

    def __init__(self, raw):
        size = int.from_bytes(raw[:4], "little")
        if raw and (size % 4 or size > len(raw) - 4):
            raise ValueError("its map of characters is cut off")
        self.units = np.frombuffer(raw[4:4 + size], "<u4").tolist()
        self.words = raw[4 + size:]

    def children(self, at):
        unit = self.units[at]
        return at ^ (unit >> 10) << ((unit & 0x200) >> 6)

    def longest(self, text, i):
        """The longest entry that text has at i: (its replacement, its length), or (None, 0)."""
        units, found = self.units, (None, 0)
        at = self.children(0) if units else 0
        for n in range(i, len(text)):
            for byte in text[n].encode():
                at ^= byte
                if at >= len(units) or units[at] & 0x800000FF != byte:
                    return found
                ends = units[at] >> 8 & 1
                at = self.children(at)
            if ends and at < len(units):  # an entry: the unit there says where its word begins
                start = units[at] & 0x7FFFFFFF
                word = self.words[start:start + 200].partition(b"\0")[0]  # the longest has 33 bytes
                found = word.decode("utf-8", "replace"), n + 1 - i
        return found


class SentencePiece:
    """A tokenizer. pieces: [(text, score, NORMAL ... BYTE)], the ids are their places in the list.

    kind: UNIGRAM or BPE. dummy: a space is put in front of every text. trim: runs of spaces become
    one, and none stays at either end. escape: a space is written ▁. ValueError where the pieces
    are no vocabulary.
    """

    def __init__(self, pieces, kind, charsmap=b"", dummy=True, trim=True, escape=True,
                 byte_fallback=False):
        if kind not in (UNIGRAM, BPE):
            raise ValueError(f"model type {kind}, only unigram (1) and BPE (2) are known here")
        self.pieces, self.scores, self.kinds = map(list, zip(*pieces)) if pieces else ([], [], [])
        if len(set(self.pieces)) < len(pieces) or "" in self.pieces or not all(
                math.isfinite(score) and k in range(1, 7) for _, score, k in pieces):
            raise ValueError("a piece is empty, occurs twice, or has a strange score or kind")
        "".join(self.pieces).encode()  # a ValueError for half a surrogate pair
        if not all(re.fullmatch("<0x[0-9A-F]{2}>", p) for p, _, k in pieces if k == BYTE):
            raise ValueError("a piece for a byte that is called otherwise than <0x..>")
        if self.kinds.count(UNKNOWN) != 1 or NORMAL not in self.kinds:
            raise ValueError("no pieces, or not one for all that is unknown")
        self.kind, self.charsmap, self.byte_fallback = kind, Charsmap(charsmap), byte_fallback
        self.dummy, self.trim, self.space = dummy, trim, SPACE if escape else " "
        self.unk, self.ids = self.kinds.index(UNKNOWN), {p: i for i, p in enumerate(self.pieces)}
        self.spells = {p: i for p, i in self.ids.items() if self.kinds[i] in (NORMAL, USER, UNUSED)}
        self.longest = max(map(len, self.spells))
        self.worst = min(s for s, k in zip(self.scores, self.kinds) if k == NORMAL) - 10
        users = sorted((p for p, i in self.ids.items() if self.kinds[i] == USER), key=len)
        self.users = re.compile("|".join(map(re.escape, users[::-1])) or r"(?!)")
        self.bytes = [self.ids.get(f"<0x{b:02X}>") for b in range(256)]
        if byte_fallback and None in self.bytes:
            raise ValueError("not a piece for each of the 256 bytes")

    # What a language model asks of its tokenizer, besides encode_ordinary and decode.
    n_vocab = property(lambda self: len(self.pieces))
    bos = property(lambda self: self.ids.get("<s>"))
    eot_token = property(lambda self: self.ids.get("</s>"))

    def normalize(self, text):
        """The text as it will be cut: mapped characters, a space in front, spaces written ▁."""
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
        words, i, after_space = [" " * (self.dummy and bool(text))], 0, self.trim
        while i < len(text):
            user = self.users.match(text, i)
            word, n = (user[0], len(user[0])) if user else self.charsmap.longest(text, i)
            word, n = (word, n) if n else (text[i], 1)
            i += n
            word = word.lstrip(" ") if after_space else word
            if word:
                words.append(word)
                after_space = self.trim and word.endswith(" ")
        clean = "".join(words).replace(" ", self.space)
        return clean.rstrip(self.space) if self.trim else clean

    def encode_ordinary(self, text):
        """A text -> its ids. Names of control pieces in it ("</s>") are text like any other."""
        ids, before = [], None
        cut = self.viterbi if self.kind == UNIGRAM else self.merge
        for piece, i in cut(self.normalize(text)):
            if i == self.unk and self.byte_fallback:
                ids += [self.bytes[b] for b in piece.encode()]
            elif i != self.unk or before != self.unk:  # a run of unknown pieces is one
                ids.append(i)
            before = i
        return ids

    def viterbi(self, text):
        """Unigram: [(piece, id)] of the way to cut the text whose scores have the largest sum."""
        best = [(-math.inf, 0, 0)] * (len(text) + 1)  # of each place: sum, start, id of the piece
        best[0] = (0.0, 0, 0)

        def offer(start, end, i, score):
            # In 32 bits as in the original. Two ways to cut a text are often equally likely ("aaa"
            # as aa a or a aa), and then the last bit decides.
            total = float(np.float32(best[start][0] + score))
            if total > best[end][0]:
                best[end] = total, start, i

        for start in range(len(text)):
            for end in range(start + 1, min(start + self.longest, len(text)) + 1):
                i = self.spells.get(text[start:end], self.unk)
                if self.kinds[i] in (NORMAL, USER):
                    offer(start, end, i, self.scores[i])
                elif end == start + 1:
                    offer(start, end, self.unk, self.worst)
        cut, end = [], len(text)
        while end:
            _, start, i = best[end]
            cut.append((text[start:end], i))
            end = start
        return cut[::-1]

    def merge(self, text):
        """BPE: [(piece, id)] when nothing more can be joined."""
        parts, fixed, i = [], [], 0
        while i < len(text):
            user = self.users.match(text, i)  # whole from the start, and joined to nothing
            parts.append(user[0] if user else text[i])
            fixed.append(user is not None)
            i += len(parts[-1])
        left, right = [*range(-1, len(parts) - 1)], [*range(1, len(parts)), -1]  # neighbours
        queue, halves = [], {}

        def consider(a, b):  # may the parts at a and b become one?
            i = None if min(a, b) < 0 or fixed[a] or fixed[b] else \
                self.spells.get(parts[a] + parts[b])
            if i is not None:
                heapq.heappush(queue, (-self.scores[i], a, b, parts[a], parts[b]))
                if self.kinds[i] == UNUSED:
                    halves[parts[a] + parts[b]] = parts[b], parts[a]

        for b in range(1, len(parts)):
            consider(b - 1, b)
        while queue:
            _, a, b, one, two = heapq.heappop(queue)
            if parts[a] != one or parts[b] != two:  # one of them has been joined elsewhere
                continue
            parts[a], parts[b], right[a] = one + two, "", right[b]
            if right[a] >= 0:
                left[right[a]] = a
            consider(left[a], a)
            consider(a, right[a])
        cut, todo = [], [part for part in parts[::-1] if part]
        while todo:
            piece = todo.pop()
            i = self.ids.get(piece, self.unk)
            if self.kinds[i] == UNUSED and piece in halves:  # it helps in between, but never stays
                todo += halves[piece]
            else:
                cut.append((piece, i))
        return cut

    def decode_single_token_bytes(self, i):
        """What the token adds to a text, as tiktoken's encodings say it."""
        piece, kind = self.pieces[i], self.kinds[i]
        return bytes([int(piece[3:5], 16)]) if kind == BYTE else piece.replace(SPACE, " ").encode()

    def decode(self, ids):
        """Ids -> the text. Control pieces are silent, a byte that is part of no character is �."""
        out, begins = bytearray(), self.dummy or self.trim
        for i in ids:
            piece, kind = self.pieces[i], self.kinds[i]
            if kind == CONTROL:
                continue
            if begins:  # the space in front of the text
                piece = piece.removeprefix(SPACE)
            out += bytes([int(piece[3:5], 16)]) if kind == BYTE else \
                (" ⁇ " if kind == UNKNOWN else piece.replace(SPACE, " ")).encode()
            begins = begins and self.trim and not out
        return out.decode("utf-8", "one by one")


# As sentencepiece does; Python's own "replace" makes one � of several bytes that begin a character.
codecs.register_error("one by one", lambda e: ("�", e.start + 1))


# ---------------------------------------------------------------------------- T5

class T5Tokenizer:
    """T5's pieces, and behind them up to 100 sentinels, the last first: <extra_id_99> ...
    <extra_id_0>. In what T5 reads they mark holes, in what it writes they tell which one follows.

    vocab_size: rows of the model's embedding, often more than there are tokens."""

    def __init__(self, pieces, vocab_size):
        # tokenizer.json names them among the pieces, spiece.model does not.
        named = {piece: i for piece, i in pieces.ids.items() if piece.startswith("<extra_id_")}
        extra = min(0 if named else 100, vocab_size - pieces.n_vocab)
        if extra < 0 or pieces.eot_token is None:
            raise ValueError(f"{pieces.n_vocab} pieces, but the model has {vocab_size}" if extra < 0
                             else "no piece </s> for the end of a text")
        self.pieces, self.eot_token, self.n_vocab = pieces, pieces.eot_token, pieces.n_vocab + extra
        self.encode_ordinary, self.bos = pieces.encode_ordinary, 0  # padding begins what it writes
        self.sentinels = named or {f"<extra_id_{n}>": self.n_vocab - 1 - n for n in range(extra)}
        self.names = {i: name for name, i in self.sentinels.items()}

    def encode(self, text):
        """A text as T5 reads it: sentinels are understood, </s> ends it."""
        parts = re.split(r"(<extra_id_\d+>)", text)
        return [*(i for part in parts for i in ([self.sentinels[part]] if part in self.sentinels
                                                else self.encode_ordinary(part))), self.eot_token]

    def decode(self, ids):
        """Ids -> the text, sentinels in it; padding behind the vocabulary is silent."""
        out, run = [], []
        for i in [*ids, None]:
            if i is None or i in self.names or i >= self.n_vocab:
                out += [self.pieces.decode(run), self.names.get(i)]
                run = []
            else:
                run.append(i)
        return " ".join(filter(None, out))


def get_t5_tokenizer(where=None, vocab_size=32128):
    """The T5Tokenizer of spiece.model or tokenizer.json, a file or beside the weights in a folder.
    Where there is none, a model with T5's vocab_size gets T5's own. UserError if none is found."""
    path = tokenizer_file(where, ("spiece.model", "tokenizer.json"), vocab_size,
                          "t5-base/spiece.model", 32128)
    try:
        read = read_tokenizer_json if path.suffix == ".json" else read_sentencepiece
        return T5Tokenizer(read(path), vocab_size)
    except ValueError as e:
        raise UserError(f"{path}: not this T5's tokenizer ({e})") from None
