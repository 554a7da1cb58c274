"""CLIP: the features of transformers and of OpenAI's own code, from every kind of file.

golden/clip is a tiny CLIP written by transformers 5, with noise on every parameter, and what it
computes there (make_golden.py). parity/ compares live, where transformers is installed.
"""

import json

import pytest
import torch
from layouts import (CLIP_LAYOUTS, GOLDEN, OpenAICLIP, openai_names, perturb, write_config,
                     write_safetensors)
from make_golden import pictures
from PIL import Image

from clip_vit import CLIPText, CLIPViT, preprocess
from lib.cli import UserError
from weights.reading import read

TOLERANCE = 1e-4  # of features, float32, as everywhere in these comparisons
FOLDER = GOLDEN / "clip"
CONFIG = json.loads((FOLDER / "config.json").read_text())
THEIRS, EXPECTED = read(FOLDER), read(FOLDER / "expected.safetensors")
VIT = CLIPViT.from_pretrained(FOLDER).requires_grad_(False)
TEXT = CLIPText.from_pretrained(FOLDER).requires_grad_(False)


def load(folder, tensors, config=CONFIG, tower=CLIPViT):
    write_safetensors(folder / "model.safetensors", tensors)
    return tower.from_pretrained(write_config(folder, config))


def furthest(features, expected):
    assert features.shape == expected.shape
    return (features - expected).abs().max().item()


# ---------------------------------------------------------------------------- the same numbers

@pytest.mark.parametrize("layout", CLIP_LAYOUTS)
def test_features_equal_those_of_transformers(layout, tmp_path):
    """The same weights in seven kinds of file. The last of "hidden" is what came out of the last
    block, before ln_post."""
    path = CLIP_LAYOUTS[layout](tmp_path / "it", THEIRS, CONFIG)
    vit, images = CLIPViT.from_pretrained(path), EXPECTED["images"]
    assert {p.dtype for p in vit.parameters()} == {torch.float32} and not vit.training
    assert (vit.image_size, vit.patch, vit.width) == (24, 8, 32)
    assert furthest(vit(images), EXPECTED["hidden"][-1]) <= TOLERANCE
    if layout.startswith("CLIPVisionModel,"):
        with pytest.raises(UserError, match="no projection"):
            vit.encode_image(images)
    else:
        assert furthest(vit.encode_image(images), EXPECTED["image_features"]) <= TOLERANCE
    if "Vision" in layout:
        with pytest.raises(UserError, match="token_embedding.weight .*no such tower of CLIP"):
            CLIPText.from_pretrained(path)
    else:
        text = CLIPText.from_pretrained(path)
        assert furthest(text.encode_text(EXPECTED["idx"]), EXPECTED["text_features"]) <= TOLERANCE
        assert text.logit_scale.item() == THEIRS["logit_scale"].item()


def test_openais_archive_gives_openais_features(tmp_path):
    """A TorchScript archive with 16-bit matrices and 32-bit norms, heads 64 wide: all is read off
    the shapes. OpenAI's code is written out in layouts.py, on torch's own attention."""
    torch.manual_seed(0)
    images, idx, path = torch.randn(3, 3, 32, 32), torch.randint(67, (3, 11)), tmp_path / "ViT.pt"
    model = OpenAICLIP()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    image_features, text_features = perturb(model, 1).save(path, images, idx)
    assert {t.dtype for t in read(path).values()} > {torch.float16, torch.float32}
    vit, text = CLIPViT.from_pretrained(path), CLIPText.from_pretrained(path)
    assert (vit.image_size, vit.patch, vit.width) == (32, 8, 128)
    assert (text.context, text.token_embedding.num_embeddings) == (11, 67)
    assert furthest(vit.encode_image(images), image_features) <= TOLERANCE
    assert furthest(text.encode_text(idx), text_features) <= TOLERANCE


@pytest.mark.parametrize("size, patch, width, layers, embed, visual, whole", [
    (224, 32, 768, 12, 512, 87_849_216, 151_277_313),
    (224, 16, 768, 12, 512, 86_192_640, 149_620_737),
    (224, 14, 1024, 24, 768, 303_966_208, 427_616_513),
    (336, 14, 1024, 24, 768, 304_293_888, 427_944_193)])
def test_the_public_sizes_are_those_published(size, patch, width, layers, embed, visual, whole):
    """ViT-B/32, B/16, L/14 and L/14@336px; the text tower is as wide as the shared space."""
    with torch.device("meta"):  # shapes without numbers
        vit = CLIPViT(size, patch, width, layers, width // 64, embed)
        text = CLIPText(77, 49408, embed, 12, embed // 64, embed)
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert count(vit) == visual and count(vit) + count(text) == whole


def test_an_image_of_another_size_is_refused():
    with pytest.raises(UserError, match="but this ViT sees 24 x 24"):
        VIT(torch.zeros(1, 3, 24, 30))


def test_what_follows_the_end_of_a_text_does_not_count():
    """OpenAI pads with zeros, transformers with the end token, and a short row may be cut instead:
    the end's state has only seen what stands before it."""
    idx, features = EXPECTED["idx"], TEXT.encode_text(EXPECTED["idx"])
    longest = int(idx.argmax(-1).max()) + 1
    for padded in (torch.where(idx == 0, idx.max(), idx), idx[:, :longest]):
        assert furthest(TEXT.encode_text(padded), features) <= 1e-5
    changed = idx.clone()
    changed[:, 2] = 7  # inside the text it does count
    assert (TEXT.encode_text(changed) - features).abs().amax(-1).min() > 1e-3


# ---------------------------------------------------------------------------- wrong files

def test_a_missing_tensor_and_one_of_the_wrong_shape_are_named(tmp_path):
    """In the first layer and what is around it."""
    ours = openai_names(THEIRS)
    for name, t in ours.items():
        tower, short = CLIPViT if "visual" in name else CLIPText, name.removeprefix("visual.")
        if ".resblocks." in name and ".resblocks.0." not in name:
            continue
        wrong = [{**ours, name: torch.zeros(*t.shape, 2)}]
        if short not in ("proj", "text_projection"):  # left out, they are no part of this file
            wrong.append({k: x for k, x in ours.items() if k != name})
        for tensors in wrong:
            with pytest.raises(UserError, match=short):
                load(tmp_path, tensors, tower=tower)


QUERY = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
VISION = CONFIG["vision_config"]


@pytest.mark.parametrize("tensors, config, complaint", [
    ({QUERY: torch.zeros(8, 32)}, {}, r"these 3 must have one shape: .*q_proj.*\(8, 32\)"),
    ({"vision_model.encoder.layers.0.layer_norm3.weight": torch.zeros(3)}, {},
     "resblocks.0.layer_norm3.weight is unknown"),
    ({"vision_model.head.weight": torch.zeros(3)}, {}, "vision_model.head.weight is not part of"),
    ({"visual.attnpool.c_proj.weight": torch.zeros(3)}, {}, "attnpool.c_proj.weight is unknown"),
    # LAION's CLIPs, for example, were trained with the exact GELU: same shapes, other features.
    ({}, {"vision_config": {**VISION, "hidden_act": "gelu"}}, "only OpenAI's CLIP"),
    ({}, {"vision_config": {**VISION, "layer_norm_eps": 1e-6}}, "only OpenAI's CLIP"),
    ({}, {"text_config": {"hidden_act": "gelu"}}, "only OpenAI's CLIP"),
    ({}, {"vision_config": {**VISION, "num_attention_heads": 5}},
     "width 32 cannot be split into 5 heads"),
    # what only a damaged or a hostile file has
    ({QUERY: torch.tensor(1.0)}, {}, "these 3 must have one shape"),
    ({QUERY: torch.zeros(32, 32, dtype=torch.float16)}, {}, "these 3 must have one shape"),
    ({"visual_projection.weight": torch.tensor(1.0)}, {}, "proj is unknown"),
    ({"visual_projection.weight": torch.zeros(0, 32)}, {}, "proj has no numbers"),
    ({"vision_model.encoder.layers.x.layer_norm1.weight": torch.zeros(3)}, {}, "resblocks.x does"),
    ({"vision_model.embeddings.position_embedding.weight": torch.zeros(0, 2**40)}, {},
     "cannot be split into 12|no numbers"),
    ({}, {"vision_config": ["x"]}, "its vision_config is no such thing"),
    ({}, {"vision_config": {**VISION, "num_attention_heads": "x"}}, "split into x heads")])
def test_what_is_not_openais_clip_is_refused(tensors, config, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        load(tmp_path, {**THEIRS, **tensors}, {**CONFIG, **config})


@pytest.mark.parametrize("tower, heads", [(CLIPViT, 12), (CLIPText, 8)])
def test_heads_that_the_config_leaves_out_are_transformers_default(tower, heads, tmp_path):
    """Where a config says nothing, transformers means 12 heads in the image tower and 8 in the text
    tower, whatever the width; one head per 64 is only right for OpenAI's sizes."""
    vit, text = CLIPViT(24, 8, 48, 1, 12, 20), CLIPText(9, 30, 32, 1, 8, 20)
    tensors = {f"visual.{k}": t for k, t in vit.state_dict().items()} | text.state_dict()
    config = {"vision_config": {"hidden_size": 48}, "text_config": {"hidden_size": 32}}
    model = load(tmp_path, tensors, config, tower)
    assert model.transformer.resblocks[0].attn.heads == heads


# ---------------------------------------------------------------------------- images

@pytest.mark.parametrize("name, picture, size, crop",
                         [pytest.param(*p, id=p[0]) for p in pictures()])
def test_preprocessing_equals_transformers_bit_for_bit(name, picture, size, crop):
    """Not within a tolerance: equal. A crop one pixel off would be no rounding error."""
    assert torch.equal(preprocess(picture, size, crop), EXPECTED[f"picture.{name}"])


@pytest.mark.parametrize("mode", "1 L LA P I F I;16 PA RGB RGBA RGBX CMYK YCbCr HSV".split())
def test_black_stays_black_in_pictures_of_any_mode(mode):
    black = Image.new("RGB", (9, 12))
    picture = black.convert("L" if mode in ("I", "F", "I;16") else "RGB").convert(mode)
    assert torch.allclose(preprocess(picture, 8), preprocess(black, 8), atol=0.02)


def test_what_is_transparent_is_white():
    """Under transparent pixels any colour may lie, often black: a black logo would be on black."""
    logo, grey = Image.new("RGBA", (8, 8), (0, 0, 0, 0)), Image.new("L", (8, 8), 5)
    grey.info["transparency"] = 5  # a PNG may call one shade transparent
    for picture in (logo, grey):
        assert torch.equal(preprocess(picture, 8), preprocess(Image.new("L", (8, 8), "white"), 8))


def test_a_picture_that_is_all_edge_is_refused():
    """1 x 10,000 pixels would be enlarged to 224 x 2,240,000 before the middle is cut out."""
    with pytest.raises(UserError, match="1 x 10000 pixels is too long and thin"):
        preprocess(Image.new("RGB", (1, 10000)), 224)
    assert preprocess(Image.new("RGB", (3, 300)), 8).shape == (3, 8, 8)
