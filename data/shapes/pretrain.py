"""Pre-trains the two tiny backbones of the shapes world from nothing, on one CPU core.

    python data/shapes/pretrain.py gpt2      # text only, 5 minutes           -> data/shapes/tiny-gpt2
    python data/shapes/pretrain.py clip      # pictures and texts, 50 minutes -> data/shapes/tiny-clip

The results are part of the repository: run this only to change them. --resume goes on after a stop.

GPT-2 reads discourse about scenes and never sees a picture. CLIP learns which text belongs to which
picture (one vector for the whole, paper: Radford et al. 2021, figure 3) and which phrase belongs to
which region (the patches of one Thing, averaged). differs: CLIP has no region loss. With the
first loss alone nothing asks the last layer's patch tokens to say what is where, and the methods
that read them get little; RegionCLIP (Zhong et al. 2022) is the model for the second.

Both leave out every scene of the val, test and novel splits.
"""

import hashlib
import json
import math
import random
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from clip_vit import CLIPText, CLIPViT, preprocess, words
from data.shapes import world
from gpt2 import CONV1D, GPT2, GPT2Config
from lib.cli import UserError, opt, parse, run
from weights.safetensors import write
from weights.tokenizers import EOT, byte_symbols, get_clip_tokenizer, get_tokenizer

SEEN = ("train", "pretrain")  # the homes of the scenes that pre-training may use


@dataclass
class Config:
    which: list = opt([], "gpt2 or clip", positional=True)
    steps: int = opt(0, "optimiser steps; 0: as many as made the committed files")
    seed: int = opt(1337, "of weights and data")
    threads: int = opt(1, "CPU threads: two runs side by side use two cores better than one after the other")
    out: str = opt("", "folder for the result; empty: data/shapes/tiny-gpt2 or tiny-clip")
    resume: bool = opt(False, "go on from the last checkpoint in the folder")


# ---------------------------------------------------------------------------- tokenizers

def learn_bpe(texts, split, start, most):
    """Byte-pair encoding, learnt the plain way: join the most frequent neighbours, again and again.

    texts are cut by split into words; start(word) gives a word's first symbols. Stops after `most`
    merges or when no pair occurs twice. Returns the merges in order.
    """
    words = Counter(word for text in texts for word in split(text))
    words = {tuple(start(word)): n for word, n in words.items()}
    merges = []
    while len(merges) < most:
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs or max(pairs.values()) < 2:
            break
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        words = {tuple(join(word, best)): n for word, n in words.items()}
    return merges


def join(word, pair):
    out = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def corpus(n, seed):
    """n texts of all kinds about scenes that pre-training may see."""
    rng = random.Random(f"corpus {seed}")
    return [world.discourse(scene_for(rng), rng) for _ in range(n)]


def scene_for(rng):
    return world.sample_from(rng, rng.choice((1, 1, 2, 2, 2, 2, 3, 4, 6)), SEEN)


# Words that later tasks use and the discourse does not, said in captions' own words.
EXTRA = ["a photo of a painting", "a photo in red", "it shows nothing", "the background is grey"]


def write_tokenizers(folder, seed, clip):
    """merges.txt and vocab.json in which every word of the world becomes one token."""
    symbol = {b: s for s, b in byte_symbols().items()}
    spell = lambda word: [symbol[b] for b in word.encode()]
    texts = corpus(4000, seed) + 10 * EXTRA
    if clip:  # words without a space in front, the last symbol marked
        split, start = words, lambda w: [*spell(w)[:-1], spell(w)[-1] + "</w>"]
        vocab = [*symbol.values(), *(s + "</w>" for s in symbol.values())]
        specials = ["<|startoftext|>", EOT]
    else:  # the space belongs to the word behind it; plain ASCII, so a simple pattern will do
        split, start = re.compile(r" ?[a-z]+| ?[^\sa-z]+").findall, spell
        vocab, specials = list(symbol.values()), [EOT]
    merges = learn_bpe(texts, split, start, most=2000)
    vocab = [*vocab, *(a + b for a, b in merges), *specials]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n", "utf-8")
    (folder / "vocab.json").write_text(json.dumps({v: i for i, v in enumerate(vocab)}, ensure_ascii=False), "utf-8")


# ---------------------------------------------------------------------------- the loop

def fit(named, optimizers, loss_at, steps, folder, resume, every=200):
    """Trains {name: parameter} with warm-up and cosine decay of the optimizers' learning rates.

    loss_at(step) draws its data from the step's number alone, so that a resumed run sees what an
    unbroken one would have seen. Yields the number of steps done whenever it has saved.
    """
    for o in optimizers:
        for g in o.param_groups:
            g["peak"] = g["lr"]
    ckpt, first = folder / "ckpt.pt", 0
    if resume and ckpt.exists():
        state = torch.load(ckpt, weights_only=True)
        first = state["step"]
        for o, saved in zip(optimizers, state["optimizers"]):
            o.load_state_dict(saved)
        for k, p in named.items():
            p.data.copy_(state["model"][k])
    t0 = time.time()
    for step in range(first, steps):
        warm, done = min(1, (step + 1) / 200), step / steps
        factor = warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for o in optimizers:
            for g in o.param_groups:
                g["lr"] = g["peak"] * factor
        loss, log = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0:
            spent = (time.time() - t0) / (step + 1 - first)
            print(f"step {step + 1}/{steps} loss {loss.item():.4f} {log} "
                  f"{spent:.2f} s/step, {spent * (steps - step - 1) / 60:.0f} min left", flush=True)
        if (step + 1) % every == 0 or step + 1 == steps:
            state = {"step": step + 1, "optimizers": [o.state_dict() for o in optimizers],
                     "model": {k: p.data for k, p in named.items()}}
            torch.save(state, ckpt.with_suffix(".tmp"))
            ckpt.with_suffix(".tmp").replace(ckpt)
            yield step + 1


# ---------------------------------------------------------------------------- GPT-2

def pretrain_gpt2(config, folder, steps):
    write_tokenizers(folder, config.seed, clip=False)
    enc = get_tokenizer(folder)
    torch.manual_seed(config.seed)
    model = GPT2(GPT2Config(enc.n_vocab, n_positions=128, n_layer=4, n_head=4, n_embd=128))
    with torch.no_grad():
        # A narrow model needs larger first weights than GPT-2's 0.02: about 1 / sqrt(width). With 0.02 it
        # sat for 1,300 steps on the plateau of a model without memory; with this it left it after 300.
        for p in model.parameters():
            p.mul_(0.08 / 0.02 if p.dim() == 2 else 1)
        # Sinusoids to begin with: neighbouring positions are alike, so looking back is learnt sooner.
        t, f = torch.arange(128)[:, None], 0.5 ** torch.linspace(0, 8, 64)
        model.wpe.weight.copy_(0.08 * torch.cat([(t * f).sin(), (t * f).cos()], 1))
    rows, length = 24, 80

    def batch(step, name="train"):
        """Token ids (rows, length + 1): each row starts with a text and goes on with others."""
        rng = random.Random(f"gpt2 {name} {config.seed} {step}")
        out = []
        for _ in range(rows):
            ids = [enc.eot_token]
            while len(ids) <= length:
                ids += [*enc.encode_ordinary(world.discourse(scene_for(rng), rng)), enc.eot_token]
            out.append(ids[:length + 1])
        return torch.tensor(out)

    def loss_at(step, name="train"):
        idx = batch(step, name)
        logits = model(idx[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()), ""

    # Muon (Jordan et al. 2024) for the matrices of the blocks. Under AdamW the states get dominated by a few
    # directions, and what was said of the first Thing varies in directions that hardly show: an attention
    # trained on top does not find them. Muon uses all directions of a matrix alike.
    if not hasattr(torch.optim, "Muon"):
        raise UserError("pre-training GPT-2 needs torch 2.9 or newer, for torch.optim.Muon")
    named = dict(model.named_parameters())
    blocks = {k: p for k, p in named.items() if k.startswith("h.") and p.dim() == 2}
    optimizers = [torch.optim.Muon(blocks.values(), lr=3e-3, weight_decay=0.1, momentum=0.95,
                                   adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW([p for k, p in named.items() if k not in blocks], lr=3e-3, betas=(0.9, 0.98),
                                    weight_decay=0.01)]
    for step in fit(named, optimizers, loss_at, steps, folder, config.resume):
        with torch.no_grad():
            print(f"  fresh scenes: loss {loss_at(step, 'fresh')[0].item():.4f}", flush=True)
        save_gpt2(model, folder, config, step)


def save_gpt2(model, folder, config, step):
    """In the layout of transformers' GPT2LMHeadModel.save_pretrained, fp16."""
    tensors = {}
    for key, p in model.state_dict().items():
        t = p.t() if key.endswith(CONV1D) else p
        tensors[f"transformer.{key}"] = t.half().contiguous()
    c = model.config
    write(folder / "model.safetensors", tensors, {"format": "pt", "n_head": str(c.n_head), **origin(config, step)})
    layout = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
              "n_embd": c.n_embd, "n_head": c.n_head, "n_layer": c.n_layer, "n_positions": c.n_positions,
              "vocab_size": c.vocab_size, "layer_norm_epsilon": 1e-5, "bos_token_id": c.vocab_size - 1,
              "eos_token_id": c.vocab_size - 1, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(layout, indent=2) + "\n", "utf-8")


def origin(config, step):
    """What made a file: the command, and a hash of the world's first texts and pictures."""
    rng = random.Random("origin")
    data = "\n".join(corpus(1000, 1337)).encode() + b"".join(world.render(scene_for(rng), rng).tobytes() for _ in range(100))
    return {"command": " ".join(["python data/shapes/pretrain.py", *sys.argv[1:]]),
            "steps": str(step), "seed": str(config.seed), "data_sha256": hashlib.sha256(data).hexdigest()}


# ---------------------------------------------------------------------------- CLIP

def edit(scene, rng):
    """A near-duplicate of a scene: one attribute changed, or two Things' attributes or places exchanged."""
    things = list(scene)
    i = rng.randrange(len(things))
    kind = rng.choice(("size", "colour", "shape", "place") if len(things) == 1 else
                      ("size", "colour", "shape", "swap size", "swap colour", "swap shape", "swap place", "swap place"))
    if kind == "place":
        things[i] = replace(things[i], **{k: getattr(world.sample(rng, 1)[0], k) for k in "xy"})
    elif kind.startswith("swap"):
        for k in {"swap place": ("x", "y")}.get(kind, (kind.split()[1],)):
            p, q = (getattr(t, k) for t in things)
            things = [replace(things[0], **{k: q}), replace(things[1], **{k: p})]
    else:
        values = {"size": list(world.SIZES), "colour": list(world.COLOURS), "shape": world.SHAPES}[kind]
        things[i] = replace(things[i], **{kind: rng.choice(values)})
    return things if world.is_valid(things) and world.home(things) in SEEN else None


def near_duplicates(rng, n=4):
    """n scenes, the later ones edits of the first: negatives that differ in just one respect."""
    scenes = [world.sample_from(rng, rng.choice((1, 2, 2)), SEEN)]
    while len(scenes) < n:
        new = edit(scenes[0], rng)
        if new and all(world.key(new) != world.key(s) for s in scenes):
            scenes.append(new)
    return scenes


def phrase(scene, t, rng, relations):
    """Something true of one Thing: (looks, place or "", relation or "", the other's looks or "")."""
    kind = rng.random()
    others = [o for o in scene if o is not t and world.relation(t, o)]
    if relations and kind < 0.4 and others:
        o = rng.choice(others)
        return t.looks, "", world.relation(t, o), o.looks
    return t.looks, t.place if kind < 0.7 else "", "", ""


@dataclass(frozen=True)
class Painted(world.Thing):
    """A Thing under a half-transparent box of some colour, which hides its own: so that is what names it."""

    paint: str = ""

    @property
    def looks(self):
        return f"{self.size} {self.shape} in {self.paint}"


def paint(image, t, rng):
    """Lays a box of any colour over Thing t of the image -> the Painted Thing. image is changed.

    Pictures on the web hold marked regions here and there, and CLIP has read about them. A world
    without any would make every such picture, and with it CPT (prompts.py), foreign to the model.
    """
    name = rng.choice(list(world.COLOURS))
    x, y, w, h = t.box
    box = Image.new("RGBA", (round(w) + rng.randint(0, 4), round(h) + rng.randint(0, 4)), (*world.COLOURS[name], 127))
    image.paste(box, (round(x) - rng.randint(0, 2), round(y) - rng.randint(0, 2)), box)
    return Painted(**asdict(t), paint=name)


def is_true(said, scene, t):
    """Does a phrase fit Thing t of the scene?"""
    looks, place, rel, other = said
    return (looks == t.looks and place in ("", t.place)
            and (not rel or any(o.looks == other and world.relation(t, o) == rel for o in scene)))


def falsify(said, rng):
    """A phrase like this one, in another place or relation: the negative that is hardest to tell apart."""
    looks, place, rel, other = said
    if " in " in looks and rng.random() < 0.5:
        return f"{looks.split(' in ')[0]} in {rng.choice(list(world.COLOURS))}", place, rel, other
    return looks, rng.choice(world.PLACES) if place else "", rng.choice(list(world.INVERSE)) if rel else "", other


def clip_batch(rng, tokenize, patch, relations):
    """One batch: pictures, their texts, which texts fit which pictures; regions likewise.

    The first 96 pictures (24 groups of near-duplicates) have captions; 32 more crowded ones have
    regions only. Patches (B, K, N) are weights that average some patches of one Thing.
    relations: let phrases of regions say how a Thing stands to another.
    """
    scenes = [s for _ in range(24) for s in near_duplicates(rng)]
    captions = [rng.choice(world.captions(s, rng)) for s in scenes]
    # A caption that names no place fits every picture that looks so, wherever the Thing stands.
    loose = [s[0].looks if len(s) == 1 else world.key(s) for s in scenes]
    exact = [world.key(s) for s in scenes]
    said = [len(s) == 1 and s[0].place in c for s, c in zip(scenes, captions)]
    fits = np.array([[exact[i] == exact[j] if said[i] else loose[i] == loose[j] for j in range(len(scenes))]
                     for i in range(len(scenes))])

    scenes += [world.sample_from(rng, rng.randint(3, 7), SEEN) for _ in range(32)]
    images = [world.render(s, rng) for s in scenes]
    for image, scene in zip(images[len(captions):], scenes[len(captions):]):
        for k in range(len(scene)):
            if rng.random() < 0.1:
                scene[k] = paint(image, scene[k], rng)
    images = torch.stack([preprocess(image, world.SIDE) for image in images])
    side = world.SIDE // patch
    centre = (np.arange(side) + 0.5) * patch
    K = 1 + max(len(s) for s in scenes)
    patches = np.zeros((len(scenes), K, side, side), np.float32)
    keep = np.random.default_rng(rng.randrange(2 ** 32)).random(patches.shape) < 0.5
    regions = []  # (picture, number) of every region, in the order of patches[real]
    for b, scene in enumerate(scenes):
        free = np.ones((side, side), bool)
        for k, t in enumerate(scene):
            far = np.hypot(centre[None, :] - t.x, centre[:, None] - t.y)
            inside = far <= max(world.SIZES[t.size], far.min())
            free &= far > world.SIZES[t.size] + patch
            patches[b, k] = inside & keep[b, k] if (inside & keep[b, k]).any() else inside
            regions.append((b, k))
        if free.any():  # the last of all: the empty background
            patches[b, -1] = free & keep[b, -1] if (free & keep[b, -1]).any() else free
            regions.append((b, K - 1))
    patches = patches.reshape(len(scenes), K, side * side)
    patches /= np.maximum(patches.sum(-1, keepdims=True), 1)
    real = torch.zeros(len(scenes), K, dtype=torch.bool)
    real[tuple(zip(*regions))] = True
    said = sorted({phrase(scenes[b], scenes[b][k], rng, relations)
                   for b, k in regions if k < len(scenes[b]) and rng.random() < 0.7})
    # pitfall: a set has no order of its own; falsify draws from rng, so the order must be the same in every run.
    said = sorted({*said, *(falsify(x, rng) for x in said for _ in range(2))})
    by_looks = {}
    for j, x in enumerate(said):
        by_looks.setdefault(x[0], []).append(j)
    true = torch.zeros(len(regions), len(said) + 1, dtype=torch.bool)
    for i, (b, k) in enumerate(regions):
        if k >= len(scenes[b]):
            true[i, -1] = True
            continue
        for j in by_looks.get(scenes[b][k].looks, ()):
            true[i, j] = is_true(said[j], scenes[b], scenes[b][k])
    texts = [f"{world.a(x)} {place or rel} {world.a(o) if o else ''}".strip() for x, place, rel, o in said] + ["nothing"]
    crop = lambda idx: idx[:, :int((idx > 0).sum(1).max())]  # padding behind the longest text is never read
    return (images, crop(tokenize(captions)), torch.tensor(fits), torch.from_numpy(patches), real,
            crop(tokenize(texts)), true)


def contrast(a, b, fits, scale):
    """Cross-entropy of each row of a choosing among all rows of b; several may fit. Cosine logits."""
    logits = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).t()
    keep = fits.any(1)
    target = fits.float() / fits.float().sum(1, keepdim=True).clamp(min=1)
    hit = fits.gather(1, logits.argmax(1, keepdim=True)).float().mean()
    return -(target * logits.log_softmax(1)).sum(1)[keep].mean(), hit.item()


# Relations come in when looks and places are known. A first attempt had them from the first step, with a
# smaller batch: after 2,000 steps it had not learnt shapes.
RELATIONS = 1500


def pretrain_clip(config, folder, steps):
    torch.manual_seed(config.seed)
    write_tokenizers(folder, config.seed, clip=True)
    V = 2 + 512 + len((folder / "merges.txt").read_text("utf-8").splitlines()) - 1
    vit = CLIPViT(world.SIDE, patch=8, width=128, layers=4, heads=4, embed_dim=128)
    text = CLIPText(77, V, width=128, layers=2, heads=4, embed_dim=128)
    tokenize = get_clip_tokenizer(folder)
    with torch.no_grad():
        # Sinusoids of the row and the column. With random positions the patch tokens never learnt to
        # tell well where they are: a linear probe for the place missed by 12 of the 64 pixels, so by 3.
        grid = vit.image_size // vit.patch
        t, f = torch.arange(grid)[:, None], 0.5 ** torch.linspace(0, 4, vit.width // 4)
        wave = torch.cat([(t * f).sin(), (t * f).cos()], 1)  # (grid, D/2)
        vit.positional_embedding[1:] += 0.5 * torch.cat([
            wave[:, None].expand(grid, grid, -1), wave[None].expand(grid, grid, -1)], 2).flatten(0, 1)

    def loss_at(step, name="train"):
        rng = random.Random(f"clip {name} {config.seed} {step}")
        images, captions, fits, patches, real, phrases, true = clip_batch(
            rng, tokenize, vit.patch, relations=step >= RELATIONS)
        feats = vit(images)
        scale = text.logit_scale.clamp(max=math.log(100)).exp()
        whole = vit.ln_post(feats[:len(captions), 0]) @ vit.proj
        parts = vit.ln_post((patches @ feats[:, 1:])[real]) @ vit.proj
        said = text.encode_text(captions)
        t2i, hit = contrast(said, whole, fits, scale)
        i2t, _ = contrast(whole, said, fits.t(), scale)
        region, hit_region = contrast(parts, text.encode_text(phrases), true, scale)
        return (t2i + i2t) / 2 + region, f"picture for text {hit:.3f}, phrase for region {hit_region:.3f}"

    named = {f"vit.{k}": p for k, p in vit.named_parameters()} | {f"text.{k}": p for k, p in text.named_parameters()}
    optimizer = torch.optim.AdamW([{"params": [p for p in named.values() if p.dim() >= 2], "weight_decay": 0.1},
                                   {"params": [p for p in named.values() if p.dim() < 2], "weight_decay": 0.0}],
                                  lr=1e-3, betas=(0.9, 0.98))
    for step in fit(named, [optimizer], loss_at, steps, folder, config.resume):
        with torch.no_grad():
            print(f"  fresh scenes: {loss_at(step, 'fresh')[1]}", flush=True)
        save_clip(vit, text, folder, config, step)


def save_clip(vit, text, folder, config, step):
    """In the layout of transformers' CLIPModel.save_pretrained, fp16."""
    tensors = {}
    for tower, model in (("vision", vit), ("text", text)):
        for key, p in model.state_dict().items():
            for ours, theirs in TO_TRANSFORMERS[tower]:
                if key.startswith(ours):
                    key = theirs + key.removeprefix(ours)
            for ours, theirs in TO_TRANSFORMERS["both"]:
                key = key.replace(ours, theirs)
            if "in_proj_" in key:
                for x, part in zip("qkv", p.chunk(3)):
                    tensors[key.replace("in_proj_", f"{x}_proj.")] = part.half().contiguous()
            else:
                tensors[key] = (p.t() if key.endswith("_projection.weight") else p).half().contiguous()
    heads = {"vision_heads": vit.transformer.resblocks[0].attn.heads, "text_heads": text.transformer.resblocks[0].attn.heads}
    write(folder / "model.safetensors", tensors,
          {"format": "pt", **{k: str(v) for k, v in heads.items()}, **origin(config, step)})
    tower = lambda model, width, heads: {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": len(model.transformer.resblocks),
        "num_attention_heads": heads, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    V, width = text.token_embedding.weight.shape
    layout = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": vit.proj.shape[1],
              "vision_config": {"model_type": "clip_vision_model", "image_size": vit.image_size, "patch_size": vit.patch,
                                **tower(vit, vit.width, heads["vision_heads"])},
              "text_config": {"model_type": "clip_text_model", "vocab_size": V, "max_position_embeddings": text.context,
                              "bos_token_id": V - 2, "eos_token_id": V - 1, "pad_token_id": V - 1,
                              **tower(text, width, heads["text_heads"])}}
    (folder / "config.json").write_text(json.dumps(layout, indent=2) + "\n", "utf-8")
    sizes = {"crop_size": {"height": vit.image_size, "width": vit.image_size}, "size": {"shortest_edge": vit.image_size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(
        {"image_processor_type": "CLIPImageProcessor", **sizes}, indent=2) + "\n", "utf-8")


# Our names -> transformers': beginnings first, then parts; the reverse of clip_vit.RENAME.
TO_TRANSFORMERS = {
    "vision": [("class_embedding", "vision_model.embeddings.class_embedding"),
               ("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
               ("conv1", "vision_model.embeddings.patch_embedding"), ("proj", "visual_projection.weight"),
               ("ln_pre", "vision_model.pre_layrnorm"), ("ln_post", "vision_model.post_layernorm"),
               ("transformer.resblocks", "vision_model.encoder.layers")],
    "text": [("token_embedding", "text_model.embeddings.token_embedding"),
             ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
             ("ln_final", "text_model.final_layer_norm"), ("text_projection", "text_projection.weight"),
             ("transformer.resblocks", "text_model.encoder.layers")],
    "both": [(".attn.", ".self_attn."), (".ln_", ".layer_norm"), (".mlp.c_fc", ".mlp.fc1"), (".mlp.c_proj", ".mlp.fc2")],
}


def main(config):
    torch.set_num_threads(config.threads)
    known = {"gpt2": (pretrain_gpt2, 1200), "clip": (pretrain_clip, 4000)}
    for name in config.which:
        pretrain, steps = known[name]
        pretrain(config, Path(config.out or HERE / f"tiny-{name}"), config.steps or steps)


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
