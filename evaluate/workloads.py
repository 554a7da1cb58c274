"""What evaluate.speed measures: pieces of work with random weights, each in a process of its own.

A piece is a function that does the work once; what it needs is made before. It returns losses or
token ids: the proof that two pieces are the same computation. Images are noise, captions random
ids, 8 to 24 tokens long and 11.5 on average, about as those of COCO.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clip_vit import CLIPViT
from data.batches import Batches
from gpt2 import GPT2
from lib.devices import autocast
from lib.optim import make_optimizer
from lib.runs import load_batches
from lib.settings import find_method
from model import SeeGPT, training_step
from weights.safetensors import write

K, STEPS, NEW = 5, 2, 30  # captions an image, steps in a piece, tokens of a caption made


@dataclass(frozen=True)
class Work:
    """One line of the table."""
    source: str = "images"  # in memory; "features", made before; "files", JPEGs to decode
    images: int = 8  # a step or a batch
    beam: int = 0  # of the captions that are made; 0: training

    @property
    def count(self):  # captions or images in a piece
        return self.images if self.beam else STEPS * self.images * K


WORKS = {"train": Work(), "train-features": Work("features"), "train-files": Work("files"),
         **{f"{name}-{n}": Work(images=n, beam=beam) for name, beam in (("greedy", 1), ("beam5", 5))
            for n in (1, 8, 64)}}


@dataclass(frozen=True)
class Task:
    """What a process is asked to do."""
    folder: str  # where make_models has written the models
    work: str
    method: str  # or the name of a peer
    dtype: str
    device: torch.device
    compile: bool


class Numbers:
    """A tokenizer of texts such as "12 7": no vocabulary must be fetched."""

    def __init__(self, n):
        self.n_vocab, self.eot_token = n, n - 1

    def encode_ordinary(self, text):
        return [*map(int, text.split())]

    def decode(self, ids):
        return " ".join(map(str, ids))


def make_models(folder, lm, vit):
    """Random models as files, in the public layouts; returns the whole model that a peer copies.
    The captions that they make never end before NEW tokens."""
    with torch.no_grad():
        lm.wte.weight[-1] = 0  # or else what is read, first of all the end, would be said again
    theirs = {name: p.t() if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else p
              for name, p in lm.state_dict().items()}
    write(Path(folder) / "lm.safetensors", {n: p.contiguous() for n, p in theirs.items()},
          {"n_head": str(lm.config.n_head)})
    heads = vit.transformer.resblocks[0].attn.heads
    write(Path(folder) / "clip.safetensors",
          {f"visual.{n}": p for n, p in vit.state_dict().items()}, {"vision_heads": str(heads)})
    rng = np.random.default_rng(0)
    for i in range(16):  # COCO's size, and about its 160 kB
        small = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((640, 480), Image.BICUBIC)
        image.save(Path(folder) / f"{i}.jpg", quality=88)
    return build(folder, "vanilla")


def build(folder, method):
    """The model with a method, whose weights are random but the same every time."""
    lm = GPT2.from_pretrained(Path(folder) / "lm.safetensors")
    vit = CLIPViT.from_pretrained(Path(folder) / "clip.safetensors")
    lm.tokenizer = Numbers(lm.config.vocab_size)
    torch.manual_seed(0)
    cls = find_method(method)
    model = SeeGPT(vit, lm, cls(cls.Config(), lm, vit))
    model.run_info = {"task": "captions"}
    return model


def caption_batches(task, model):
    """The Batches of train.py, over files of noise with captions of random ids."""
    rng, V, entries = np.random.default_rng(1), model.lm.config.vocab_size, []
    for i in range(4 * WORKS[task.work].images):
        lengths = rng.normal(11.3, 2.5, K).round().clip(8, 24).astype(int)
        texts = [("", {" ".join(map(str, rng.integers(V - 1, size=n))): 1}) for n in lengths]
        entries.append({"image": Path(task.folder) / f"{i % 16}.jpg", "texts": texts})
    config = SimpleNamespace(batch=WORKS[task.work].images, rows=K, max_tokens=40, accumulate=1,
                             seed=0)
    return Batches(entries, model.lm.tokenizer, config, model.vit.image_size)


def steps_of(task, model):
    """A function that gives the batches of STEPS steps: always the same ones, but of files, which
    two processes read on and on, as in train.py."""
    work, batches = WORKS[task.work], caption_batches(task, model)
    if work.source == "files":
        ahead = load_batches(batches, 0, 10**6, 2, task.device)
        return lambda: [next(ahead)[1] for _ in range(STEPS)]
    kept = [batches.read(i) for i in range(STEPS)]
    if work.source == "features":  # 16-bit numbers in the file, float32 in a batch, as in train.py
        with torch.no_grad():
            kept = [[micro._replace(images=model.vit(micro.images.to(task.device)).half().float())
                     for micro in batch] for batch in kept]
    return lambda: kept


def pixels_of(task, model):
    """The images (B, 3, H, W) that are captioned."""
    size, n = model.vit.image_size, WORKS[task.work].images
    rng = np.random.default_rng(2)
    return torch.from_numpy(rng.standard_normal((n, 3, size, size), np.float32)).to(task.device)


def our_piece(task):
    """The piece of work for seeGPT itself: run(new=NEW, compiled=True) -> its proof."""
    work, dtype = WORKS[task.work], getattr(torch, task.dtype)
    model = build(task.folder, task.method).to(task.device).train(not work.beam)
    context = autocast(task.device, dtype)
    if work.beam:
        pixels = pixels_of(task, model)
    else:
        steps, net = steps_of(task, model), torch.compile(model) if task.compile else model
        optimizer = make_optimizer(model.trained(), SimpleNamespace(
            lr=1e-4, backbone_lr=1e-5, weight_decay=0, beta2=0.999), task.device)
        scaler = torch.amp.GradScaler(task.device.type, enabled=dtype == torch.float16)
    if dtype != torch.float32:
        model.cast_frozen(dtype)

    def captions(new=NEW, compiled=True):
        with context:
            texts = model.generate(pixels, beam=work.beam, max_new_tokens=new, with_ids=True)
        return [ids for _, ids in texts]

    def training(new=NEW, compiled=True):
        done = [training_step(net if compiled else model, batch, optimizer, 1.0, scaler, context)
                for batch in steps()]
        return [(summed / count).item() for summed, count, _ in done]

    return (captions if work.beam else training), model


def cost_of(piece, model, work):
    """(FLOP before or without the writing of captions, FLOP a further token, bytes a further token
    must read: the language model's weights, by far the most of it)."""
    def flop(new):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            piece(new, compiled=False)  # pitfall: torch counts no fused attention on a CPU
        return counter.get_total_flops()

    first = flop(1)
    if not work.beam:
        return first, 0, 0
    bytes_ = sum(p.numel() * p.element_size() for p in model.lm.parameters())
    return first, flop(2) - first, bytes_
