"""Our CLIP beside transformers': both towers, every layer, preprocessing."""

import io
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip("transformers")
from layouts import CLIP_LAYOUTS, OpenAICLIP, openai_names, perturb
from make_golden import processor
from transformers import (CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel,
                          CLIPVisionModelWithProjection)

from clip_vit import CLIPText, CLIPViT, preprocess
from weights.reading import read

TOLERANCE = 1e-4


def tower(width, heads, layers, V=0, **more):
    if V:
        more |= dict(vocab_size=V, bos_token_id=V - 2, eos_token_id=V - 1, pad_token_id=V - 1)
    return dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                num_attention_heads=heads, **more)


# (image tower, text tower, shared space). The last one is square wherever a matrix can be: 64
# patches, 64 positions of text, 64 tokens, both widths and the shared space 64.
SIZES = [(tower(48, 4, 3, image_size=30, patch_size=6),
          tower(40, 5, 2, 71, max_position_embeddings=13), 28),
         (tower(128, 2, 2, image_size=32, patch_size=8),
          tower(64, 1, 3, 67, max_position_embeddings=11), 48),
         (tower(64, 1, 2, image_size=32, patch_size=4),
          tower(64, 4, 2, 64, max_position_embeddings=64), 64)]


def build(folder, size, **how):
    """Their model, saved in the folder; its tensors and what config.json says there."""
    torch.manual_seed(size)
    vision, text, embed = SIZES[size]
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=embed)
    theirs = perturb(CLIPModel(config), size)
    theirs.save_pretrained(folder, **how)
    return theirs, read(folder), json.loads((folder / "config.json").read_text())


def close(a, b):
    difference = (a - b).abs().max().item()
    print(f"largest difference {difference:.1e}")  # shown by pytest -rP
    assert a.shape == b.shape and b.std() > 0.1 and difference <= TOLERANCE


@torch.no_grad()
def compare_vision(vit, theirs):
    """Every layer, then the projected class token."""
    vision, states = getattr(theirs, "vision_model", theirs), []
    for block in vit.transformer.resblocks:
        block.register_forward_hook(lambda block, inputs, x: states.append(x))
    images = torch.randn(2, 3, vision.config.image_size, vision.config.image_size)
    feats, seen = vit(images), vision(images, output_hidden_states=True)
    assert len(states) == len(seen.hidden_states) - 1 and feats is states[-1]
    for ours, hidden in zip(states, seen.hidden_states[1:]):
        close(ours, hidden)
    if vit.proj is not None:
        close(vit.encode_image(images), theirs.visual_projection(seen.pooler_output))


@torch.no_grad()
def compare_text(text, theirs):
    """Ids that end in the end token somewhere, with more of it behind."""
    T, V = text.context, text.token_embedding.num_embeddings
    idx = torch.randint(1, V - 2, (4, T))
    for row, end in zip(idx, torch.randint(2, T, (4,))):
        row[end:] = V - 1
    close(text.encode_text(idx), theirs.text_projection(theirs.text_model(idx).pooler_output))
    return idx


@pytest.mark.parametrize("layout", CLIP_LAYOUTS)
@pytest.mark.parametrize("size", range(len(SIZES)))
def test_features_are_equal_from_every_layout(layout, size, tmp_path):
    theirs, tensors, config = build(tmp_path / "saved", size)
    path = CLIP_LAYOUTS[layout](tmp_path / "it", tensors, config)
    compare_vision(CLIPViT.from_pretrained(path), theirs)
    if "Vision" not in layout:
        compare_text(CLIPText.from_pretrained(path), theirs)


@pytest.mark.parametrize("kind, size, parameters", [
    (CLIPVisionModel, SIZES[0][0], None), (CLIPVisionModelWithProjection, SIZES[0][0], None),
    pytest.param(CLIPVisionModelWithProjection, {"patch_size": 16}, 86_192_640,  # ViT-B/16
                 marks=pytest.mark.slow)])
def test_what_the_vision_models_save_is_loaded_as_it_is(kind, size, parameters, tmp_path):
    torch.manual_seed(0)
    theirs = perturb(kind(CLIPVisionConfig(**size)), 1, 0.03)
    theirs.save_pretrained(tmp_path)
    vit, projected = CLIPViT.from_pretrained(tmp_path), kind is CLIPVisionModelWithProjection
    assert any(k.startswith("vision_model.") for k in read(tmp_path)) == projected
    assert (vit.proj is not None) == projected
    assert parameters in (None, sum(p.numel() for p in vit.parameters()))
    compare_vision(vit, theirs)


@torch.no_grad()
def test_a_full_model_in_shards_is_loaded_as_it_is_and_gives_the_same_cosines(tmp_path):
    theirs, *_ = build(tmp_path, 0, max_shard_size="100KB")
    vit, text = CLIPViT.from_pretrained(tmp_path), CLIPText.from_pretrained(tmp_path)
    images, idx = torch.randn(2, 3, 30, 30), compare_text(text, theirs)
    cosines = F.cosine_similarity(vit.encode_image(images)[:, None], text.encode_text(idx), dim=-1)
    logits = theirs(input_ids=idx, pixel_values=images).logits_per_image
    close(text.logit_scale.exp() * cosines, logits)


@torch.no_grad()
def test_openais_archive_agrees_with_transformers(tmp_path):
    """The archive rounds matrices to 16 bits; transformers gets the same rounded numbers."""
    theirs, tensors, _ = build(tmp_path / "saved", 1)
    model = OpenAICLIP()
    model.load_state_dict(openai_names(tensors), strict=False)
    model.save(tmp_path / "ViT.pt", torch.randn(2, 3, 32, 32), torch.randint(67, (2, 11)))
    for name, p in theirs.named_parameters():
        if re.search("patch_embedding|self_attn|mlp|projection", name):
            p.copy_(p.half().float())
    compare_vision(CLIPViT.from_pretrained(tmp_path / "ViT.pt"), theirs)
    compare_text(CLIPText.from_pretrained(tmp_path / "ViT.pt"), theirs)


# ---------------------------------------------------------------------------- preprocessing

def noise(rng, w, h, channels=3):
    return Image.fromarray(rng.randint(0, 256, (h, w, channels), dtype=np.uint8))


@pytest.mark.parametrize("size, crop", [(224, True), (32, True), (45, True), (32, False)])
def test_preprocessing_is_bit_equal_on_random_sizes(size, crop):
    rng, theirs = np.random.RandomState(size), processor(size, crop)
    for _ in range(10):
        picture = noise(rng, *rng.randint(20, 400, 2))
        assert torch.equal(preprocess(picture, size, crop), theirs(picture)), picture.size


MODES = "1 L LA P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV I F".split()


@pytest.mark.parametrize("mode, transparent", [
    *((mode, None) for mode in MODES), ("L", 5), ("RGB", (9, 9, 9)), ("1", 0), ("P", 3),
    ("P", bytes(range(256)))])
def test_preprocessing_is_bit_equal_for_every_mode_and_where_a_png_calls_a_colour_transparent(
        mode, transparent):
    """All that Pillow turns into RGB, except LAB, whose channel A transformers takes for alpha, and
    16 bits of grey, which it cuts off at 255."""
    picture = noise(np.random.RandomState(1), 61, 47, 4)
    picture = picture.convert("L" if mode == "I" else "RGBA").convert(mode)
    if transparent is not None:
        picture.paste((9, 9, 9) if mode == "RGB" else 0, (5, 5, 20, 20))
        file = io.BytesIO()
        picture.save(file, "PNG", transparency=transparent)
        picture = Image.open(file)
        assert "transparency" in picture.info
    for crop in (True, False):
        assert torch.equal(preprocess(picture, 32, crop), processor(32, crop)(picture))
