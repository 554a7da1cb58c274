"""Our CLIP beside transformers': both towers, every layer, other resolutions, preprocessing."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers")
from transformers import (CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel,
                          CLIPVisionModelWithProjection)

from clip_vit import CLIPText, CLIPViT, preprocess
from layouts import CLIP_LAYOUTS, OpenAICLIP, openai_names, perturb
from make_golden import processor
from weights.reading import read

TOLERANCE = 1e-4


def tower(width, heads, layers, **more):
    return dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                num_attention_heads=heads, **more)


def ids(V):
    return dict(vocab_size=V, bos_token_id=V - 2, eos_token_id=V - 1, pad_token_id=V - 1)


# (image tower, text tower, shared space). The last one is square wherever a matrix can be: 64
# patches, 64 positions of text, 64 tokens, both widths and the shared space 64.
SIZES = [(tower(48, 4, 3, image_size=30, patch_size=6),
          tower(40, 5, 2, max_position_embeddings=13, **ids(71)), 28),
         (tower(128, 2, 2, image_size=32, patch_size=16),
          tower(64, 1, 3, max_position_embeddings=9, **ids(50)), 36),
         (tower(64, 1, 2, image_size=32, patch_size=4),
          tower(64, 4, 2, max_position_embeddings=64, **ids(64)), 64)]


def build(seed, size):
    torch.manual_seed(seed)
    vision, text, embed = SIZES[size]
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=embed)
    return perturb(CLIPModel(config), seed)


def save(theirs, folder):
    theirs.save_pretrained(folder)
    return read(folder), json.loads((folder / "config.json").read_text())


def difference(a, b):
    assert a.shape == b.shape and b.std() > 0.1
    d = (a - b).abs().max().item()
    assert d <= TOLERANCE
    return d


@torch.no_grad()
def compare_vision(vit, vision_model, projection, images):
    """Every layer, then the projected class token; the largest difference."""
    seen = vision_model(images, output_hidden_states=True, interpolate_pos_encoding=True)
    worst = [difference(vit(images, layer=l), h) for l, h in enumerate(seen.hidden_states[1:])]
    worst.append(difference(vit(images), seen.last_hidden_state))
    if projection is not None:
        worst.append(difference(vit.encode_image(images), projection(seen.pooler_output)))
    return max(worst)


def texts(model, n=4):
    """Ids that end in the end token somewhere, with more of it behind."""
    c = model.config.text_config
    idx = torch.randint(1, c.vocab_size - 2, (n, c.max_position_embeddings))
    for row, end in zip(idx, torch.randint(2, c.max_position_embeddings, (n,))):
        row[end:] = c.vocab_size - 1
    return idx


@pytest.mark.parametrize("layout", CLIP_LAYOUTS)
@pytest.mark.parametrize("size", range(len(SIZES)))
@torch.no_grad()
def test_features_are_equal_from_every_layout(layout, size, tmp_path):
    theirs = build(size, size)
    path = CLIP_LAYOUTS[layout](tmp_path / "it", *save(theirs, tmp_path / "saved"))
    vit, (vision, _, _) = CLIPViT.from_pretrained(path), SIZES[size]
    projection = theirs.visual_projection if vit.proj is not None else None
    side, patch, worst = vision["image_size"], vision["patch_size"], []
    for h, w in ((side, side), (side + patch, side + patch), (side, 2 * side), (patch, 3 * patch),
                 (side - patch, side)):  # all but the first are interpolated
        images = torch.randn(2, 3, h, w)
        worst.append(compare_vision(vit, theirs.vision_model, projection, images))
    if "Vision" not in layout:
        idx = texts(theirs)
        features = theirs.text_projection(theirs.text_model(idx).pooler_output)
        worst.append(difference(CLIPText.from_pretrained(path).encode_text(idx), features))
    print(f"largest difference {max(worst):.1e}")  # shown by pytest -rP


@pytest.mark.parametrize("kind", [CLIPVisionModel, CLIPVisionModelWithProjection])
@torch.no_grad()
def test_what_the_vision_models_save_is_loaded_as_it_is(kind, tmp_path):
    torch.manual_seed(0)
    theirs = perturb(kind(CLIPVisionConfig(**SIZES[0][0], projection_dim=28)), 1)
    theirs.save_pretrained(tmp_path)
    vit = CLIPViT.from_pretrained(tmp_path)
    projected = kind is CLIPVisionModelWithProjection
    assert any(k.startswith("vision_model.") for k in read(tmp_path)) == projected
    assert (vit.proj is not None) == projected
    parts = (theirs.vision_model, theirs.visual_projection) if projected else (theirs, None)
    compare_vision(vit, *parts, torch.randn(2, 3, 30, 30))


@torch.no_grad()
def test_a_full_model_is_loaded_as_it_is_and_gives_the_same_cosines(tmp_path):
    theirs = build(3, 0)
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    vit, text = CLIPViT.from_pretrained(tmp_path), CLIPText.from_pretrained(tmp_path)
    images, idx = torch.randn(2, 3, 30, 30), texts(theirs)
    a = torch.nn.functional.normalize(vit.encode_image(images), dim=-1)
    b = torch.nn.functional.normalize(text.encode_text(idx), dim=-1)
    logits = theirs(input_ids=idx, pixel_values=images).logits_per_image
    difference(text.logit_scale.exp() * a @ b.t(), logits)


@torch.no_grad()
def test_openais_archive_agrees_with_transformers(tmp_path):
    """The archive rounds matrices to 16 bits; transformers gets the same rounded numbers."""
    theirs = build(4, 1)
    model = OpenAICLIP(32, 16, 128, 2, 2, 36, context=9, vocab=50, text_width=64, text_layers=3,
                       text_heads=1)
    model.load_state_dict(openai_names(save(theirs, tmp_path / "saved")[0]), strict=False)
    images, idx = torch.randn(2, 3, 32, 32), texts(theirs, 2)
    model.save(tmp_path / "ViT.pt", images, idx)
    for name, p in theirs.named_parameters():
        if re.search("patch_embedding|self_attn|mlp|projection", name):
            p.copy_(p.half().float())
    vit = CLIPViT.from_pretrained(tmp_path / "ViT.pt")
    text = CLIPText.from_pretrained(tmp_path / "ViT.pt")
    worst = compare_vision(vit, theirs.vision_model, theirs.visual_projection, images)
    features = theirs.text_projection(theirs.text_model(idx).pooler_output)
    print(f"largest difference {max(worst, difference(text.encode_text(idx), features)):.1e}")


@pytest.mark.slow
def test_features_are_equal_at_the_size_of_vit_b_16(tmp_path):
    """86 million parameters: 197 tokens at 224 pixels, and 12 x 16 patches for a wide picture."""
    torch.manual_seed(0)
    theirs = perturb(CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=16)), 1, 0.03)
    theirs.save_pretrained(tmp_path)
    vit = CLIPViT.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert sum(p.numel() for p in vit.parameters()) == 86_192_640
    worst = [compare_vision(vit, theirs.vision_model, theirs.visual_projection, images)
             for images in (torch.randn(1, 3, 224, 224), torch.randn(1, 3, 192, 256))]
    print(f"largest difference {max(worst):.1e}")  # shown by pytest -rP


# ---------------------------------------------------------------------------- preprocessing

def noise(rng, w, h, channels=3):
    return Image.fromarray(rng.randint(0, 256, (h, w, channels), dtype=np.uint8))


def test_preprocessing_is_bit_equal_on_40_random_sizes():
    rng = np.random.RandomState(0)
    for size, crop in ((224, True), (32, True), (45, True), (32, False)):
        theirs = processor(size, crop)
        for _ in range(10):
            picture = noise(rng, *rng.randint(20, 400, 2))
            assert torch.equal(preprocess(picture, size, crop), theirs(picture)), picture.size


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F",
         "I;16", "I;16L", "I;16B"]


@pytest.mark.parametrize("mode", MODES)
def test_preprocessing_is_bit_equal_for_every_mode(mode):
    """All that Pillow turns into RGB, except LAB, whose channel A transformers takes for alpha."""
    rng = np.random.RandomState(1)
    picture = noise(rng, 61, 47, 4)
    for via in ("RGBA", "RGB", "L", "LA", "I"):  # not every mode can be reached from every other
        try:
            start = picture.convert("RGB").convert("L") if via == "I" else picture
            converted = start.convert(via).convert(mode)
            break
        except ValueError:
            continue
    assert converted.mode == mode
    assert torch.equal(preprocess(converted, 32), processor(32)(converted))
    assert torch.equal(preprocess(converted, 32, crop=False), processor(32, crop=False)(converted))


@pytest.mark.parametrize("mode, transparent", [("L", 5), ("RGB", (9, 9, 9)), ("1", 0), ("P", 3),
                                               ("P", bytes(range(256)))])
def test_preprocessing_is_bit_equal_where_a_png_calls_a_colour_transparent(mode, transparent):
    picture = noise(np.random.RandomState(2), 40, 50).convert(mode)
    picture.paste(0, (5, 5, 20, 20)) if mode != "RGB" else picture.paste((9, 9, 9), (5, 5, 20, 20))
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=transparent)
    picture = Image.open(file)
    assert "transparency" in picture.info
    assert torch.equal(preprocess(picture, 32), processor(32)(picture))
