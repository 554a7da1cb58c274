"""Tokenizer files of GPT-2 and CLIP, damaged and made up, and texts for what still loads."""

import functools
import gzip
import json
import os

from lib.cli import UserError
from tests.attack.mutate import ODD, damage, damage_json
from tests.attack.watch import ROOT
from weights.tokenizers import EOT, get_clip_tokenizer, get_tokenizer

CASES = 2000
TINY = ROOT / "data/shapes"
VOCAB = json.loads((TINY / "tiny-gpt2/vocab.json").read_text("utf-8"))
MERGES = (TINY / "tiny-gpt2/merges.txt").read_text("utf-8").split("\n")
CLIP = (TINY / "tiny-clip/merges.txt").read_text("utf-8").split("\n")
TOKENS = ["", "\n", "Ġ", "\ud800", "a b", "\U0001f600", "x" * 10**5, "\0", EOT, "model", "ł", "a"]
LINES = ["", "a", "a b c", "a  b", "日 本", "#version", "\0 \0", "x" * 10**5 + " y", " ", "\ud800 a",
         "\r", "x</w> y</w>", "</w> </w>", "a </w>", "a</w>b c", "a a", "a b</w></w>", "Ā a", "a Ā"]
TEXTS = ["a red circle, isn't it?", "é\U0001f600\ud800", "\0\n  x" * 50, "&amp; 12", EOT, ""]


def use_gpt2(path):
    encoding = get_tokenizer(path, 512)
    for text in TEXTS:
        encoding.decode(encoding.encode_ordinary(text))
    encoding.decode([encoding.eot_token])


def use_clip(path):
    encode = get_clip_tokenizer(path)
    for text in TEXTS:
        try:
            encode([text])
        except UserError:  # too long for CLIP, in a vocabulary without merges
            pass


def odd_line(lines, rng):
    """One line put in, replaced, or taken out; or all of them shuffled or repeated."""
    lines, how = list(lines), rng.choice("put replace replace drop shuffle repeat".split())
    at = rng.randrange(len(lines))
    if how == "shuffle":
        rng.shuffle(lines)
    elif how == "repeat":
        lines *= 99
    else:
        lines[at:at + (how != "put")] = [] if how == "drop" else [rng.choice(LINES)]
    return "\n".join(lines).encode("utf-8", "surrogatepass"), how


def vocabulary(rng, folder):
    """vocab.json and merges.txt, or encoder.json and vocab.bpe; one of the two damaged."""
    names = rng.choice((("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")))
    vocab, merges, token = dict(VOCAB), "\n".join(MERGES).encode(), rng.choice(list(VOCAB))
    how = rng.choice("value token drop shift json bytes deep line line merges alone".split())
    if how == "value":
        vocab[token] = rng.choice(ODD)
    elif how == "token":
        vocab[rng.choice(TOKENS)] = vocab.pop(token)
    elif how == "drop":
        del vocab[rng.choice((token, EOT))]
    elif how == "shift":
        by = rng.choice((1, 10**6, -5, 2**31, 2**64))
        vocab = {t: i + by for t, i in vocab.items() if t != EOT or rng.random() < 0.5}
    elif how == "json":
        vocab, _ = damage_json(rng.choice((vocab, [vocab], {"model": vocab})), rng)
    elif how == "line":
        merges, how = odd_line(MERGES, rng)
    elif how == "merges":
        merges, how = damage(merges, rng)
    raw = json.dumps(vocab).encode()
    if how in ("bytes", "deep"):
        raw = damage(raw, rng)[0] if how == "bytes" else b'{"a":' * 99_000
    (folder / names[0]).write_bytes(raw)
    if how != "alone":
        (folder / names[1]).write_bytes(merges)
    return f"{names[0]} {how}", use_gpt2, folder


def tokenizer_json(rng, folder):
    pairs = [line.split(" ") for line in MERGES[1:] if line]
    content = {"added_tokens": [{"id": VOCAB[EOT], "content": EOT}],
               "model": {"vocab": VOCAB, "merges": pairs}}
    how = rng.choice("merge token json json bytes".split())
    if how == "merge":
        pairs[rng.randrange(len(pairs))] = rng.choice(
            [*ODD, ["a"], ["a", "b", "c"], ["a", 5], [["a"], ["b"]], [5, 6], ["\ud800", "a"]])
    elif how == "token":
        content["added_tokens"][0][rng.choice(("id", "content"))] = rng.choice([*ODD, *TOKENS])
    elif how == "json":
        content, how = damage_json(content, rng)
    raw = json.dumps(content).encode()
    (folder / "tokenizer.json").write_bytes(damage(raw, rng)[0] if how == "bytes" else raw)
    return f"tokenizer.json {how}", use_gpt2, folder


@functools.cache
def bomb(line):
    """A packed file of many parts, each of which unpacks to 16 MB of equal lines."""
    return gzip.compress(line * (2**24 // len(line)), 1) * 200


def clip(rng, folder):
    """A list of merges, plain or packed; packed, sometimes one that unpacks to gigabytes."""
    raw, how = odd_line(CLIP, rng)
    if rng.random() < 0.4:
        raw, how = damage(raw, rng)
    if rng.random() < 0.5:
        (folder / "merges.txt").write_bytes(raw)
        return f"clip {how}", use_clip, folder
    if rng.random() < 0.02:
        raw, how = bomb(rng.choice((b"\n", b"a b\n", b"\0"))), "bomb"
    else:
        raw = gzip.compress(raw, 1)
        raw = damage(raw, rng, 30)[0] if rng.random() < 0.6 else raw
    (folder / "list.gz").write_bytes(raw)
    return f"clip.gz {how}", use_clip, folder / "list.gz"


def special(rng, folder):
    """No files: folders, pipes, devices, links, and names that no file can have."""
    use, name = rng.choice(((use_gpt2, "vocab.json"), (use_gpt2, "merges.txt"),
                            (use_clip, "merges.txt"), (use_clip, "list.gz")))
    path, how = folder / name, rng.choice("folder fifo device loop empty zero long half".split())
    if name == "merges.txt" and use is use_gpt2:
        (folder / "vocab.json").write_text(json.dumps(VOCAB))
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how in ("device", "loop"):
        path.symlink_to("/dev/zero" if how == "device" else path)
    elif how == "empty":
        path.write_bytes(b"")
    other = {"zero": f"{folder}\0", "long": folder / ("x" * 5000), "half": folder / "\udcff"}
    return f"special {name} {how}", use, other.get(how, path if name == "list.gz" else folder)


def case(rng, folder):
    family = rng.choice([vocabulary] * 4 + [tokenizer_json] * 2 + [clip] * 4 + [special])
    label, use, path = family(rng, folder)
    return label, lambda: use(path)
