"""CLIP: the features of transformers and of OpenAI's own code, from every kind of file.

golden/clip is a tiny CLIP written by transformers 5, with noise on every parameter, and what it
computes there (make_golden.py). parity/ compares live, where transformers is installed.
"""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import weights
from lib.cli import UserError
from clip_vit import MEAN, STD, CLIPText, CLIPViT, QuickGELU, preprocess
from lib.pictures import open_image
from weights.tokenizers import get_clip_tokenizer
from layouts import (CLIP_LAYOUTS, GOLDEN, OpenAICLIP, clip_transformers_5, clip_vision,
                     openai_names, perturb, write_config, write_safetensors)
from make_golden import pictures

TOLERANCE = 1e-4  # of features, float32, as everywhere in these comparisons
FOLDER = GOLDEN / "clip"
CONFIG = json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(scope="module")
def theirs():
    return weights.read(FOLDER)


@pytest.fixture(scope="module")
def expected():
    return weights.read(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def vit():
    return CLIPViT.from_pretrained(FOLDER).requires_grad_(False)


@pytest.fixture(scope="module")
def text():
    return CLIPText.from_pretrained(FOLDER).requires_grad_(False)


def near(a, b):
    assert a.shape == b.shape and b.std() > 0.1  # not a comparison of nothing with nothing
    assert (a - b).abs().max() <= TOLERANCE
    return True


# ---------------------------------------------------------------------------- the same numbers

@pytest.mark.parametrize("layout", CLIP_LAYOUTS)
def test_features_equal_those_of_transformers(layout, theirs, expected, tmp_path):
    """The same weights in seven kinds of file. "hidden" holds what went into the first block and
    what came out of each; layer k of ours is number k + 1 of theirs, the last before ln_post."""
    path = CLIP_LAYOUTS[layout](tmp_path / "it", theirs, CONFIG)
    vit = CLIPViT.from_pretrained(path)
    assert {p.dtype for p in vit.parameters()} == {torch.float32} and not vit.training
    assert (vit.image_size, vit.patch, vit.width) == (24, 8, 32)
    for layer in range(3):
        assert near(vit(expected["images"], layer=layer), expected["hidden"][layer + 1])
    assert torch.equal(vit(expected["images"]), vit(expected["images"], layer=2))
    assert torch.equal(vit(expected["images"], layer=-2), vit(expected["images"], layer=1))
    if vit.proj is not None:
        assert near(vit.encode_image(expected["images"]), expected["image_features"])
    else:
        assert layout.startswith("CLIPVisionModel,")
        with pytest.raises(UserError, match="no projection"):
            vit.encode_image(expected["images"])
    if "Vision" in layout:
        with pytest.raises(UserError, match="token_embedding.weight is missing, so this tower"):
            CLIPText.from_pretrained(path)
    else:
        text = CLIPText.from_pretrained(path)
        assert near(text.encode_text(expected["idx"]), expected["text_features"])
        assert text.logit_scale.item() == theirs["logit_scale"].item()


@pytest.mark.parametrize("name, grid", [("large", (5, 5)), ("wide", (2, 6)), ("small", (2, 2)),
                                        ("strip", (1, 9))])
def test_other_resolutions_interpolate_the_positions(name, grid, vit, expected):
    """Made for 3 x 3 patches, asked for more, for fewer, and for 9 in another arrangement: as with
    transformers' interpolate_pos_encoding."""
    images = expected[f"{name}.images"]
    feats = vit(images)
    assert feats.shape == (1, 1 + grid[0] * grid[1], 32)
    assert near(feats, expected[f"{name}.feats"])
    assert near(vit.encode_image(images), expected[f"{name}.image_features"])


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """An archive as OpenAI publishes them, what its own code computes, and the inputs."""
    torch.manual_seed(0)
    model = OpenAICLIP()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    images, idx = torch.randn(3, 3, 32, 32), torch.randint(67, (3, 11))
    path = tmp_path_factory.mktemp("openai") / "ViT.pt"
    return path, *perturb(model, 1).save(path, images, idx), images, idx


def test_openais_archive_gives_openais_features(archive):
    """A TorchScript archive with 16-bit matrices and 32-bit norms, heads 64 wide: all is read off
    the shapes. OpenAI's code is written out in layouts.py, on torch's own attention."""
    path, image_features, text_features, images, idx = archive
    kinds = {name: t.dtype for name, t in weights.read(path).items()}
    assert kinds["visual.conv1.weight"] == kinds["text_projection"] == torch.float16
    assert kinds["visual.ln_pre.weight"] == kinds["token_embedding.weight"] == torch.float32
    assert kinds["vocab_size"] == torch.int64  # no weight: dropped
    vit, text = CLIPViT.from_pretrained(path), CLIPText.from_pretrained(path)
    assert (vit.image_size, vit.patch, vit.width) == (32, 8, 128)
    assert vit.transformer.resblocks[0].attn.heads == 2
    assert (text.context, text.token_embedding.num_embeddings) == (11, 67)
    assert near(vit.encode_image(images), image_features)
    assert near(text.encode_text(idx), text_features)


def test_openais_code_and_transformers_agree(theirs, expected):
    """So that the two references vouch for each other."""
    model = OpenAICLIP(size=24, patch=8, width=32, layers=3, heads=4, embed=20, context=77,
                       vocab=CONFIG["text_config"]["vocab_size"], text_width=16, text_layers=2,
                       text_heads=2)
    model.load_state_dict(openai_names(theirs), strict=False)
    image_features, text_features = model(expected["images"], expected["idx"])
    assert near(image_features, expected["image_features"])
    assert near(text_features, expected["text_features"])


def test_every_parameter_is_seen_by_the_comparison(theirs, expected, tmp_path):
    """Each tensor in turn, a square one transposed and any other one turned round along its last
    axis, must move the features far beyond the tolerance. Not so the biases of the keys, the same
    for all of them, which softmax ignores, and logit_scale, which belongs to the cosines."""
    for name, t in theirs.items():
        if name == "logit_scale" or name.endswith("k_proj.bias"):
            continue
        square = t.dim() == 2 and t.shape[0] == t.shape[1]
        spoilt = {**theirs, name: t.t() if square else t.flip(-1)}
        if name.startswith("text_"):
            text = load(tmp_path, spoilt, text=True)
            change = text.encode_text(expected["idx"]) - expected["text_features"]
        else:
            vit = load(tmp_path, spoilt)
            change = vit.encode_image(expected["images"]) - expected["image_features"]
        assert change.abs().max() > 10 * TOLERANCE, name


def test_the_activation_is_openais_quick_gelu():
    """x * sigmoid(1.702 x) is 0.84580 at 1.0, GELU is 0.84134; at -1.0 -0.15420 and -0.15866."""
    values = QuickGELU()(torch.tensor([1.0, -1.0])).tolist()
    assert values == pytest.approx([0.845796, -0.154204], abs=1e-6)
    assert F.gelu(torch.tensor(1.0)).item() == pytest.approx(0.841345, abs=1e-6)


@pytest.mark.parametrize("size, patch, width, layers, embed, tokens, visual, whole", [
    (224, 32, 768, 12, 512, 50, 87_849_216, 151_277_313),
    (224, 16, 768, 12, 512, 197, 86_192_640, 149_620_737),
    (224, 14, 1024, 24, 768, 257, 303_966_208, 427_616_513),
    (336, 14, 1024, 24, 768, 577, 304_293_888, 427_944_193)])
def test_the_public_sizes_count_as_many_parameters_as_published(size, patch, width, layers, embed,
                                                                tokens, visual, whole):
    """ViT-B/32, B/16, L/14 and L/14@336px; the text tower is as wide as the shared space."""
    with torch.device("meta"):  # shapes without numbers
        vit = CLIPViT(size, patch, width, layers, width // 64, embed)
        text = CLIPText(77, 49408, embed, 12, embed // 64, embed)
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert len(vit.positional_embedding) == tokens
    assert count(vit) == visual and count(vit) + count(text) == whole
    assert len(vit.state_dict()) + len(text.state_dict()) == (302 if layers == 12 else 446)


def test_a_batch_gives_what_its_images_and_texts_give_alone(vit, text, expected):
    images, idx = torch.randn(4, 3, 24, 24), expected["idx"]
    assert (vit(images) - torch.cat([vit(x[None]) for x in images])).abs().max() <= 1e-5
    singles = torch.cat([text.encode_text(x[None]) for x in idx])
    assert (text.encode_text(idx) - singles).abs().max() <= 1e-5


def test_an_image_that_cannot_be_cut_into_patches_is_refused(vit):
    with pytest.raises(UserError, match="30 x 24 pixels cannot be cut into patches of 8"):
        vit(torch.zeros(1, 3, 24, 30))


def test_what_follows_the_end_of_a_text_does_not_count(text, expected):
    """OpenAI pads with zeros, transformers with the end token, and a short row may be cut instead:
    the end's state has only seen what stands before it."""
    idx = expected["idx"]
    features, end = text.encode_text(idx), idx.max().item()
    assert (text.encode_text(torch.where(idx == 0, end, idx)) - features).abs().max() <= 1e-5
    longest = int(idx.argmax(-1).max()) + 1
    assert longest < 40
    assert (text.encode_text(idx[:, :longest]) - features).abs().max() <= 1e-5
    changed = idx.clone()
    changed[:, 2] = 7  # inside the text it does count
    assert (text.encode_text(changed) - features).abs().amax(-1).min() > 1e-3


# ---------------------------------------------------------------------------- wrong files

def load(tmp_path, tensors, config=CONFIG, text=False):
    write_safetensors(tmp_path / "model.safetensors", tensors)
    return (CLIPText if text else CLIPViT).from_pretrained(write_config(tmp_path, config))


# What an error may call a tensor: its own name, or the name it has in OpenAI's files.
OPENAI = {"patch_embedding.weight": "conv1.weight",
          "position_embedding.weight": "positional_embedding",
          "visual_projection.weight": "proj", "text_projection.weight": "text_projection",
          "pre_layrnorm": "ln_pre", "post_layernorm": "ln_post", "final_layer_norm": "ln_final",
          "layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj"}


def first_layer(tensors):
    return {k: t for k, t in tensors.items() if ".layers." not in k or ".layers.0." in k}


def called(name):
    """A pattern for the name of a tensor in a complaint."""
    last = re.sub(r"^(text|vision)_model\.(embeddings\.)?", "", name)
    if last in OPENAI:
        return OPENAI[last]
    *where, module, kind = ["", *last.split(".")]
    layer = "resblocks.0.*" if "layers" in where else ""
    return f"{layer}{OPENAI.get(module, module)}.{kind}" if module else kind


def test_a_missing_tensor_is_named(theirs, tmp_path):
    for name in first_layer(theirs):
        is_text = name.startswith(("text_", "logit"))
        rest = {k: t for k, t in theirs.items() if k != name}
        if name == "visual_projection.weight":  # then it is a file without the projection
            assert load(tmp_path, rest).proj is None
            continue
        of_three = re.search("[qkv]_proj", name)  # which are joined
        complaint = f"'{name}': 'missing'" if of_three else f"{called(name)}.*missing"
        with pytest.raises(UserError, match=complaint):
            load(tmp_path, rest, text=is_text)


def test_a_tensor_of_the_wrong_shape_is_named(theirs, tmp_path):
    """One axis too many, all in one row, one row too many."""
    for name, t in first_layer(theirs).items():
        is_text = name.startswith(("text_", "logit"))
        wrong = [torch.zeros(*t.shape, 2)]
        if t.dim() >= 2:
            wrong.append(torch.zeros(t.numel()))
        free = re.search("projection|patch_embed|token_embed|text.*position_embed", name)
        if t.dim() and not free:  # of those the length is a size of the model
            wrong.append(torch.zeros(len(t) + 1, *t.shape[1:]))
        for shape in wrong:
            with pytest.raises(UserError, match=f"{called(name)}|{name}"):
                load(tmp_path, {**theirs, name: shape}, text=is_text)


@pytest.mark.parametrize("extra, named", [
    ("vision_model.encoder.layers.0.layer_norm3.weight", "resblocks.0.layer_norm3.weight"),
    ("vision_model.head.weight", "vision_model.head.weight"),
    ("classifier.weight", "classifier.weight"),
    ("visual.attnpool.c_proj.weight", "attnpool.c_proj.weight")])
def test_an_unknown_tensor_is_named_and_not_skipped(extra, named, theirs, tmp_path):
    with pytest.raises(UserError, match=named):
        load(tmp_path, {**theirs, extra: torch.zeros(3)})


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"},
                                    {"layer_norm_eps": 1e-6}])
@pytest.mark.parametrize("tower", ["vision_config", "text_config"])
def test_a_config_that_asks_for_other_mathematics_is_refused(change, tower, theirs, tmp_path):
    """LAION's CLIPs, for example, were trained with the exact GELU: same shapes, other features."""
    with pytest.raises(UserError, match="only OpenAI's CLIP"):
        load(tmp_path, theirs, {**CONFIG, tower: {**CONFIG[tower], **change}})


def test_a_vision_file_with_another_activation_is_refused(theirs, tmp_path):
    vision = {**CONFIG, "vision_config": {**CONFIG["vision_config"], "hidden_act": "gelu"}}
    with pytest.raises(UserError, match="only OpenAI's CLIP"):
        CLIPViT.from_pretrained(clip_vision(tmp_path, theirs, vision))


@pytest.mark.parametrize("content", ["", "Entry not found", "[1, 2]", '{"vision_config": null}'])
def test_a_config_that_is_none_is_refused(content, theirs, tmp_path):
    clip_transformers_5(tmp_path, theirs, CONFIG)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json: not the config of a model"):
        CLIPViT.from_pretrained(tmp_path)


def test_a_number_of_heads_that_the_config_leaves_out_is_transformers_default(tmp_path):
    """Where a config says nothing, transformers means 12 heads in the image tower and 8 in the text
    tower, whatever the width; one head per 64 is only right for OpenAI's sizes."""
    torch.manual_seed(0)
    vit, text = CLIPViT(24, 8, 48, 1, 12, 20), CLIPText(9, 30, 32, 1, 8, 20)
    tensors = {f"visual.{k}": t for k, t in vit.state_dict().items()} | text.state_dict()
    config = {"vision_config": {"hidden_size": 48}, "text_config": {"hidden_size": 32}}
    assert load(tmp_path, tensors, config).transformer.resblocks[0].attn.heads == 12
    assert load(tmp_path, tensors, config, text=True).transformer.resblocks[0].attn.heads == 8


def test_heads_that_do_not_divide_the_width_are_refused(theirs, tmp_path):
    config = {**CONFIG, "vision_config": {**CONFIG["vision_config"], "num_attention_heads": 5}}
    with pytest.raises(UserError, match="width 32 cannot be split into 5 heads"):
        load(tmp_path, theirs, config)


def test_another_model_is_not_taken_for_a_clip():
    for tower in (CLIPViT, CLIPText):
        with pytest.raises(UserError):
            tower.from_pretrained(GOLDEN / "gpt2")


# ---------------------------------------------------------------------------- images

@pytest.mark.parametrize("name, picture, size, crop",
                         [pytest.param(*p, id=p[0]) for p in pictures()])
def test_preprocessing_equals_transformers_bit_by_bit(name, picture, size, crop, expected):
    """Not within a tolerance: equal. A crop one pixel off would be no rounding error."""
    image = preprocess(picture, size, crop)
    assert image.shape == (3, size, size) and image.dtype == torch.float32
    assert torch.equal(image, expected[f"picture.{name}"])


def test_white_and_black_become_these_numbers():
    """Red in white is (1 - 0.48145466) / 0.26862954 = 1.93034, in black -0.48145466 / 0.26862954 =
    -1.79226."""
    for colour, value in (("white", 1), ("black", 0)):
        image = preprocess(Image.new("RGB", (20, 30), colour), 8)
        for c in range(3):
            assert image[c].unique().item() == pytest.approx((value - MEAN[c]) / STD[c], abs=1e-6)
    assert image[0, 0, 0].item() == pytest.approx(-1.79226, abs=1e-5)


def test_the_crop_takes_the_middle_and_squeezing_takes_all():
    """Stripes of 10 pixels, red, green and blue: the middle is green; squeezed, all are there."""
    picture = Image.new("RGB", (30, 10), "lime")
    picture.paste("red", (0, 0, 10, 10)), picture.paste("blue", (20, 0, 30, 10))
    green = preprocess(Image.new("RGB", (10, 10), "lime"), 10)
    assert torch.equal(preprocess(picture, 10), green)
    squeezed = preprocess(picture, 10, crop=False)
    assert [int(squeezed[:, 5, x].argmax()) for x in (1, 5, 8)] == [0, 1, 2]


@pytest.mark.parametrize("via, mode", [
    *(("L", mode) for mode in ("1", "L", "LA", "P", "I", "F", "I;16")),
    *(("RGB", mode) for mode in ("PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"))])
def test_a_picture_of_any_mode_is_understood(via, mode):
    """Black stays black in all of them."""
    picture, black = Image.new(via, (9, 12)).convert(mode), Image.new("RGB", (9, 12))
    assert torch.allclose(preprocess(picture, 8), preprocess(black, 8), atol=0.02)


def test_what_is_transparent_is_white():
    """Under transparent pixels any colour may lie, often black: a black logo would be on black."""
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    white = preprocess(Image.new("RGB", (8, 8), "white"), 8)
    assert torch.equal(preprocess(picture, 8), white)
    grey = Image.new("L", (8, 8), 5)
    grey.info["transparency"] = 5  # a PNG may call one shade transparent
    assert torch.equal(preprocess(grey, 8), white)


def test_a_picture_that_is_all_edge_is_refused():
    """1 x 10,000 pixels would be enlarged to 224 x 2,240,000 before the middle is cut out."""
    with pytest.raises(UserError, match="1 x 10000 pixels is too long and thin"):
        preprocess(Image.new("RGB", (1, 10000)), 224)
    assert preprocess(Image.new("RGB", (3, 300)), 8).shape == (3, 8, 8)


def test_a_file_is_opened_upright_and_in_rgb(tmp_path):
    """Orientation 6: the camera was held upright, its sensor lay on the side. The top of the file
    is the right of the picture."""
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (0, 10, 40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "phone.png", exif=exif)
    upright = open_image(tmp_path / "phone.png")
    assert upright.size == (20, 40) and upright.mode == "RGB"
    assert upright.getpixel((15, 20)) == (255, 0, 0) and upright.getpixel((4, 20)) == (0, 0, 255)
    Image.new("RGBA", (3, 3), (0, 0, 0, 0)).save(tmp_path / "logo.png")
    assert open_image(tmp_path / "logo.png").getpixel((1, 1)) == (255, 255, 255)
    assert open_image(str(tmp_path / "logo.png")).mode == "RGB"  # a string will do


def test_a_missing_or_broken_image_is_one_line_for_the_user(tmp_path):
    with pytest.raises(UserError, match="no such image"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(UserError, match="not a readable image"):
        open_image(tmp_path)
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html>")
    (tmp_path / "empty.png").write_bytes(b"")
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8))
    for ending in ("jpg", "png", "webp", "tiff", "gif"):
        noise.save(tmp_path / f"whole.{ending}")
        whole = (tmp_path / f"whole.{ending}").read_bytes()
        (tmp_path / f"half.{ending}").write_bytes(whole[:len(whole) // 2])
    for path in (tmp_path / "page.jpg", tmp_path / "empty.png", *tmp_path.glob("half.*")):
        with pytest.raises(UserError, match="not a readable image") as e:
            open_image(path)
        assert path.name in str(e.value) and "\n" not in str(e.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow thinks of some of the files
def test_bits_flipped_in_an_image_never_end_in_a_traceback(tmp_path):
    """400 damaged files: each is either still a picture or a UserError."""
    rng = np.random.RandomState(0)
    noise = Image.fromarray(rng.randint(0, 256, (16, 16, 3), dtype=np.uint8))
    outcomes = {True: 0, False: 0}
    for ending in ("jpg", "png", "webp", "tiff", "gif", "bmp", "dds", "ico"):
        noise.save(tmp_path / f"whole.{ending}")
        whole = bytearray((tmp_path / f"whole.{ending}").read_bytes())
        for _ in range(50):
            damaged = bytearray(whole)
            for place in rng.randint(0, min(len(whole), 300), 4):
                damaged[place] = rng.randint(256)
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                readable = open_image(tmp_path / "damaged").mode == "RGB"
            except UserError:
                readable = False
            outcomes[readable] += 1
    assert min(outcomes.values()) > 20


def test_a_picture_and_its_text_are_compared_by_the_cosine(vit, text):
    """The shared space: both towers' features have one size; exp(logit_scale) is CLIP's factor."""
    image = preprocess(Image.new("RGB", (50, 40), "red"), 24)
    a = F.normalize(vit.encode_image(image[None]), dim=-1)
    encode = get_clip_tokenizer(FOLDER)
    b = F.normalize(text.encode_text(encode(["a red circle", "a blue square"])), dim=-1)
    logits = text.logit_scale.exp() * a @ b.t()
    assert logits.shape == (1, 2) and logits.abs().max() <= math.exp(text.logit_scale.item()) + 1e-4
