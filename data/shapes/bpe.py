"""Byte-pair encoding learnt from nothing: the small vocabularies of GPT-2 and of CLIP.

A word is a list of symbols, at first one a byte. The most frequent pair of neighbours is joined
into one symbol, again and again; the joins in order are the merges, and each is a new token:

    l o w, l o w e r, n e w e r  ->  merges (l o), (lo w), (e r), ...  ->  low, low er, n e w er

Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
"""

import json
from collections import Counter

from lib.files import replacing
from weights.tokenizers import EOT, SOT, byte_symbols

SYMBOL = {byte: symbol for symbol, byte in byte_symbols().items()}


def learn_bpe(words, most):
    """The merges of words (lists of symbols) in order: at most so many, and no pair that occurs
    only once."""
    words, merges = Counter(map(tuple, words)), []
    while len(merges) < most:
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs or max(pairs.values()) < 2:
            break
        merges.append(max(pairs, key=lambda p: (pairs[p], p)))
        words = {join(word, merges[-1]): n for word, n in words.items()}
    return merges


def join(word, pair):
    """The word with every such pair of neighbours made one symbol."""
    out = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def gpt2_vocabulary(folder, words, most):
    """Learns from words, each with the space in front of it, and writes the folder's files
    -> ({token: id}, merges)."""
    merges = learn_bpe(([SYMBOL[b] for b in word.encode()] for word in words), most)
    return save(folder, list(SYMBOL.values()), merges, [EOT]), merges


def clip_vocabulary(folder, words, most):
    """The same in CLIP's manner: words without spaces, the last symbol of each marked."""
    spelt = ([SYMBOL[b] for b in word.encode()] for word in words)
    merges = learn_bpe(([*word[:-1], word[-1] + "</w>"] for word in spelt), most)
    symbols = [*SYMBOL.values(), *(s + "</w>" for s in SYMBOL.values())]
    return save(folder, symbols, merges, [SOT, EOT]), merges


def save(folder, symbols, merges, specials):
    """Writes merges.txt and vocab.json as transformers reads them -> {token: id}."""
    tokens = [*symbols, *(a + b for a, b in merges), *specials]
    vocab = {token: i for i, token in enumerate(tokens)}
    with replacing(folder / "merges.txt") as f:
        lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
        f.write("\n".join([*lines, ""]).encode())
    with replacing(folder / "vocab.json") as f:
        f.write(json.dumps(vocab, ensure_ascii=False).encode())
    return vocab
