"""Writes tests/golden: a tiny GPT-2 and a tiny CLIP as transformers computes them.

    pip install -r tests/requirements.txt && python tests/make_golden.py

The results are part of the repository, so that the tests can compare without transformers. Run this
only to change them. Every parameter is perturbed with noise, and no two sizes are equal, so that a
forgotten transpose or a norm in the wrong place shows.

    gpt2/    config.json, model.safetensors   GPT2LMHeadModel.save_pretrained
             vocab.json, merges.txt           a home-made vocabulary
             expected.safetensors             ids, logits
             tokens.json                      texts and their ids by Hugging Face tokenizers
    clip/    the same for CLIPModel; expected: the states of every layer, the features of both
             towers, and what CLIPImageProcessorPil makes of pictures
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from layouts import GOLDEN, perturb

from data.shapes import bpe
from weights.safetensors import write

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


def gpt2_vocabulary(folder, corpus=CORPUS, most=120):
    """A byte-level vocabulary in GPT-2's manner, the space in front of a word being part of it."""
    words = re.findall(r"'(?:[sdmt]|ll|ve|re)| ?\w+| ?[^\w\s]+|\s+", corpus)
    return bpe.gpt2_vocabulary(folder, words, most)


def clip_vocabulary(folder, corpus=CORPUS, most=120):
    """The same in CLIP's manner: lower case, no spaces, the last symbol of a word marked."""
    words = re.findall(r"'(?:[sdmt]|ll|ve|re)|[^\W\d]+|\d|[^\w\s]+", corpus.lower())
    return bpe.clip_vocabulary(folder, words, most)


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
    for name, w, h, mode, size, crop in (
            ("wide", 41, 23, "RGB", 16, True), ("tall", 17, 30, "RGB", 16, True),
            ("small", 5, 7, "RGB", 16, True),
            ("halfway", 38, 32, "RGB", 16, True),  # 19 pixels wide: cut off 1 on the left, or 2?
            ("odd", 37, 37, "RGB", 15, True), ("squeezed", 41, 23, "RGB", 16, False),
            ("transparent", 30, 22, "RGBA", 16, True), ("palette", 30, 22, "P", 16, True),
            ("cmyk", 30, 22, "CMYK", 16, True)):
        noise = rng.randint(0, 256, (h, w, 4 if mode == "RGBA" else 3), dtype=np.uint8)
        yield name, Image.fromarray(noise).convert(mode), size, crop
    smooth = np.indices((40, 61)).sum(0).astype(np.uint8) * 2
    yield "grey", Image.fromarray(smooth), 16, True


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
    idx = torch.stack([F.pad(torch.tensor(ids), (0, 77 - len(ids)))
                       for ids in tokenizer(texts)["input_ids"]])
    images = torch.randn(2, 3, 24, 24)
    seen = model.vision_model(images, output_hidden_states=True)
    expected = {"images": images, "idx": idx, "hidden": torch.stack(seen.hidden_states),
                "image_features": model.visual_projection(seen.pooler_output),
                "text_features": model.text_projection(model.text_model(idx).pooler_output)}
    for name, picture, size, crop in pictures():
        expected[f"picture.{name}"] = processor(size, crop)(picture)
    write(folder / "expected.safetensors", expected)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_gpt2(GOLDEN / "gpt2")
    make_clip(GOLDEN / "clip")
