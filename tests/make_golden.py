"""Writes tests/golden: a tiny GPT-2 and a tiny CLIP as transformers computes them.

    pip install transformers && python tests/make_golden.py

The results are part of the repository, so that the tests can compare without transformers. Run this
only to change them. Every parameter is perturbed with noise, and no two sizes are equal, so that a
forgotten transpose or a norm in the wrong place shows.

    gpt2/    config.json, model.safetensors   GPT2LMHeadModel.save_pretrained
             vocab.json, merges.txt           a home-made vocabulary
             expected.safetensors             ids, logits
             tokens.json                      texts and their ids by Hugging Face tokenizers
    clip/    the same for CLIPModel; expected: the states of every layer, the features of both
             towers, other resolutions, and what CLIPImageProcessorPil makes of pictures
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from layouts import GOLDEN, learn_bpe, perturb
from weights.tokenizers import byte_symbols
from weights.safetensors import write

EOT, SOT = "<|endoftext|>", "<|startoftext|>"
SYMBOL = {byte: symbol for symbol, byte in byte_symbols().items()}

CORPUS = """A red circle is left of a blue square. There are two small green triangles above it!
Is the circle red? Yes, it's red; no, it isn't blue. We're sure they've seen that I'm here.
the the the them then there other another bother, 2024 1024 24 100 1000
naïve café, Äpfel, 日本語 日本, 🙂🙂 You'll know. def f(x): return x == 1
a dog is chasing another dog, and the dogs' owner doesn't mind; she'd said so.
It's that's he's she's; I'm, I'm; don't can't won't; we're they're you're; I've we've you've
I'll he'll; he'd I'd! aaaa aaaaaaaa aaaaaaaaaaaaaaaa ha haha hahaha hahahahaha abab ababab
one red circle and one blue circle
"""

# Texts that have broken tokenizers before.
AWKWARD = [
    "", " ", "  ", "\n", "\t\n \r\n", "a", " a", "a ", "  a  ", "!", "!!", "Hello world", " red",
    "red", "redder", "it's", "IT'S", "it’s", "'s", "''s", "they've we're I'm you'll she'd don't", "'tis",
    "rock'n'roll", "'S 'T 'LL", "1234567890", "3.14", "x1y2", "½ ² Ⅻ ٣", "naïve café",
    "nai\u0308ve cafe\u0301", "ÄÖÜ äöü ß", "日本語です", "🙂🙂👩\u200d👩\u200d👧", "\u00a0no\u00a0break",
    "zero\u200bwidth", "tab\tseparated\tvalues", "line\nbreak", "trailing   ", "   leading",
    "a\u0301\u0301", "e\u0301", "don''t", "a.b,c;d:e", "@user #tag $5 100%", "<b>bold</b>",
    "\\n \\t", "\x7f\x01\x02", "aaaaaaaaaaaaaaaaaaaaaaaa", "ababababab", "the theme thethe",
    "A Red Circle IS LEFT", "snake_case camelCase", "....", "....!!!???", "- - -", "don't-stop",
    "(a)(b)", '"quoted"', "\u2028\u2029", "\ufeffbom", "ŉ ǅ ﬁ", "\U00010348 \U0001f600x",
]


def spell(text):
    return [SYMBOL[b] for b in text.encode()]


def save_vocabulary(folder, vocab, merges):
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    vocab = {token: i for i, token in enumerate(vocab)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    return vocab


def gpt2_vocabulary(folder, corpus=CORPUS, most=120):
    """A byte-level vocabulary in GPT-2's manner, the space in front of a word being part of it."""
    words = re.findall(r"'(?:[sdmt]|ll|ve|re)| ?\w+| ?[^\w\s]+|\s+", corpus)
    merges = learn_bpe(map(spell, words), most)
    vocab = [*SYMBOL.values(), *(a + b for a, b in merges), EOT]
    return save_vocabulary(folder, vocab, merges), merges


def clip_vocabulary(folder, corpus=CORPUS, most=120):
    """The same in CLIP's manner: lower case, no spaces, the last symbol of a word marked."""
    words = re.findall(r"'(?:[sdmt]|ll|ve|re)|[^\W\d]+|\d|[^\w\s]+", corpus.lower())
    merges = learn_bpe(([*w[:-1], w[-1] + "</w>"] for w in map(spell, words)), most)
    vocab = [*SYMBOL.values(), *(s + "</w>" for s in SYMBOL.values())]
    vocab += [*(a + b for a, b in merges), SOT, EOT]
    return save_vocabulary(folder, vocab, merges), merges


def gpt2_reference(vocab, merges):
    """GPT-2's tokenizer as Hugging Face's library computes it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pictures():
    """(name, picture, size, crop) of all proportions and of several modes."""
    rng = np.random.RandomState(7)

    def noise(w, h, channels):
        return Image.fromarray(rng.randint(0, 256, (h, w, channels), dtype=np.uint8))

    smooth = Image.fromarray(np.indices((40, 61)).sum(0).astype(np.uint8) * 2)
    yield "wide", noise(41, 23, 3), 16, True
    yield "tall", noise(17, 30, 3), 16, True
    yield "small", noise(5, 7, 3), 16, True
    yield "halfway", noise(38, 32, 3), 16, True  # 19 pixels wide: is 1 cut off on the left, or 2?
    yield "odd", noise(37, 37, 3), 15, True
    yield "squeezed", noise(41, 23, 3), 16, False
    yield "grey", smooth, 16, True
    yield "transparent", noise(30, 22, 4), 16, True
    yield "palette", noise(30, 22, 3).convert("P"), 16, True
    yield "cmyk", noise(30, 22, 3).convert("CMYK"), 16, True


def processor(size, crop=True):
    """transformers' preprocessing with Pillow; crop=False resizes to a square instead."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    square = {"height": size, "width": size}
    p = CLIPImageProcessorPil(size={"shortest_edge": size} if crop else square,
                              crop_size=square, do_center_crop=crop)
    return lambda image: torch.from_numpy(p(image, return_tensors="np")["pixel_values"][0])


@torch.no_grad()
def make_gpt2(folder):
    from transformers import GPT2Config, GPT2LMHeadModel
    vocab, merges = gpt2_vocabulary(folder)
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(vocab), n_positions=40, n_embd=24, n_layer=2, n_head=3,
                        bos_token_id=len(vocab) - 1, eos_token_id=len(vocab) - 1)
    model = perturb(GPT2LMHeadModel(config), 2)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    idx = torch.randint(len(vocab), (2, 13))
    write(folder / "expected.safetensors", {"idx": idx, "logits": model(idx).logits})
    tokenizer = gpt2_reference(vocab, merges)
    rows = [[text, tokenizer.encode(text).ids] for text in [*AWKWARD, CORPUS]]
    (folder / "tokens.json").write_text(json.dumps(rows), "utf-8")


@torch.no_grad()
def make_clip(folder):
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    vocab, merges = clip_vocabulary(folder, most=80)
    torch.manual_seed(3)
    vision = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                  image_size=24, patch_size=8)
    text = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=77, vocab_size=len(vocab), pad_token_id=0,
                bos_token_id=len(vocab) - 2, eos_token_id=len(vocab) - 1)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    model = perturb(CLIPModel(config), 4)
    model.save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges)
    # Of control characters the library and OpenAI's code think differently.
    rows = [[text, tokenizer(text)["input_ids"]] for text in AWKWARD if "\x01" not in text]
    (folder / "tokens.json").write_text(json.dumps(rows), "utf-8")

    texts = ["A red circle", "it's another blue square!", "two small green triangles"]
    idx = torch.zeros(len(texts), 77, dtype=torch.int64)
    for row, text in zip(idx, texts):
        ids = tokenizer(text)["input_ids"]
        row[:len(ids)] = torch.tensor(ids)
    images = torch.randn(2, 3, 24, 24)
    seen = model.vision_model(images, output_hidden_states=True)
    expected = {"images": images, "idx": idx, "hidden": torch.stack(seen.hidden_states),
                "image_features": model.visual_projection(seen.pooler_output),
                "text_features": model.text_projection(model.text_model(idx).pooler_output)}
    for name, h, w in ("large", 40, 40), ("wide", 16, 48), ("small", 16, 16), ("strip", 8, 72):
        expected[f"{name}.images"] = torch.randn(1, 3, h, w)
        seen = model.vision_model(expected[f"{name}.images"], interpolate_pos_encoding=True)
        expected[f"{name}.feats"] = seen.last_hidden_state
        expected[f"{name}.image_features"] = model.visual_projection(seen.pooler_output)
    for name, picture, size, crop in pictures():
        expected[f"picture.{name}"] = processor(size, crop)(picture)
    write(folder / "expected.safetensors", expected)


def main():
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ImportError:
        sys.exit("this needs transformers: pip install transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    make_gpt2(GOLDEN / "gpt2")
    make_clip(GOLDEN / "clip")
    for path in sorted(GOLDEN.glob("*/*")):
        print(f"{path.relative_to(GOLDEN)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
