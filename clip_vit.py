"""CLIP from scratch: the image transformer that will be GPT-2's eyes, and its small text tower.

     images (B,3,H,W)                     idx (B,77)
         |                                    |
     [ conv1 ]  one vector a patch     [ token_embedding ]
         | (B,grid*grid,D)                    |
     [ class token in front ]                 |
     [ + positional_embedding, ln_pre ]  [ + positional_embedding ]
         | (B,N,D)                            |
     [ transformer ] ---> feats          [ transformer, causal ]
         | class token                        | the EOT position
     [ ln_post, proj ]                   [ ln_final, text_projection ]
         | (B,E)                              | (B,E)
         +----------- cosine similarity ------+

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
Reference code: openai/CLIP clip/model.py; parameters keep its names. What the methods use is feats,
the states of all N = 1 + grid*grid tokens after the last block and before ln_post.

B images, N image tokens, D width, E size of the shared space, nh heads, hs head size (D = nh * hs)

Next: model.py
"""

import re
from collections import OrderedDict

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

from lib.cli import UserError
from lib.devices import attend
from lib.images import to_rgb
from weights.public import locate
from weights.reading import head_count, join, layer_count, load_into, metadata, read, read_config

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, R G B
STD = (0.26862954, 0.26130258, 0.27577711)


def normal(*size, std):
    """A parameter that starts at random, unless weights are read (weights/reading.py)."""
    return nn.init.normal_(nn.Parameter(torch.empty(size)), std=std)


class Attention(nn.Module):
    """Multi-head self-attention with torch's parameter names for it, (B, N, D) -> (B, N, D)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = normal(3 * width, width, std=width ** -0.5)  # q, k, v
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, causal):
        B, N, D = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v, is_causal=causal)  # (B, nh, N, hs)
        return self.out_proj(y.transpose(1, 2).reshape(B, N, D))


class QuickGELU(nn.Module):
    """pitfall: OpenAI's CLIP uses this cheap GELU. F.gelu runs too, and gives wrong features."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """The same pre-norm block as GPT-2's, with another activation and without a cache."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(OrderedDict(  # so that the names are CLIP's
            c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width)))

    def forward(self, x, causal=False):
        x = x + self.attn(self.ln_1(x), causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The blocks one after the other, (B, N, D) -> (B, N, D)."""

    def __init__(self, width, layers, heads):
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads) for _ in range(layers))
        for block in self.resblocks:  # as in CLIP, for training from nothing
            nn.init.normal_(block.attn.out_proj.weight, std=width ** -0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width ** -0.5 * (2 * layers) ** -0.5)

    def forward(self, x, causal=False):
        for block in self.resblocks:
            x = block(x, causal)
        return x


class CLIPViT(nn.Module):
    """The image tower. embed_dim None: a file without the projection into the shared space."""

    def __init__(self, image_size, patch, width, layers, heads, embed_dim):
        super().__init__()
        self.image_size, self.patch, self.width = image_size, patch, width
        n = 1 + (image_size // patch) ** 2
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = normal(width, std=width ** -0.5)
        self.positional_embedding = normal(n, width, std=width ** -0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = nn.LayerNorm(width)
        self.proj = None
        if embed_dim:
            self.proj = normal(width, embed_dim, std=width ** -0.5)

    def forward(self, images):
        """Preprocessed images (B, 3, H, W), H = W = image_size -> feats (B, N, D), before ln_post:
        the class token, then the patches row by row. UserError for another size."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise UserError(f"images of {tuple(images.shape[-2:])} pixels, but this ViT sees "
                            f"{self.image_size} x {self.image_size}: use preprocess")
        x = self.conv1(images).flatten(2).transpose(1, 2)  # (B, grid * grid, D)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)  # (B, N, D)
        return self.transformer(self.ln_pre(x + self.positional_embedding))

    def encode_image(self, images):
        """Images -> (B, E) in the space shared with the text tower, not normalised."""
        if self.proj is None:
            raise UserError("no projection (visual_projection): use the file of a full CLIP")
        return self.ln_post(self(images)[:, 0]) @ self.proj

    @classmethod
    def from_pretrained(cls, name):
        """Loads "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px", a file or a folder: OpenAI's
        archives and transformers' CLIPModel, CLIPVisionModel(WithProjection); float32, eval mode.
        UserError if a tensor is missing, unknown or of the wrong shape."""
        path = locate(name)
        tensors, heads = read_clip(path)
        ours = {k.removeprefix("visual."): t for k, t in tensors.items() if k.startswith("visual.")}
        width, layers, heads = tower_sizes(ours, "conv1.weight", 4, heads["vision"], path)
        patch, grid = ours["conv1.weight"].shape[-1], (len(ours["positional_embedding"]) - 1) ** 0.5
        embed_dim = ours["proj"].numel() // width if "proj" in ours else None
        return load_into(lambda: cls(round(grid) * patch, patch, width, layers, heads, embed_dim),
                         ours, path)


class CLIPText(nn.Module):
    """The text tower: causal, read at the end-of-text token, the largest id of a row."""

    def __init__(self, context, vocab_size, width, layers, heads, embed_dim):
        super().__init__()
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = normal(context, width, std=0.01)
        self.transformer = Transformer(width, layers, heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = normal(width, embed_dim, std=width ** -0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # of the cosines, section 2.5
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_text(self, idx):
        """Ids (B, T) with T up to the context of 77 -> (B, E), not normalised. Rows are SOT, text,
        EOT, then filler, which causal attention keeps out of the EOT state."""
        x = self.token_embedding(idx) + self.positional_embedding[:idx.shape[1]]
        x = self.ln_final(self.transformer(x, causal=True))
        eot = idx.argmax(-1)  # EOT has the largest id of all
        return x[torch.arange(len(idx), device=idx.device), eot] @ self.text_projection

    @classmethod
    def from_pretrained(cls, name):
        """Loads the text tower of the same files as CLIPViT (full CLIP models only)."""
        path = locate(name)
        tensors, heads = read_clip(path)
        ours = {k: t for k, t in tensors.items() if not k.startswith("visual.")}
        width, layers, heads = tower_sizes(ours, "token_embedding.weight", 2, heads["text"], path)
        context, vocab_size = len(ours["positional_embedding"]), len(ours["token_embedding.weight"])
        embed_dim = ours["text_projection"].numel() // width if "text_projection" in ours else width
        return load_into(lambda: cls(context, vocab_size, width, layers, heads, embed_dim), ours,
                         path)


def preprocess(image, size, crop=True):
    """A PIL image of any mode -> (3, size, size) float32, as CLIP was trained: bicubic, normalised.

    The shorter side becomes `size` and the centre is cut out; crop=False squeezes all of the image
    into the square: nothing is lost at the borders, but proportions change.
    """
    image = to_rgb(image)  # first: Pillow resizes palette images with nearest neighbour
    w, h = image.size
    if crop and max(w, h) > 100 * min(w, h):  # enlarged before it is cut, it fits no memory
        raise UserError(f"an image of {w} x {h} pixels is too long and thin to be seen")
    if not crop:
        image = image.resize((size, size), Image.BICUBIC)
    else:
        short, long = size, int(size * max(w, h) / min(w, h))
        w, h = (short, long) if w <= h else (long, short)
        image = image.resize((w, h), Image.BICUBIC)  # antialiases, which F.interpolate does not
        # differs: torchvision rounds the crop's origin, transformers truncates it; here the latter.
        x, y = (w - size) // 2, (h - size) // 2
        image = image.crop((x, y, x + size, y + size))
    x = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# ---------------------------------------------------------------------------- public weights

# transformers' name -> OpenAI's. q, k and v are joined in read_clip, the projections transposed.
RENAME = [
    (r"^(vision_model\.)?embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^(vision_model\.)?embeddings\.patch_embedding\.weight$", "visual.conv1.weight"),
    (r"^(vision_model\.)?embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^(vision_model\.)?pre_layrnorm\.", "visual.ln_pre."),  # their spelling
    (r"^(vision_model\.)?post_layernorm\.", "visual.ln_post."),
    (r"^(vision_model\.)?encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]
# Not weights: three numbers and the causal mask in OpenAI's archives, index buffers in old files.
DROP = re.compile(r"^(input_resolution|context_length|vocab_size)$|(^|\.)(attn_mask|position_ids)$")
# What a full CLIP file holds. Any other name is an error, not skipped.
PARTS = ("visual.", "token_embedding.", "positional_embedding", "transformer.", "ln_final.",
         "text_projection", "logit_scale")


def read_clip(path):
    """Tensors under OpenAI's names, and {"vision": heads, "text": heads}, None if not told."""
    theirs, ours = read(path), {}
    for key, t in theirs.items():
        if DROP.search(key):
            continue
        if key in ("visual_projection.weight", "text_projection.weight") and t.dim() == 2:
            t = t.t()  # transformers uses nn.Linear there, OpenAI a plain matrix
        if part := re.search("[qkv]_proj", key):
            parts = [key.replace(part[0], x) for x in ("q_proj", "k_proj", "v_proj")]
            if part[0] != "q_proj" and parts[0] in theirs:
                continue  # joined with its q_proj
            key, t = key.replace("q_proj.", "in_proj_"), join(theirs, parts, path)
        for pattern, name in RENAME:
            key = re.sub(pattern, name, key)
        if not key.startswith(PARTS):
            raise UserError(f"{path}: {key} is not part of a CLIP model")
        ours[key] = t
    return ours, head_counts(path)


def head_counts(path):
    """How many heads each tower has: shapes cannot tell. Also refuses what is not OpenAI's CLIP."""
    config, notes, heads = read_config(path), metadata(path), {}
    for tower, usual in (("vision", 12), ("text", 8)):
        part = config.get(f"{tower}_config") or config
        if not isinstance(part, dict):
            raise UserError(f"{path}/config.json: its {tower}_config is no such thing")
        act, eps = part.get("hidden_act", "quick_gelu"), part.get("layer_norm_eps", 1e-5)
        if (act, eps) != ("quick_gelu", 1e-5):
            raise UserError(f"{path}/config.json: only OpenAI's CLIP (quick_gelu, layer_norm_eps "
                            f"1e-5) is known here, not {act}, {eps}")
        # Some versions of transformers leave out default values.
        heads[tower] = (part.get("num_attention_heads", usual) if config else
                        notes.get(f"{tower}_heads"))
    return heads


def tower_sizes(tensors, first, axes, heads, path):
    """(width, layers, heads) of a tower that begins with this tensor of so many axes."""
    for key, n in ((first, axes), ("positional_embedding", 2)):
        if key not in tensors or tensors[key].dim() != n:
            raise UserError(f"{path}: no {key} with {n} axes, so no such tower of CLIP is in there")
    width = tensors["positional_embedding"].shape[1]
    layers = layer_count(tensors, "transformer.resblocks.", path)
    return width, layers, head_count(heads, width, path)
