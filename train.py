"""Trains a method between a frozen CLIP ViT and a frozen GPT-2: one config, one plain loop.

    python train.py                                      the shapes world, minutes on a laptop's CPU
    python train.py --dataset coco                       COCO captions (python data/coco/prepare.py first)
    python train.py --dataset path/to/folder             your own: train.jsonl, val.jsonl (see README)
    python train.py --dataset coco --init_from out/vg    a second stage: begin with what another run trained
    python train.py --resume                             go on with the newest run, exactly
    torchrun --standalone --nproc_per_node=8 train.py --dataset coco

A run is a folder: best.safetensors and last.safetensors (what was trained, nothing frozen),
resume.pt (optimiser and position), log.jsonl, loss.png. Ctrl-C saves before it stops.

Next: sample.py
"""

import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

import draw
import evaluate
from cli import UserError, opt, parse, run
from clip_vit import CLIPViT, open_image, preprocess
from data.common import find_dataset, load_split, progress
from data.shapes import prepare
from gpt2 import GPT2
from model import SeeGPT, checkpoint_file, find_method, fingerprint, here, origin_of
from weights import read


@dataclass
class Config:
    dataset: str = opt("shapes", "shapes, coco, ..., or a folder with train.jsonl")
    method: str = opt("ituning", "ituning, vanilla, vcgpt, prefix, or your own file's name: mymethod for mymethod.py")
    gpt2: str = opt("gpt2", "frozen language model: public name, file or folder")
    clip: str = opt("ViT-B/16", "frozen image transformer: public name, file or folder")
    train_lm: bool = opt(False, "train GPT-2 too")
    train_vision: bool = opt(False, "train the ViT too")
    preset: str = opt("", "ituning-base, -medium, -large (14, 44, 95 million trained: I-Tuning's sizes); vanilla, vcgpt (all "
                          "frozen), vcgpt-tuned (nothing frozen): sizes as in VC-GPT's baseline and figure; clipcap, "
                          "clipcap-tuned: sizes and recipe of ClipCap's code. The others' recipes are not known")
    init_from: str = opt("", "begin with what that run trained (a run's folder or checkpoint file), as in two-stage training: "
                             "its method and backbones become the defaults")
    out: str = opt("", "the run's folder; empty: a new one, out/DATASET-METHOD")
    resume: bool = opt(False, "go on with the run in --out, or the newest one, with its settings")
    steps: int = opt(0, "optimiser steps; 0: as many as --epochs makes")
    epochs: float = opt(10.0, "passes over the images (SmallCap, ClipCap: 10)")
    batch: int = opt(13, "images per step, over all processes and micro-steps (SmallCap: 64 captions, here 13 x 5)")
    rows: int = opt(5, "captions per image and step; they share its keys and values")
    accumulate: int = opt(1, "micro-steps per step: less memory, the same gradient")
    max_tokens: int = opt(40, "longest caption in tokens, the rest is cut (ours; SmallCap 25)")
    lr: float = opt(1e-4, "peak learning rate of the method (SmallCap 1e-4)")
    backbone_lr: float = opt(1e-5, "peak learning rate of GPT-2 and the ViT with --train_lm, --train_vision (ours)")
    warmup: int = opt(1000, "steps of linear warm-up, at most a fifth of all (ours)")
    weight_decay: float = opt(0.0, "of AdamW, on matrices only (SmallCap 0)")
    beta2: float = opt(0.999, "of AdamW (SmallCap 0.999)")
    grad_clip: float = opt(1.0, "largest norm of the gradient (SmallCap 1)")
    eval_every: int = opt(1000, "steps between validations; each also saves")
    eval_images: int = opt(500, "validation images")
    log_every: int = opt(20, "steps between log lines")
    score: int = opt(0, "at the end, score greedy captions of so many test images (needs exact scenes)")
    cache: bool = opt(False, "keep the frozen ViT's features in a file beside the dataset, fp16")
    workers: int = opt(4, "processes that read and preprocess images; 0: none")
    seed: int = opt(1337, "of the method's weights and the order of the images")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    dtype: str = opt("auto", "precision of the forward pass", choices=("auto", "float32", "bfloat16", "float16"))
    compile: bool = opt(None, "torch.compile; default: on CUDA only")


# Settings of a dataset, of a method on it, and named ones for --preset; what is not named keeps its default.
PRESETS = {
    "shapes": dict(gpt2="data/shapes/tiny-gpt2", clip="data/shapes/tiny-clip", width_ratio=1.0, heads=16,
                   epochs=7.0, batch=24, rows=3, lr=4e-3, warmup=50, beta2=0.99, eval_every=500,
                   eval_images=200, score=1000, cache=True, workers=0),
    "ituning-base": dict(method="ituning", gpt2="gpt2", width_ratio=0.5),
    "ituning-medium": dict(method="ituning", gpt2="gpt2-medium", width_ratio=0.5),
    "ituning-large": dict(method="ituning", gpt2="gpt2-large", width_ratio=0.5),
    "vanilla": dict(method="vanilla"),
    "vcgpt": dict(method="vcgpt", n_fusion=6),
    # The sources disagree on what VC-GPT froze: this is the other reading of the paper.
    "vcgpt-tuned": dict(method="vcgpt", n_fusion=6, train_lm=True, train_vision=True, backbone_lr=1e-5),
    # differs: ClipCap pairs every caption with its image anew, 40 a step; here five share theirs.
    "clipcap": dict(method="prefix", clip="ViT-B/32", mapper="transformer", mapper_layers=8, prefix_length=10,
                    batch=8, rows=5, lr=2e-5, warmup=5000),
    "clipcap-tuned": dict(method="prefix", clip="ViT-B/32", mapper="mlp", prefix_length=10, train_lm=True,
                          batch=8, rows=5, lr=2e-5, backbone_lr=2e-5, warmup=5000),
}
DATASETS = ("shapes",)  # the presets that --dataset chooses, not --preset


# ---------------------------------------------------------------------------- where it runs

def pick_device(name):
    """"auto" is the best there is. UserError for a device that this machine or torch build lacks."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(d for d in there if there[d]))
    if not there.get(name.split(":")[0], False):
        raise UserError(f"--device {name}: not available here; {', '.join(d for d in there if there[d])} or auto")
    return torch.device(name)


def pick_dtype(name, device):
    """The dtype of the forward pass and the reason for it. Trained weights are float32 in any case."""
    if name != "auto":
        return getattr(torch, name), "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU computes in it, and it needs no loss scaling"
        return torch.float16, "this GPU has no bfloat16; the loss is scaled to keep small gradients"
    return torch.float32, "the reference; on a CPU or MPS the others are seldom faster"


class World:
    """The processes that torchrun started, or this one alone."""

    def __init__(self):
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.main = self.rank == 0  # the one that prints, evaluates and saves
        if self.size > 1:
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    def sum(self, values, device):
        """Each of the numbers summed over all processes."""
        if self.size == 1:
            return values
        t = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(t)
        return t.tolist()

    def sum_gradients(self, params):
        """differs: no DistributedDataParallel. So little is trained that one plain sum does it."""
        if self.size > 1:
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat)
            for p, g in zip(params, flat.split([p.numel() for p in params])):
                p.grad = g.view_as(p)


# ---------------------------------------------------------------------------- data

class Batches(Dataset):
    """Batch number `step` as a function of the step alone: so a resumed run sees the same batches.

    Every epoch has its own order of the images and, per image, of its captions; of an image with
    more than `rows` captions the surplus comes up in other epochs. The split is a list of items.
    """

    def __init__(self, items, enc, config, image_size, feats=None, world=None):
        self.items, self.enc, self.config, self.size, self.feats = items, enc, config, image_size, feats
        self.rank, self.world = (world.rank, world.size) if world else (0, 1)

    def __getitem__(self, step):
        """The micro-batches of this process: list of (images or feats, idx, targets).

        A broken image is returned as its message: an exception would lose its type in a worker.
        """
        c, n = self.config, len(self.items)
        chosen = []
        for place in range(step * c.batch, (step + 1) * c.batch):
            epoch = place // n
            i = order(c.seed, epoch, n)[place % n]
            chosen.append((i, np.random.default_rng((c.seed, 1, epoch, i))))
        chosen = chosen[self.rank::self.world]
        try:
            return [self.micro(chosen[m::c.accumulate]) for m in range(c.accumulate)]
        except UserError as e:
            return str(e)

    def micro(self, chosen):
        texts = [rng.permutation(self.items[i]["captions"])[:self.config.rows] for i, rng in chosen]
        return (self.images([i for i, _ in chosen]), *rows_of(texts, self.config.rows, self.enc, self.config.max_tokens))

    def images(self, indices):
        if self.feats is not None:
            return torch.from_numpy(self.feats[indices].astype(np.float32))
        return torch.stack([preprocess(open_image(self.items[i]["image"]), self.size) for i in indices])


@lru_cache(2)  # a batch may reach from one epoch into the next
def order(seed, epoch, n):
    """The permutation of n items in an epoch."""
    return np.random.default_rng((seed, 0, epoch)).permutation(n)


def rows_of(texts, k, enc, max_tokens):
    """Captions per image (list of lists of at most k) -> idx, targets (B * k, T).

    A row is EOT caption EOT: the model reads all but the last and is asked for all but the first.
    "a cat" -> idx [EOT, a, cat], targets [a, cat, EOT]. Inputs are padded with EOT, targets with -1.
    pitfall: EOT as a target must count, or the model never learns to stop; padding must not.
    An image with fewer captions than k gets filler rows without any target.
    """
    eot, rows = enc.eot_token, []
    for captions in texts:
        ids = [enc.encode_ordinary(str(text))[:max_tokens] for text in captions]
        rows += ids + [None] * (k - len(ids))
    T = 1 + max(len(r) for r in rows if r is not None)
    idx, targets = torch.full((len(rows), T), eot), torch.full((len(rows), T), -1)
    for r, ids in enumerate(rows):
        if ids is not None:
            idx[r, 1:len(ids) + 1] = torch.tensor(ids)
            targets[r, :len(ids) + 1] = torch.tensor(ids + [eot])
    return idx, targets


def cached_features(vit, items, folder, split, device, batch=64):
    """Feats (n, N, D) of a split, computed once into a memory-mapped fp16 file beside the dataset.

    The file's name carries a hash of the encoder's weights, the preprocessing and the list of
    images: with another encoder or other images it is simply not found. fp16 rounds by 5e-4 at most.
    """
    sha = hashlib.sha256(f"{fingerprint(vit)} crop {vit.image_size}".encode())
    for item in items:
        info = os.stat(item["image"]) if Path(item["image"]).exists() else None
        sha.update(f"{item['image']} {info and (info.st_size, info.st_mtime_ns)}".encode())
    path = Path(folder) / f"features-{split}-{sha.hexdigest()[:16]}.npy"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.part")
        N = 1 + (vit.image_size // vit.patch) ** 2
        out = np.lib.format.open_memmap(part, "w+", np.float16, (len(items), N, vit.width))
        show = progress(f"encoding {split}", len(items))
        try:
            for i in range(0, len(items), batch):
                images = [preprocess(open_image(x["image"]), vit.image_size) for x in items[i:i + batch]]
                with torch.no_grad():
                    out[i:i + len(images)] = vit(torch.stack(images).to(device)).half().cpu().numpy()
                show(i + len(images))
            out.flush()
            del out
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


# ---------------------------------------------------------------------------- pieces of the loop

def schedule(step, config, steps):
    """What part of the peak learning rate a step has: linear warm-up, then linearly down to 0 (as SmallCap)."""
    warmup = min(config.warmup, steps // 5)  # a short run on a small folder should not end in its warm-up
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / max(1, steps - warmup)


def groups_of(model, config):
    """The parameter groups of AdamW, each with its peak learning rate: the method, and the tuned backbones."""
    groups = []
    for lr, of_method in ((config.lr, True), (config.backbone_lr, False)):
        params = [p for n, p in model.trained().items() if n.startswith("method.") == of_method]
        for decay, kept in ((config.weight_decay, [p for p in params if p.dim() >= 2]),
                            (0.0, [p for p in params if p.dim() < 2])):
            groups += [{"params": kept, "peak": lr, "weight_decay": decay}] if kept else []
    return groups


def validate(model, batches, config, device, autocast):
    """Mean loss per target token on the validation images, and the blind loss: with images exchanged.

    The blind loss is the same texts with the images of other items. If it equals the first, the
    model does not look at the image at all, however good its captions sound.
    """
    model.eval()
    sums = {"val_loss": 0.0, "blind_loss": 0.0}
    count, n = 0, len(batches.items)
    for part in np.array_split(np.arange(n), -(-n // max(2, config.batch))):
        chosen = [(int(j), np.random.default_rng((0, int(j)))) for j in part]
        images, idx, targets = (x.to(device) for x in batches.micro(chosen))
        tokens = int((targets != -1).sum())
        count += tokens
        with torch.no_grad(), autocast:
            feats = model.see(images)
            sums["val_loss"] += model(feats, idx, targets)[1].item() * tokens
            sums["blind_loss"] += model(feats.roll(1, 0), idx, targets)[1].item() * tokens
    model.train()
    return {k: v / count for k, v in sums.items()}


def start_table(model):
    """Which part has how many parameters, and how many of them learn."""
    parts = {"image transformer": model.vit, "language model": model.gpt2, "method": model.method}
    for name, module in parts.items():
        total = sum(p.numel() for p in module.parameters())
        learn = sum(p.numel() for p in module.parameters() if p.requires_grad)
        print(f"  {name:18}{total:>14,} parameters{learn:>14,} trained{'' if learn else '   frozen'}")
    for name, part in model.method.named_children():
        if 0 < (inside := sum(p.numel() for p in part.parameters())) < total:
            print(f"    {name:16}{inside:>14,}")


def peak_memory(device):
    """The most that was held so far, in bytes: by tensors on CUDA, elsewhere by this whole process. None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held  # Linux counts in kilobytes


def folder_for(config):
    """The run's folder: as asked, or a new out/DATASET-METHOD, -2, -3, ...: no run overwrites another."""
    if config.out:
        return Path(config.out)
    base = Path("out") / f"{Path(config.dataset).name}-{config.method}"
    if config.resume:
        runs = sorted(Path("out").glob("*/resume.pt"), key=lambda p: p.stat().st_mtime)
        if not runs:
            raise UserError("--resume: there is no run in out/ yet; leave --resume away to start one")
        return runs[-1].parent
    n = 2
    out = base
    while out.exists():
        out, n = base.with_name(f"{base.name}-{n}"), n + 1
    return out


def begin_with(model, path):
    """Puts what another run trained into the model. UserError if that was on other frozen weights."""
    origin = origin_of(path)
    for name in ("gpt2", "clip"):
        if origin[name]["sha256"] != model.origin[name]["sha256"]:
            raise UserError(f"--init_from {path} was trained on other {name} weights ({origin[name]['name']}); "
                            f"give those with --{name}")
    for name in ("method", "config"):
        if origin[name] != model.origin[name]:
            raise UserError(f"--init_from {path} was trained with {name} {origin[name]}, this is {model.origin[name]}")
    path = checkpoint_file(path)
    model.restore(read(path), path)


def check(config):
    """UserError for a number that makes no sense."""
    for least, names in ((1, "batch rows accumulate max_tokens eval_every eval_images log_every"),
                         (0, "steps epochs warmup weight_decay beta2 lr backbone_lr score workers seed")):
        for name in names.split():
            if getattr(config, name) < least:
                raise UserError(f"--{name} {getattr(config, name)}: must be {least} or more")
    if config.beta2 >= 1 or config.grad_clip <= 0:
        raise UserError("--beta2 must be below 1 and --grad_clip above 0")


class Stop:
    """Ctrl-C and SIGTERM ask the loop to save and stop after this step; the second time it is at once."""

    def __init__(self):
        self.asked = False
        self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def over(self):
        for s, handler in self.before.items():
            signal.signal(s, handler)


def save_resume(path, step, model, optimizer, scaler, best, config, method_config):
    """Everything that the next step depends on, in one file that is either old or new, never half."""
    state = {"step": step, "best": best, "config": asdict(config), "method_config": asdict(method_config),
             "trained": {n: p.detach() for n, p in model.trained().items()}, "rng": torch.get_rng_state(),
             "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_resume(folder):
    """The state that save_resume wrote."""
    try:
        return torch.load(Path(folder) / "resume.pt", map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"--resume: {folder} has no resume.pt; it appears with the first validation") from None
    except Exception as e:  # a damaged pickle can raise almost anything
        raise UserError(f"{folder}/resume.pt is damaged ({type(e).__name__}); "
                        f"start anew, or use {folder}/last.safetensors with sample.py") from None


def open_log(path, step):
    """log.jsonl open for appending, cut back to the lines up to this step."""
    kept = []
    for line in path.read_text("utf-8").splitlines() if path.exists() and step else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            pass  # the last line of a killed run may be half a line
    path.write_text("".join(kept), "utf-8")
    return open(path, "a", buffering=1, encoding="utf-8")


# ---------------------------------------------------------------------------- the whole story

def main(config, method_config, resume=None):
    # ---- setup
    check(config)
    began = time.time()
    world = World()
    device = pick_device(config.device)
    if device.type == "cuda" and world.size > 1:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    dtype, why = pick_dtype(config.dtype, device)
    if dtype == torch.float16 and device.type != "cuda":
        raise UserError("--dtype float16 needs CUDA, where the loss is scaled; use float32 or bfloat16 here")
    if config.batch < config.accumulate * world.size:
        raise UserError(f"--batch {config.batch} cannot be split into {config.accumulate} micro-steps "
                        f"on {world.size} processes")
    say = print if world.main else lambda *a, **k: None
    out = Path(config.out)
    if (out / "resume.pt").exists() and not resume:
        raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out")
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    say(f"run {out} on {device}" + (f" x {world.size}" if world.size > 1 else "")
        + f", {str(dtype).removeprefix('torch.')}: {why}")

    # ---- data
    if world.main and config.dataset == "shapes" and not (prepare.HERE / "meta.json").exists():
        say("drawing the shapes world")
        prepare.prepare("caption", prepare.HERE)
    world.sum([0], device)  # the other processes wait
    folder = find_dataset(config.dataset)
    items = {split: load_split(folder, split) for split in ("train", "val")}
    for split in items:
        if "captions" not in items[split][0]:
            raise UserError(f"{folder}/{split}.jsonl has no captions; {config.method} is trained on captions")
    items["val"] = items["val"][:config.eval_images]

    # ---- model
    if not world.main:  # the main process goes first: what has to be downloaded is downloaded once
        world.sum([0], device)
    vit, gpt2 = CLIPViT.from_pretrained(here(config.clip)), GPT2.from_pretrained(here(config.gpt2))
    gpt2.tokenizer  # asked for now: a missing tokenizer should not end a run later
    if world.main:
        world.sum([0], device)
    torch.manual_seed(config.seed)
    cls, _ = find_method(config.method)
    model = SeeGPT(vit, gpt2, cls(method_config, gpt2, vit), config.train_lm, config.train_vision).to(device).train()
    model.origin = {"method": config.method, "config": asdict(method_config), "dataset": config.dataset,
                    "train_lm": config.train_lm, "train_vision": config.train_vision,
                    "gpt2": {"name": config.gpt2, "sha256": fingerprint(gpt2)},
                    "clip": {"name": config.clip, "sha256": fingerprint(vit)}, "train": asdict(config)}
    if config.init_from and not resume:
        begin_with(model, config.init_from)
    if world.main:
        start_table(model)
    feats = {}
    if config.cache and config.train_vision:
        raise UserError("--cache keeps features of a frozen ViT, but --train_vision changes it: leave it away, "
                        "or say --no-cache")
    for split in items if config.cache else ():
        if world.main:  # the others wait for the file
            cached_features(vit, items[split], folder, split, device)
        world.sum([0], device)
        feats[split] = cached_features(vit, items[split], folder, split, device)
    data = {split: Batches(items[split], gpt2.tokenizer, config, vit.image_size, feats.get(split),
                           world if split == "train" else None) for split in items}

    if dtype != torch.float32:
        model.hold(dtype)

    # ---- optimizer
    params = list(model.trained().values())
    optimizer = torch.optim.AdamW(groups_of(model, config), betas=(0.9, config.beta2), fused=device.type == "cuda")
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    steps = config.steps or round(config.epochs * len(items["train"]) / config.batch)
    if steps < 1:
        raise UserError(f"--epochs {config.epochs} is less than one step of {config.batch} images; ask for more")
    first, best = 0, float("inf")
    if resume:
        first, best = resume["step"], resume["best"]
        model.restore(resume["trained"], out / "resume.pt")
        optimizer.load_state_dict(resume["optimizer"])
        scaler.load_state_dict(resume["scaler"])
        torch.set_rng_state(resume["rng"])
        say(f"resuming after step {first}")
    net = model
    if config.compile or (config.compile is None and device.type == "cuda"):
        say("compiling: the first steps take a minute, the others are faster; --no-compile to leave it away")
        net = torch.compile(model)
    if world.main:
        out.mkdir(parents=True, exist_ok=True)
        log = open_log(out / "log.jsonl", first)
    say(f"{len(items['train']):,} images, {steps:,} steps of {config.batch} images with {config.rows} captions; "
        f"saved every {config.eval_every:,} steps and at the end")

    # ---- loop
    loader = DataLoader(data["train"], batch_size=None, sampler=range(first, steps), num_workers=0 if config.cache else min(config.workers, os.cpu_count() or 1),
                        pin_memory=device.type == "cuda", worker_init_fn=ignore_ctrl_c)
    stop = Stop()
    t0, since = time.time(), dict(loss=0.0, tokens=0, images=0, captions=0, t=time.time())
    for step, batch in zip(range(first, steps), loader):
        if isinstance(batch, str):
            raise UserError(batch)

        # one optimiser step: sum over micro-batches of (mean loss * tokens) / all tokens of all processes
        now = schedule(step, config, steps)
        for group in optimizer.param_groups:
            group["lr"] = now * group["peak"]
        tokens = sum(int((targets != -1).sum()) for _, _, targets in batch)
        total, stopping = world.sum([tokens, float(stop.asked)], device)
        for images, idx, targets in batch:
            images, idx, targets = (x.to(device, non_blocking=True) for x in (images, idx, targets))
            with autocast:
                loss = net(images, idx, targets)[1]
            n = (targets != -1).sum()
            scaler.scale(loss * n / total).backward()
            since["loss"] += loss.detach() * n
        world.sum_gradients(params)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(params, config.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        # one log line
        step += 1
        since["tokens"] += tokens
        since["images"] += sum(len(images) for images, _, _ in batch)
        since["captions"] += sum(int((targets[:, 0] != -1).sum()) for _, _, targets in batch)
        if step % config.log_every == 0 or step == steps:
            keys = ("loss", "tokens", "images", "captions")
            loss, tokens, images, captions = world.sum([float(since[k]) for k in keys], device)
            spent = time.time() - since["t"]
            left = (time.time() - t0) / (step - first) * (steps - step)
            line = {"step": step, "loss": loss / tokens, "lr": now * config.lr, "grad_norm": float(norm),
                    "images_per_s": images / spent, "captions_per_s": captions / spent}
            say(f"step {step}/{steps}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  {images / spent:.3g} images/s  "
                f"{captions / spent:.3g} captions/s  {clock(left)} left")
            if world.main:
                log.write(json.dumps(line) + "\n")
            since = dict(loss=0.0, tokens=0, images=0, captions=0, t=time.time())

        # every so often: validate, show three captions, save
        if world.main and (step % config.eval_every == 0 or step == steps or stopping):
            t = time.time()
            if not stopping:
                line = {"step": step, **validate(model, data["val"], config, device, autocast)}
                log.write(json.dumps(line) + "\n")
                say(f"step {step}/{steps}  val loss {line['val_loss']:.4f}  with other images {line['blind_loss']:.4f}"
                    + ("" if line["blind_loss"] > 1.01 * line["val_loss"] or len(items["val"]) == 1 else
                       "  WARNING: no better than with other images: the model does not look"))
                show_captions(model, data["val"], device, autocast)
                if line["val_loss"] < best:
                    best = line["val_loss"]
                    model.save(out / "best.safetensors", step=step, val_loss=best)
            model.save(out / "last.safetensors", step=step)
            save_resume(out / "resume.pt", step, model, optimizer, scaler, best, config, method_config)
            t0, since["t"] = t0 + time.time() - t, since["t"] + time.time() - t  # not part of a step's time
        if stopping:
            stop.over()
            say(f"stopped and saved after step {step}; go on with: python train.py --resume --out {out}")
            raise KeyboardInterrupt

    # ---- end
    stop.over()
    if world.main:
        memory = peak_memory(device)
        log.write(json.dumps({"step": steps, "peak_memory": memory}) + "\n")
        log.close()
        draw.curve(out / "log.jsonl", out / "loss.png")
        model.restore(read(out / "best.safetensors"), out / "best.safetensors")
        if config.score:
            with autocast:
                evaluate.report_exact(model.eval(), folder, device, config.score)
        held = f", {memory / 1e6:,.0f} MB at most" if memory else ""
        say(f"done in {clock(time.time() - began)}{held}. Next: python sample.py --ckpt {out} picture.jpg")
    if world.size > 1:
        world.sum([0], device)  # who leaves first would take the connection away while others still score
        dist.destroy_process_group()


def show_captions(model, batches, device, autocast, n=3):
    """Greedy captions of the first validation images, each beside one that a person wrote."""
    feats = batches.images(list(range(min(n, len(batches.items))))).to(device)
    model.eval()
    with autocast:
        texts = model.generate(feats, beam=1)
    model.train()
    for item, text in zip(batches.items, texts):
        print(f"    {text!r:60} for {item['captions'][0]!r}")


def clock(seconds):
    """75 -> "1:15"; 3700 -> "1:01:40"."""
    m, s = divmod(round(seconds), 60)
    h, m = divmod(m, 60)
    return f"{h}:{m:02}:{s:02}" if h else f"{m}:{s:02}"


def ignore_ctrl_c(worker):
    """A data worker lets the main process decide when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def command_line(argv=None):
    """(config, method_config, resume state or None) from flags, preset and the run to be resumed."""
    first, = parse(Config, argv=argv, peek=True)
    out, resume = folder_for(first), None
    named = [p for p in PRESETS if p.split()[0] not in DATASETS]
    if first.preset not in ("", *named):
        raise UserError(f"--preset {first.preset}: there are {', '.join(named)}")
    defaults = (PRESETS[first.preset] if first.preset else
                PRESETS.get(first.dataset, {}) | PRESETS.get(f"{first.dataset} {first.method}", {}))
    first, = parse(Config, argv=argv, defaults=defaults, peek=True)
    if first.resume:
        resume = load_resume(out)
        defaults = {**resume["config"], **resume["method_config"], "resume": True}
        first.method = resume["config"]["method"]
    elif first.init_from:
        origin = origin_of(first.init_from)
        kept = {"method": origin["method"], **{k: origin[k] for k in ("train_lm", "train_vision")},
                **{k: origin[k]["name"] for k in ("gpt2", "clip")}}
        defaults = {**defaults, **kept, **origin["config"]}
        first, = parse(Config, argv=argv, defaults=defaults, peek=True)
    _, method_config = find_method(first.method)
    config, method_config = parse(Config, method_config, argv=argv, defaults=defaults)
    config.out = str(out)
    return config, method_config, resume


if __name__ == "__main__":
    run(lambda: main(*command_line()))
