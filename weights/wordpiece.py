"""WordPiece, BERT's tokenizer: words first, then the longest pieces that spell each of them.

    "Café 2024?"  ->  cafe 2024 ?  ->  cafe 202 ##4 ?     ## goes on inside a word

A word that the pieces cannot spell to its end is [UNK] as a whole.

Sources: Wu et al. 2016 (arXiv 1609.08144), section 4.1; google-research/bert tokenization.py. Where
the two differ, as the library tokenizers does it (BertNormalizer): lower case is taken letter by
letter, so that a final sigma is like any other.
"""

import json
import os
import re
import unicodedata

from lib.cli import UserError
from lib.files import open_file, plain_errors, read_json
from weights.public import tokenizer_file
from weights.reading import DAMAGED

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_BYTES = 16_000_000  # the vocabulary of a hundred languages has 1 MB, its tokenizer.json 3
LONGEST = 100  # letters of a word that is still cut

# Chinese, which has no spaces: each sign is a word. Not the kana, not hangul.
CHINESE = re.compile("[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f"
                     "\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\uf900-\ufaff"
                     "\U0002f800-\U0002fa1f]")


def is_mark(c):
    """Punctuation, each a word of its own. pitfall: $ + < = > ^ ` | ~ count, € and ÷ do not."""
    return "!" <= c <= "~" and not c.isalnum() or unicodedata.category(c)[0] == "P"


class WordPiece:
    """A tokenizer. vocab: {piece: id}; lower: small letters without accents (an "uncased" model).
    ValueError if one of SPECIAL has no id, or an id no piece."""

    def __init__(self, vocab, lower=True):
        missing = [token for token in SPECIAL if token not in vocab]
        if missing or sorted(vocab.values()) != [*range(len(vocab))]:
            raise ValueError(f"no token {', '.join(missing)}" if missing else
                             "its ids are not 0, 1, 2, ...")
        self.vocab, self.lower, self.n_vocab = vocab, lower, len(vocab)
        self.pieces = sorted(vocab, key=vocab.get)
        self.longest = max(map(len, vocab))
        self.pad, self.unk, self.cls, self.sep, self.mask = (vocab[token] for token in SPECIAL)

    # What a language model asks of its tokenizer: the tokens that begin and end a text.
    bos, eot_token = property(lambda self: self.cls), property(lambda self: self.sep)

    def words(self, text):
        """The words and marks of a text, cleaned."""
        kept = []
        for c in CHINESE.sub(r" \g<0> ", text):
            if c in "\t\n\r" or unicodedata.category(c)[0] == "Z":
                kept.append(" ")
            elif unicodedata.category(c)[0] != "C" and c != "\ufffd":  # control signs are dropped
                kept.append(c)
        text = "".join(kept)
        if self.lower:
            text = "".join(c.lower() for c in unicodedata.normalize("NFD", text)
                           if unicodedata.category(c) != "Mn")  # the accents, now apart
        return "".join(f" {c} " if is_mark(c) else c for c in text).split()

    def cut(self, word):
        """One word -> ids: the longest piece that it begins with, and so on with the rest."""
        ids, start = [], 0
        while start < len(word) <= LONGEST:
            for end in range(min(len(word), start + self.longest), start, -1):
                i = self.vocab.get("##" * (start > 0) + word[start:end])
                if i is not None:
                    break
            else:
                return [self.unk]
            ids.append(i)
            start = end
        return ids or [self.unk]

    def encode_ordinary(self, text):
        """A text -> its ids, nothing added. "[MASK]" in it is text like any other."""
        return [i for word in self.words(text) for i in self.cut(word)]

    def encode(self, text):
        """A text as BERT reads it: [CLS], its ids, [SEP]. "[MASK]" and its like are understood."""
        parts = re.split(f"({'|'.join(map(re.escape, SPECIAL))})", text)
        return [self.cls, *(i for part in parts for i in (
            [self.vocab[part]] if part in SPECIAL else self.encode_ordinary(part))), self.sep]

    def decode(self, ids):
        """Ids -> words with a space between them. [PAD], [CLS] and [SEP] are silent."""
        silent = (self.pad, self.cls, self.sep)
        words = " ".join(self.pieces[i] for i in ids if i not in silent)
        return words.replace(" ##", "")


def get_wordpiece(where=None, vocab_size=30522):
    """The tokenizer in vocab.txt or tokenizer.json, a file or beside the weights in a folder. Where
    there is none, a model with the vocab_size of bert-base-uncased gets that one's. What
    tokenizer_config.json says of lower case is heard. UserError if nothing is found."""
    path = tokenizer_file(where, ("vocab.txt", "tokenizer.json"), vocab_size,
                          "bert-base-uncased/vocab.txt", 30522)
    with plain_errors(path), open_file(path) as f:
        raw = f.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path}: no vocabulary, those have less than {MAX_BYTES // 10**6} MB")
    beside = path.with_name("tokenizer_config.json")
    told = read_json(beside, "fetch the tokenizer again") if os.path.exists(beside) else {}
    try:
        lower = told.get("do_lower_case", True)
        if path.suffix == ".json":
            content = json.loads(raw)
            vocab, lower = content["model"]["vocab"], content["normalizer"]["lowercase"]
        else:  # one piece a line; the line's number is its id
            lines = raw.decode("utf-8").removesuffix("\n").split("\n")
            vocab = {line.rstrip("\r"): i for i, line in enumerate(lines)}
        return WordPiece({str(piece): int(i) for piece, i in vocab.items()}, bool(lower))
    except DAMAGED as e:
        raise UserError(f"{path}: not WordPiece's vocabulary ({type(e).__name__}: {e})") from None
