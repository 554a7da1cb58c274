"""The byte-pair encodings of GPT-2, LLaMA and CLIP, built from local files as tiktoken Encodings.

A vocabulary is a table of tokens and their ids, and a list of merges in the order in which they
were learnt. Text becomes bytes, each byte a token, and then the earliest merge that applies joins
two neighbours into one token, again and again:

    " red"  ->  Ġ r e d  ->  Ġ re d  ->  Ġre d  ->  Ġred, which is token 2266 of GPT-2

Files write one character for each byte, printable or not (byte_symbols): Ġ is the space. GPT-2's
tokens begin with the space before a word, CLIP's end with a mark </w> behind the word. Descendants
of GPT-2's differ in their vocabulary and in how text is cut before merging (PATTERNS). LLaMA 1 and
2 have another kind, weights/sentencepiece.py.

Sources: openai/gpt-2 src/encoder.py, openai/CLIP clip/simple_tokenizer.py; for PATTERNS the
tokenizer.json of HuggingFaceTB/SmolLM2-135M and ggml-org/llama.cpp src/llama-vocab.cpp.
"""

import gzip
import html
import io
import json
import os
import re
import unicodedata
import zlib
from pathlib import Path

import tiktoken
import torch

from lib.cli import UserError
from lib.files import open_file, plain_errors
from weights import gguf
from weights.public import fetch
from weights.reading import DAMAGED
from weights.sentencepiece import BPE, SentencePiece, read_sentencepiece

MOST_UNPACKED = 20_000_000  # bytes; CLIP's own list has 3.2 MB
SOT, EOT = "<|startoftext|>", "<|endoftext|>"  # GPT-2's texts begin and end with EOT
LLAMA3_BOS, LLAMA3_EOT = "<|begin_of_text|>", "<|end_of_text|>"


def byte_symbols():
    """{symbol: byte} of GPT-2's and CLIP's vocabulary files, in the order of their first 256 ids.

    Bytes that do not print are shown as the characters chr(256), chr(257), ...
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def read_text(path):
    """The text of a file, unpacked if its name ends in .gz. ValueError if it is no sound text."""
    packed = path.suffix == ".gz"
    with plain_errors(path), open_file(path) as f:
        raw = gzip.open(f).read(MOST_UNPACKED) if packed else f.read()
    if packed and len(raw) == MOST_UNPACKED:  # a few bytes can unpack to gigabytes
        raise ValueError(f"it unpacks to {len(raw):,} bytes or more")
    return io.TextIOWrapper(io.BytesIO(raw), "utf-8").read()  # any line ends become "\n"


# ---------------------------------------------------------------------------- GPT-2

# How text is cut before merging: contractions, words, numbers, other marks, each with its space.
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# SmolLM's: every digit is a token, and the spaces in front of a digit stay together.
DIGITS = SPLIT.replace(r" ?\p{N}++", r"\p{N}").replace(r"|\s++$", r"|\s+(?=\p{N})|\s++$")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PATTERNS = {"gpt-2": SPLIT, "smollm": DIGITS, "llama-bpe": LLAMA3}  # by their names in GGUF files
# A vocabulary -> the merges beside it. The last two hold both.
MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe", "tokenizer.model": None,
          "tokenizer.json": None}


class BytePairs(tiktoken.Encoding):
    """GPT-2's encoding or a descendant: texts may end with another token, rare bytes may have none.

    SmolLM's vocabulary lacks 21 bytes, some control characters and what is not in valid UTF-8: they
    vanish from a text, as in Hugging Face's library, and their neighbours meet.
    """

    def __init__(self, name, *, mergeable_ranks, special_tokens, **more):
        top = max(*mergeable_ranks.values(), *special_tokens.values())
        lost = [b for b in range(256) if bytes([b]) not in mergeable_ranks]
        # tiktoken demands a rank for every byte: theirs are above all others and never given out.
        ranks = mergeable_ranks | {bytes([b]): top + 1 + i for i, b in enumerate(lost)}
        super().__init__(name, mergeable_ranks=ranks, special_tokens=special_tokens, **more)
        self.max_token_value = top
        # Taken out first between two marks, which may merge then. Elsewhere they keep words apart.
        chars = "".join(re.escape(chr(b)) for b in lost if b < 128)
        gap = rf"(?<=[^\w\s{chars}]|[_ ])[{chars}]+(?=[^\w\s]|_)" if chars else "(?!)"
        self.lost, self.gap = lost, re.compile(gap)

    @property
    def bos(self):
        """The id in front of a text, where that is another than at its end; else None."""
        return self._special_tokens.get(LLAMA3_BOS)

    @property
    def eot_token(self):
        return self._special_tokens[EOT if EOT in self._special_tokens else LLAMA3_EOT]

    def encode_ordinary(self, text):
        if not self.lost:
            return super().encode_ordinary(text)
        ids = super().encode_ordinary(self.gap.sub("", text))
        return [i for i in ids if i <= self.max_token_value]


def get_tokenizer(where=None, vocab_size=50257):
    """A byte-pair encoding like GPT-2's as a tiktoken Encoding, from local files where there are
    some; or LLaMA's SentencePiece, which also has encode_ordinary, decode, n_vocab and eot_token.

    where: a folder with vocab.json (and merges.txt), encoder.json (and vocab.bpe), tokenizer.model
    or tokenizer.json, or one of these, or a GGUF file. Where there is none, a model with GPT-2's
    vocab_size gets GPT-2's own, from tiktoken's cache or download or else from ours. UserError if
    nothing is found. The model's vocab_size may be larger than the vocabulary: embeddings are often
    padded.

    pitfall: encode with encode_ordinary. encode() raises on a text that contains "<|endoftext|>".
    """
    path = Path(where) if where else None
    if path and not os.path.exists(path):
        raise UserError(f"{path}: no such file or folder, so no tokenizer there")
    if path and os.path.isdir(path):
        path = next((path / name for name in MERGES if os.path.exists(path / name)), None)
    if path and path.suffix == ".model":
        return read_sentencepiece(path)
    if path:
        with plain_errors(path), open_file(path) as f:
            is_gguf = f.read(4) == b"GGUF"
        return read_gguf_tokenizer(path) if is_gguf else read_encoding(path)
    if vocab_size != 50257:
        raise UserError(f"{where or 'this model'}: no tokenizer files beside the weights, and with "
                        f"{vocab_size} tokens they do not use GPT-2's own; put their vocab.json "
                        "and merges.txt there")
    try:
        return tiktoken.get_encoding("gpt2")
    except OSError:  # no network; requests' ConnectionError is an OSError
        pass
    try:
        return read_encoding(fetch("gpt2/vocab.json"))
    except UserError as e:
        raise UserError(f"GPT-2's tokenizer is not on this machine. {e}") from None


def read_vocabulary(path):
    """A file -> its vocabulary {token: id}, merges [(left, right)], added tokens {token: id}, and
    the pattern that cuts a text. The tokens are written in byte_symbols. Merges are [] if the file
    beside is not there."""
    content = json.loads(read_text(path))
    # pitfall: "model" is one of GPT-2's tokens too: in vocab.json that key has a number.
    if isinstance(content.get("model"), dict):  # tokenizer.json; a merge is "a b" or ["a", "b"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in content["model"]["merges"]]
        added = {token["content"]: int(token["id"]) for token in content.get("added_tokens", [])}
        return content["model"]["vocab"], merges, added, read_pattern(content.get("pre_tokenizer"))
    beside = path.with_name(MERGES.get(path.name) or "vocab.bpe")
    merges = read_merges(read_text(beside)) if os.path.exists(beside) else []
    return content, merges, {}, SPLIT


def read_pattern(step):
    """The pre_tokenizer of a tokenizer.json -> a pattern that cuts a text as it does."""
    steps = step["pretokenizers"] if step and step["type"] == "Sequence" else [step]
    kinds = [step and step["type"] for step in steps]
    if kinds in ([None], ["ByteLevel"]):
        return SPLIT
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return DIGITS
    if kinds == ["Split", "ByteLevel"] and steps[0]["behavior"] == "Isolated":
        return steps[0]["pattern"]["Regex"]
    raise ValueError(f"its pre_tokenizer {kinds} is not known here")


def read_gguf_tokenizer(path):
    """The tokenizer among the key-values of a GGUF file, of either kind."""
    notes = gguf.header(path)[0]
    kind, pre, tokens, types, merges, scores = (
        notes.get(f"tokenizer.ggml.{key}") for key in
        ("model", "pre", "tokens", "token_type", "merges", "scores"))
    try:
        if kind == "llama":
            pieces = list(zip(tokens, map(float, scores), map(int, types), strict=True))
            return SentencePiece(pieces, BPE, trim=False, byte_fallback=True,
                                 dummy=notes.get("tokenizer.ggml.add_space_prefix", True))
        if kind != "gpt2" or pre not in PATTERNS:
            raise ValueError(f"{kind} with {pre}; known are llama, and gpt2 with one of "
                             f"{', '.join(PATTERNS)}")
        added = {token: i for i, (token, t) in enumerate(zip(tokens, types, strict=True)) if t != 1}
        vocab = {token: i for i, token in enumerate(tokens)}
        return build_encoding(path, vocab, [m.split(" ") for m in merges], added, PATTERNS[pre])
    except DAMAGED as e:
        raise UserError(f"{path}: its tokenizer is not known here, or damaged ({e})") from None


def read_merges(text):
    """The lines "left right" of a list of merges as pairs; the first line may name a version."""
    lines = text.split("\n")
    return [line.split() for line in lines["#version" in lines[0]:] if line]


def read_encoding(path):
    """The encoding of a vocabulary like GPT-2's. UserError if tiktoken would misread it."""
    try:
        return build_encoding(path, *read_vocabulary(path))
    except DAMAGED as e:
        raise UserError(f"{path}: not a GPT-2 tokenizer file ({type(e).__name__}: {e})") from None


def build_encoding(path, vocab, merges, special, pattern):
    """As read_vocabulary gives them -> BytePairs; path is for the messages alone."""
    symbols, vocab = byte_symbols(), {token: int(i) for token, i in vocab.items()}
    made = [left + right for left, right in merges]
    # What no merge makes is no text: EOT, padding, what others have added.
    plain = {*symbols, *made} if merges else vocab.keys() - {EOT}
    special = special | {token: i for token, i in vocab.items() if token not in plain}
    ranks = {bytes(symbols[c] for c in token): i for token, i in vocab.items()
             if token not in special}
    order = [vocab.get(token, -1) for token in made]
    "".join(special).encode()  # fails on one half of a surrogate pair
    # pitfall: tiktoken panics in Rust where a byte is missing, which `except Exception` does not
    # catch. BytePairs fills in the rare ones.
    if not all(bytes([b]) in ranks for b in range(32, 127)):
        raise UserError(f"{path}: not a byte-level vocabulary: some of the 256 bytes have no token")
    if EOT not in special and LLAMA3_EOT not in special:
        raise UserError(f"{path}: no token {EOT} in it")
    taken = {*special.values()}
    free = [i for i in range(len(ranks) + len(taken)) if i not in taken]
    if sorted(ranks.values()) != free[:len(ranks)] or len(taken) < len(special) \
            or not 0 <= min(taken) <= max(taken) < 2**31:
        raise UserError(f"{path}: token ids must be 0, 1, 2, ... without a gap other than {EOT}")
    # tiktoken merges in the order of ids; that is right only if the merges were numbered in order.
    if order != sorted(order) or -1 in order:
        raise UserError(f"{path}: its merges are not numbered in the order in which they were "
                        "learnt")
    return BytePairs("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


# ---------------------------------------------------------------------------- CLIP

def get_clip_tokenizer(where=None):
    """CLIP's byte-pair encoding -> a function from a list of texts to ids (B, 77) int64.

    where: a folder with merges.txt, or such a file, or OpenAI's bpe_simple_vocab_16e6.txt.gz; None
    fetches that. A word's last symbol is marked: "red" alone and "red" in "redder" differ.
    UserError for a text of more than 75 tokens.
    """
    path = Path(where or fetch("clip/bpe_simple_vocab_16e6.txt.gz"))
    path = path / "merges.txt" if os.path.isdir(path) else path
    symbols = byte_symbols()

    # The mark </w> is written as the byte 0, which occurs in no merge. Then "byte + 0" outranks
    # every merge, is always formed first, and tiktoken does the rest.
    def as_bytes(symbol):
        word = symbol.removesuffix("</w>")
        return bytes(symbols[c] for c in word) + b"\0" * (word != symbol)

    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    try:
        # OpenAI's list is longer than what was used: 48,894 make the public 49,408 tokens.
        tokens += [left + right for left, right in read_merges(read_text(path))[:48894]]
        ranks = {as_bytes(token): i for i, token in enumerate(tokens)}
    except (EOFError, zlib.error, ValueError, KeyError) as e:
        raise UserError(f"{path}: not a list of CLIP's merges ({type(e).__name__}: {e})") from None
    sot, eot = len(tokens), len(tokens) + 1
    bpe = tiktoken.Encoding("clip", pat_str=r"[^\x00]+\x00", mergeable_ranks=ranks,
                            special_tokens={SOT: sot, EOT: eot})

    def encode(texts, context=77):
        idx = torch.zeros(len(texts), context, dtype=torch.int64)
        for row, text in zip(idx, texts):
            marked = "".join(word + "\0" for word in pretokenize(text))
            ids = [sot, *bpe.encode_ordinary(marked), eot]
            if len(ids) > context:
                raise UserError(f"a text of {len(ids)} tokens is too long for CLIP ({context}): "
                                f"{text[:60]}...")
            row[:len(ids)] = torch.tensor(ids)
        return idx

    return encode


CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
RUN = re.compile("L+|N|Z|[^LNZ]+")  # of letters, one number, a space, of all other marks


def pretokenize(text):
    """CLIP's clean lower-case words: contractions, runs of letters, single digits, runs of marks.

    differs: OpenAI also runs ftfy. Of its mending only NFC is done here (e and an accent become one
    letter); curly quotes and broken encodings stay as they are.
    """
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", text)))
    text = " ".join(text.replace("\0", "").split()).lower()
    # One letter a character, which says its kind. Python's re knows no \p{L}.
    kinds = "".join(unicodedata.category(c)[0] for c in text)
    i = 0
    while i < len(text):
        end = (CONTRACTION.match(text, i) or RUN.match(kinds, i)).end()
        if text[i] != " ":
            yield text[i:end]
        i = end


def join_words(encoding, ids):
    """The tokens of each word of a text: [(word, [places in ids])]. White space begins a word."""
    groups = []
    for i, token in enumerate(ids):
        piece = encoding.decode_single_token_bytes(token)  # bytes: two tokens may share a letter
        if not groups or piece[:1].isspace():
            groups.append((piece, [i]))
        else:
            groups[-1] = (groups[-1][0] + piece, groups[-1][1] + [i])
    words = [(piece.decode("utf-8", "replace").strip(), places) for piece, places in groups]
    return [(word, places) for word, places in words if word]
