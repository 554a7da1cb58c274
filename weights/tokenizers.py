"""Byte-pair encodings of GPT-2 and CLIP, from every file layout they are published in, as tiktoken Encodings."""

import base64
import gzip
import html
import json
import re
import unicodedata
import zlib
from pathlib import Path

import tiktoken
import torch

from lib.cli import UserError
from weights.public import fetch


def byte_symbols():
    """{symbol: byte} of GPT-2's and CLIP's vocabulary files, in the order of their first 256 ids.

    Bytes that do not print are shown as the characters chr(256), chr(257), ...
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


EOT = "<|endoftext|>"  # begins and ends every text
# How text is cut before merging: contractions, words, numbers, other marks, each with its space.
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def get_tokenizer(where=None, vocab_size=50257):
    """GPT-2's byte-pair encoding as a tiktoken Encoding, from local files where there are some.

    where: a folder or a file: vocab.json (+ merges.txt), encoder.json (+ vocab.bpe), merges.txt or
    vocab.bpe alone, tokenizer.json, or *.tiktoken. With none of them GPT-2's own files are used:
    tiktoken's download or cache, then weights.fetch. UserError if nothing is found.
    pitfall: encode with encode_ordinary. encode() raises on a text that contains "<|endoftext|>".
    """
    path = Path(where) if where else None
    if path and not path.is_file():
        path = find_vocabulary(path)
    if path:
        return build_encoding(*read_vocabulary(path), path)
    if vocab_size != 50257:
        raise UserError(f"{where or 'this model'}: no tokenizer files beside the weights, and with {vocab_size} "
                        "tokens they do not use GPT-2's own; put their vocab.json and merges.txt there")
    try:
        return tiktoken.get_encoding("gpt2")
    except OSError:  # no network; requests' ConnectionError is an OSError
        pass
    try:
        return build_encoding(*read_vocabulary(Path(fetch("gpt2/vocab.json"))), "gpt2/vocab.json")
    except UserError as e:
        raise UserError(f"GPT-2's tokenizer is not on this machine. {e}") from None


def find_vocabulary(folder):
    """The first tokenizer file in a folder, or None."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such file or folder, so no tokenizer there")
    for pattern in ("vocab.json", "encoder.json", "tokenizer.json", "*.tiktoken", "merges.txt", "vocab.bpe"):
        for path in sorted(folder.glob(pattern)):
            return path
    return None


def read_vocabulary(path):
    """A tokenizer file -> ({bytes: rank}, the bytes that each merge makes or [] where unknown)."""
    symbols = byte_symbols()
    def as_bytes(token):
        return bytes(symbols[c] for c in token)
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".tiktoken":
            pairs = (line.split() for line in text.splitlines() if line)
            return {base64.b64decode(token): int(rank) for token, rank in pairs}, []
        if path.suffix in (".txt", ".bpe"):
            merges = [as_bytes(a + b) for a, b in read_merges(text)]
            tokens = [bytes([b]) for b in symbols.values()] + merges
            return {token: rank for rank, token in enumerate(tokens)}, merges
        content, merges = json.loads(text), []
        # pitfall: "model" is also one of GPT-2's tokens, so vocab.json has that key too, with a number.
        if isinstance(content.get("model"), dict):  # tokenizer.json; it writes a merge as "a b" or [a, b]
            merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m)
                      for m in content["model"]["merges"]]
            content = content["model"]["vocab"]
        else:
            beside = path.with_name({"vocab.json": "merges.txt"}.get(path.name, "vocab.bpe"))
            if beside.exists():
                merges = read_merges(beside.read_text("utf-8"))
        return {as_bytes(token): int(rank) for token, rank in content.items()}, [as_bytes(a + b) for a, b in merges]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: not a GPT-2 tokenizer file ({type(e).__name__}: {e})") from None


def read_merges(text):
    lines = text.split("\n")
    return [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]


def build_encoding(ranks, merges, path):
    """Checks what tiktoken takes for granted, then builds the Encoding."""
    # pitfall: with a byte missing, tiktoken panics in Rust, which `except Exception` does not catch.
    if not all(bytes([b]) in ranks for b in range(256)):
        raise UserError(f"{path}: not a byte-level vocabulary: some of the 256 bytes have no token")
    eot = ranks.pop(EOT.encode(), None)
    if eot is None:  # only JSON files name it; otherwise it is the id that is free
        eot = next((i for i, rank in enumerate(sorted(ranks.values())) if i != rank), len(ranks))
    if sorted([*ranks.values(), eot]) != list(range(len(ranks) + 1)):
        raise UserError(f"{path}: token ids must be 0, 1, 2, ... without a gap other than {EOT}")
    # tiktoken merges in the order of ids; that is right only if the merges were numbered in order.
    made = [ranks.get(token, -1) for token in merges]
    if made != sorted(made) or -1 in made:
        raise UserError(f"{path}: its merges are not numbered in the order in which they were learnt")
    return tiktoken.Encoding("gpt2", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={EOT: eot})


SOT = "<|startoftext|>"


def get_clip_tokenizer(where=None):
    """CLIP's byte-pair encoding -> a function from a list of texts to ids (B, 77) int64.

    where: a folder with merges.txt, or such a file, or OpenAI's bpe_simple_vocab_16e6.txt.gz; None
    fetches that. A word's last symbol is marked: "red" alone and "red" in "redder" differ.
    UserError for a text of more than 75 tokens.
    """
    path = Path(where or fetch("clip/bpe_simple_vocab_16e6.txt.gz"))
    path = path / "merges.txt" if path.is_dir() else path
    symbols = byte_symbols()
    # The mark </w> is written as the byte 0, which occurs in no merge. Then "byte + 0" outranks every
    # merge, is always formed first, and tiktoken does the rest.
    def as_bytes(symbol):
        word = symbol.removesuffix("</w>")
        return bytes(symbols[c] for c in word) + b"\0" * (word != symbol)
    ranks = {bytes([b]): i for i, b in enumerate(symbols.values())}
    ranks |= {bytes([b, 0]): 256 + i for i, b in enumerate(symbols.values())}
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").split("\n")
        lines = [line for line in lines[1 if "#version" in lines[0] else 0:] if line]
        # OpenAI's list is longer than what was used: the first 48,894 make the public 49,408 tokens.
        merges = [line.split() for line in lines[:48894]]
        ranks |= {as_bytes(x) + as_bytes(y): 512 + i for i, (x, y) in enumerate(merges)}
    except OSError as e:
        raise UserError(f"{path}: CLIP's merges cannot be read ({e.strerror or e})") from None
    except (EOFError, zlib.error, ValueError, KeyError) as e:
        raise UserError(f"{path}: not a list of CLIP's merges ({type(e).__name__}: {e})") from None
    sot, eot = 512 + len(merges), 513 + len(merges)
    bpe = tiktoken.Encoding("clip", pat_str=r"[^\x00]+\x00", mergeable_ranks=ranks,
                            special_tokens={SOT: sot, EOT: eot})

    def encode(texts, context=77):
        idx = torch.zeros(len(texts), context, dtype=torch.int64)
        for row, text in zip(idx, texts):
            ids = [sot, *bpe.encode_ordinary("".join(word + "\0" for word in pretokenize(text))), eot]
            if len(ids) > context:
                raise UserError(f"a text of {len(ids)} tokens is too long for CLIP ({context}): {text[:60]}...")
            row[:len(ids)] = torch.tensor(ids)
        return idx

    return encode


def pretokenize(text):
    """CLIP's clean lower-case words: contractions, runs of letters, single digits, runs of marks.

    differs: OpenAI also runs ftfy. Of its mending only NFC is done here (e and an accent become one
    letter); curly quotes and broken encodings stay as they are.
    """
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", text)))
    text = " ".join(text.replace("\0", "").split()).lower()
    # One letter a character: L letter, N number, space, P anything else. Python's re knows no \p{L}.
    kinds = "".join(c if c == " " else {"L": "L", "N": "N"}.get(unicodedata.category(c)[0], "P") for c in text)
    i = 0
    while i < len(text):
        m = re.compile("'(?:s|t|re|ve|m|ll|d)").match(text, i) or re.compile("L+|N|P+| ").match(kinds, i)
        if text[i] != " ":
            yield text[i:m.end()]
        i = m.end()
