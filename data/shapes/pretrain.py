"""Pre-trains the tiny backbones of the shapes world from nothing, on one CPU core.

    python data/shapes/pretrain.py gpt2    # text only, 5 minutes
    python data/shapes/pretrain.py clip    # pictures and texts, 75 minutes
    python data/shapes/pretrain.py llama bert t5    # text only (data/shapes/plms.py)

The results, tiny-gpt2 and others, are part of the repository: run this only to change them.
--resume goes on after a stop.

GPT-2 reads discourse about scenes and never sees a picture. CLIP learns which text belongs to which
picture (one vector for the whole, paper: Radford et al. 2021, figure 3) and which phrase belongs to
which region (the patches of one Thing, averaged). differs: CLIP has no region loss. With the
first loss alone nothing asks the last layer's patch tokens to say what is where, and the methods
that read them get little; RegionCLIP (Zhong et al. 2022) is the model for the second.

All leave out every scene of the val, test and novel splits.
"""

import hashlib
import math
import random
import re
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from lib.cli import UserError, clock, opt, parse, run  # isort: skip (lib before torch)
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip_vit import CLIPText, CLIPViT
from data.shapes import plms, world
from data.shapes.bpe import clip_vocabulary, gpt2_vocabulary
from data.shapes.clip_batches import clip_batch
from data.shapes.drawing import render
from data.shapes.export import save_clip, save_gpt2
from data.shapes.texts import discourse
from gpt2 import GPT2, GPT2Config
from lib.files import replacing
from weights.tokenizers import get_clip_tokenizer, get_tokenizer, pretokenize

# Words that later tasks use and the discourse does not, said in captions' own words.
EXTRA = ["a photo of a painting", "a photo in red", "it shows nothing", "the background is grey"]
# CLIP's phrases say relations from this step on, when looks and places are known. A first attempt
# had them from the first step, with a smaller batch: after 2,000 steps it had not learnt shapes.
RELATIONS = 900


@dataclass
class Config:
    which: list = opt([], "gpt2, clip, llama, bert or t5", positional=True)
    steps: int = opt(0, "optimiser steps; 0: as many as made the committed files")
    seed: int = opt(1337, "of weights and data")
    threads: int = opt(1, "CPU threads: two runs side by side use two cores better than one run")
    out: str = opt("", "folder for the result; empty: data/shapes/tiny-gpt2, ...")
    resume: bool = opt(False, "go on from the last checkpoint in the folder")


def scene_for(rng):
    """A scene that pre-training may see, of up to six Things."""
    n = 0 if rng.random() < 0.02 else rng.choice((1, 1, 2, 2, 2, 2, 3, 4, 6))
    return world.marked(world.sample_from(rng, n, world.PRETRAINING, world.WIDE), rng)


def corpus(n, seed):
    """n texts of all kinds about scenes that pre-training may see."""
    rng = random.Random(f"corpus {seed}")
    return [discourse(scene_for(rng), rng) for _ in range(n)]


def provenance(config, step):
    """What made a file: the command, and a hash of the world's first texts and pictures."""
    rng = random.Random("origin")
    data = "\n".join(corpus(1000, 1337)).encode()
    data += b"".join(render(scene_for(rng), rng).tobytes() for _ in range(100))
    return {"command": " ".join(["python data/shapes/pretrain.py", *sys.argv[1:]]),
            "steps": str(step), "seed": str(config.seed),
            "data_sha256": hashlib.sha256(data).hexdigest()}


# ---------------------------------------------------------------------------- the loop

def muon(matrices, lr):
    """Muon (Jordan et al. 2024) for the matrices of the blocks: it uses all directions of a matrix
    alike."""
    if not hasattr(torch.optim, "Muon"):
        raise UserError("pre-training needs torch 2.9 or newer, for torch.optim.Muon")
    return torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, momentum=0.95,
                            adjust_lr_fn="match_rms_adamw")


def set_learning_rates(optimizers, step, steps):
    """Up to each group's peak within 200 steps, and down to a fiftieth of it on a cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * (step / steps)))
    factor = min(1, (step + 1) / 200) * (0.02 + 0.98 * cosine)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * factor


def fit(model, optimizers, loss_at, steps, folder, resume, every=200):
    """Trains a module and yields the number of steps done whenever it has saved its checkpoint.

    loss_at(step) -> (loss, what to print beside it). It draws its data from the step's number
    alone, so that a resumed run sees what an unbroken one would have seen.
    """
    ckpt, first = folder / "ckpt.pt", 0
    if resume and ckpt.exists():
        state = torch.load(ckpt, weights_only=True)
        first = state["step"]
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
    began = time.monotonic()
    for step in range(first, steps):
        set_learning_rates(optimizers, step, steps)
        loss, log = loss_at(step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % 20 == 0:
            pace = (time.monotonic() - began) / (done - first)
            print(f"step {done}/{steps} loss {loss.item():.4f} {log} {pace:.2f} s/step, "
                  f"{clock(pace * (steps - done))} left", flush=True)
        if done % every == 0 or done == steps:
            state = {"step": done, "model": model.state_dict(),
                     "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
            with replacing(ckpt) as f:
                torch.save(state, f)
            yield done


# ---------------------------------------------------------------------------- GPT-2

def gpt2_batch(rng, enc, rows=24, length=80):
    """Token ids (rows, length + 1): each row starts with a text and goes on with others."""
    batch = []
    for _ in range(rows):
        ids = [enc.eot_token]
        while len(ids) <= length:
            ids += [*enc.encode_ordinary(discourse(scene_for(rng), rng)), enc.eot_token]
        batch.append(ids[:length + 1])
    return torch.tensor(batch)


@torch.no_grad()
def narrow_gpt2(vocab_size):
    """A GPT-2 of 4 layers, 128 wide, with first weights that suit its width."""
    model = GPT2(GPT2Config(vocab_size, n_positions=128, n_layer=4, n_head=4, n_embd=128))
    # A narrow model needs larger first weights than GPT-2's 0.02: about 1 / sqrt(width). With 0.02
    # it sat for 1,300 steps on the plateau of a model without memory; with 0.08 for 300.
    for p in model.parameters():
        p.mul_(0.08 / 0.02 if p.dim() == 2 else 1)
    # Sinusoids to begin with: neighbouring positions are alike, so looking back is learnt sooner.
    model.wpe.weight.copy_(0.08 * sinusoids(128, octaves=8, n=64))
    return model


def sinusoids(length, octaves, n):
    """(length, 2 n): sines, then cosines of n frequencies from 1 down to 1 / 2 ** octaves."""
    angles = torch.arange(length)[:, None] * 0.5 ** torch.linspace(0, octaves, n)
    return torch.cat([angles.sin(), angles.cos()], 1)


def make_optimizers(model, blocks):
    """blocks: {name: matrix} of the model's layers."""
    # Under AdamW the states get dominated by a few directions, and what was said of the first Thing
    # varies in directions that hardly show: an attention trained on top does not find them.
    others = [p for k, p in model.named_parameters() if k not in blocks]
    return [muon(blocks.values(), lr=3e-3),
            torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)]


def pretrain_gpt2(config, folder, steps):
    # The space belongs to the word behind it; texts are plain ASCII, so a simple pattern will do.
    texts = corpus(4000, config.seed) + 10 * EXTRA
    split = re.compile(r" ?[a-z]+| ?[^\sa-z]+").findall
    gpt2_vocabulary(folder, (word for text in texts for word in split(text)), most=2000)
    enc = get_tokenizer(folder)
    torch.manual_seed(config.seed)
    model = narrow_gpt2(enc.n_vocab)

    def loss_at(step, name="train"):
        idx = gpt2_batch(random.Random(f"gpt2 {name} {config.seed} {step}"), enc)
        return F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten()), ""

    optimizers = make_optimizers(model, plms.blocks(model))
    for step in fit(model, optimizers, loss_at, steps, folder, config.resume):
        with torch.no_grad():
            print(f"  fresh scenes: loss {loss_at(step, 'fresh')[0].item():.4f}", flush=True)
        save_gpt2(model, folder, provenance(config, step))


# ---------------------------------------------------------------------------- LLaMA, BERT, T5

def pretrain_plm(kind, config, folder, steps):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = plms.tiny(kind, folder, corpus(4000, config.seed) + 10 * EXTRA)
    if kind == "bert":  # as GPT-2's: neighbouring positions are alike
        positions = model.embeddings["position_embeddings"].weight
        positions.data.copy_(0.08 * sinusoids(len(positions), octaves=8, n=positions.shape[1] // 2))

    def loss_at(step, name="train"):
        rng = random.Random(f"{kind} {name} {config.seed} {step}")
        return plms.loss(kind, model, rng, lambda rng: discourse(scene_for(rng), rng)), ""

    optimizers = make_optimizers(model, plms.blocks(model))
    for step in fit(model, optimizers, loss_at, steps, folder, config.resume):
        with torch.no_grad():
            print(f"  fresh scenes: loss {loss_at(step, 'fresh')[0].item():.4f}", flush=True)
        plms.save(kind, model, folder, provenance(config, step))


# ---------------------------------------------------------------------------- CLIP

def contrast(a, b, fits, scale):
    """Cross-entropy of each row of a choosing among all rows of b; several may fit. Cosine logits.

    a (n, E), b (m, E), fits (n, m) -> the loss and the share of rows whose first choice fits. A row
    that nothing fits has no loss.
    """
    logits = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).t()
    keep = fits.any(1)
    target = fits.float() / fits.float().sum(1, keepdim=True).clamp(min=1)
    hit = fits.gather(1, logits.argmax(1, keepdim=True)).float().mean()
    return -(target * logits.log_softmax(1)).sum(1)[keep].mean(), hit.item()


def clip_loss(vit, text, batch):
    """The loss of pictures and captions plus that of regions and phrases, and a text on both.

    The towers run in bfloat16, 1.7 times as fast on one core as float32; attention as plain matrix
    products, since the fused one is slow to go back through in bfloat16. Cosines are float32.
    """
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        feats = vit(batch.images)
        pictures = vit.ln_post(feats[:len(batch.captions), 0]) @ vit.proj
        regions = vit.ln_post((batch.patches @ feats[:, 1:])[batch.real]) @ vit.proj
        captions, phrases = text.encode_text(batch.captions), text.encode_text(batch.phrases)
    pictures, regions, captions, phrases = (
        x.float() for x in (pictures, regions, captions, phrases))
    scale = text.logit_scale.clamp(max=math.log(100)).exp()
    t2i, hit = contrast(captions, pictures, batch.fits, scale)
    i2t, _ = contrast(pictures, captions, batch.fits.t(), scale)
    region, hit_region = contrast(regions, phrases, batch.true, scale)
    log = f"picture for text {hit:.3f}, phrase for region {hit_region:.3f}"
    return (t2i + i2t) / 2 + region, log


@torch.no_grad()
def add_sinusoids(vit):
    """Adds those of the row and the column to the first position embeddings of the patches.

    With random positions the patch tokens never learnt to tell well where they are: a linear probe
    for the place missed by 12 of the 64 pixels, with these by 3.
    """
    grid = vit.image_size // vit.patch
    wave = sinusoids(grid, octaves=4, n=vit.width // 4)  # (grid, D/2)
    rows, columns = wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)
    vit.positional_embedding[1:] += 0.5 * torch.cat([rows, columns], 2).flatten(0, 1)


def pretrain_clip(config, folder, steps):
    torch.manual_seed(config.seed)
    texts = corpus(4000, config.seed) + 10 * EXTRA
    words = (word for text in texts for word in pretokenize(text))
    vocab, _ = clip_vocabulary(folder, words, most=2000)
    tokenize = get_clip_tokenizer(folder)
    vit = CLIPViT(world.SIDE, patch=8, width=128, layers=4, heads=4, embed_dim=128)
    text = CLIPText(77, len(vocab), width=128, layers=2, heads=4, embed_dim=128)
    add_sinusoids(vit)

    def loss_at(step, name="train"):
        rng = random.Random(f"clip {name} {config.seed} {step}")
        batch = clip_batch(rng, tokenize, vit.patch, relations=step >= RELATIONS)
        return clip_loss(vit, text, batch)

    towers = nn.ModuleList([vit, text])
    # Muon for the blocks here, too: by step 140 it was ahead of AdamW alone.
    named = dict(towers.named_parameters())
    blocks = {k: p for k, p in named.items() if "resblocks" in k and p.dim() == 2}
    others = [p for k, p in named.items() if k not in blocks]
    optimizers = [muon(blocks.values(), lr=2e-3),
                  torch.optim.AdamW([{"params": [p for p in others if p.dim() >= 2],
                                      "weight_decay": 0.1},
                                     {"params": [p for p in others if p.dim() < 2],
                                      "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.98))]
    for step in fit(towers, optimizers, loss_at, steps, folder, config.resume):
        with torch.no_grad():
            print(f"  fresh scenes: {loss_at(step, 'fresh')[1]}", flush=True)
        save_clip(vit, text, folder, provenance(config, step))


def main(config):
    torch.set_num_threads(config.threads)
    known = {"gpt2": (pretrain_gpt2, 1200), "clip": (pretrain_clip, 5000),
             **{kind: (partial(pretrain_plm, kind), 1200) for kind in ("llama", "bert", "t5")}}
    if not config.which or not known.keys() >= {*config.which}:
        raise UserError(f"say what to pre-train: {', '.join(known)}")
    for name in config.which:
        pretrain, steps = known[name]
        pretrain(config, Path(config.out or HERE / f"tiny-{name}"), config.steps or steps)


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
