"""Trains a method between a frozen CLIP ViT and a frozen GPT-2: one config, one plain loop.

    python train.py                                      the shapes world, minutes on a laptop's CPU
    python train.py --dataset coco                       COCO captions (python data/coco/prepare.py first)
    python train.py --dataset shapes/vqa --method dvp --search    questions; first finds the layer for the prompt
    python train.py --dataset path/to/folder             your own: train.jsonl, val.jsonl (see README)
    python train.py --dataset coco --init_from out/vg    a second stage: begin with what another run trained
    python train.py --resume                             go on with the newest run, exactly
    torchrun --standalone --nproc_per_node=8 train.py --dataset coco

A run is a folder: best.safetensors and last.safetensors (what was trained, nothing frozen),
resume.pt (optimiser and position), log.jsonl, loss.png. Ctrl-C saves before it stops.

Next: sample.py
"""

import json
import os
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from clip_vit import CLIPViT
from data.batches import Batches, count_targets
from data.common import find_dataset, load_split
from data.features import cached_features
from data.shapes import prepare
from data.shapes.exact import report_exact
from data.tasks import answer_vocabulary, group_by_image, task_of
from gpt2 import GPT2
from lib import pictures
from lib.cli import clock, opt, parse, run, UserError
from lib.devices import peak_memory, pick_device, pick_dtype, Processes, to_device
from lib.files import repo_path, replacing
from lib.optim import parameter_groups, schedule
from lib.runs import Stop, run_folder, ignore_ctrl_c, load_resume, open_log, save_resume
from model import check_context, checkpoint_file, find_method, read_run_info, SeeGPT
from prompts import Bandit, reward, soft_accuracy
from weights.reading import fingerprint, read


@dataclass
class Config:
    dataset: str = opt("shapes", "shapes, coco, ..., or a folder with train.jsonl")
    method: str = opt("ituning", "ituning, vanilla, vcgpt, prefix, dvp, or your own file's name: mymethod for mymethod.py")
    gpt2: str = opt("gpt2", "frozen language model: public name, file or folder")
    clip: str = opt("ViT-B/16", "frozen image transformer: public name, file or folder")
    train_lm: bool = opt(False, "train GPT-2 too")
    train_vision: bool = opt(False, "train the ViT too")
    preset: str = opt("", "ituning-base, -medium, -large (14, 44, 95 million trained: I-Tuning's sizes); vanilla, vcgpt (all "
                          "frozen), vcgpt-tuned (nothing frozen): sizes as in VC-GPT's baseline and figure; clipcap, "
                          "clipcap-tuned: sizes and recipe of ClipCap's code. The others' recipes are not known")
    init_from: str = opt("", "begin with what that run trained (a run's folder or checkpoint file), as in two-stage training: "
                             "its method and backbones become the defaults")
    search: bool = opt(False, "dvp: first find the layer of the prompt (KAB-APP), then train anew with it")
    search_epochs: float = opt(2.0, "passes over the images in the search (DVP 2)")
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


# Settings of a dataset, and of a method on it; what is not named keeps its default.
SHAPES = dict(gpt2="data/shapes/tiny-gpt2", clip="data/shapes/tiny-clip", epochs=7.0, batch=24, rows=3, warmup=50,
              beta2=0.99, eval_every=500, eval_images=200, cache=True, workers=0)
DVP = dict(method="dvp", lr=5e-4, beta2=0.98, weight_decay=0.01)
SETTINGS = {
    "shapes": dict(SHAPES, lr=4e-3, width_ratio=1.0, heads=16, score=1000),
    "shapes/regions": dict(SHAPES, lr=4e-3, width_ratio=1.0, heads=16, rows=6),
    "shapes vanilla": dict(lr=2e-3),
    "shapes vcgpt": dict(lr=1e-3, n_fusion=2, heads=4),
    "shapes prefix": dict(lr=1e-3, tokens="all", mapper_layers=2, heads=4),
    "shapes/vqa": dict(SHAPES, method="dvp", readout="head", lr=2e-3, search_epochs=9.0),
    "shapes/entail": dict(SHAPES, method="dvp", readout="head", lr=2e-3),
    # DVP's recipe, at most 256 questions a step; a pass is over images, with at most so many (rows) of the questions on each.
    "vqa2": dict(DVP, readout="head", soft=True, batch=51, rows=5, epochs=10.0, warmup=2400),
    "gqa": dict(DVP, readout="head", batch=32, rows=8, epochs=16.0, warmup=3600, search_epochs=3.3),
    "snli_ve": dict(DVP, readout="head", batch=32, rows=8, epochs=11.0, warmup=2000, search_epochs=2.25),
    "scienceqa": dict(DVP, batch=32, rows=1, epochs=20.0, lr=1.25e-3, beta2=0.95, weight_decay=0.05, warmup=800, max_tokens=256),
}
# What --preset names; it takes the place of the dataset's own settings.
PRESETS = {
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


# ---------------------------------------------------------------------------- where it runs


# ---------------------------------------------------------------------------- data


# ---------------------------------------------------------------------------- pieces of the loop


def make_optimizer(model, config, device):
    """AdamW; the tuned backbones have a peak learning rate of their own."""
    own = {name: p for name, p in model.trained().items() if name.startswith("method.")}
    others = [p for name, p in model.trained().items() if name not in own]
    return torch.optim.AdamW(parameter_groups(own.values(), config.lr, config.weight_decay)
                             + parameter_groups(others, config.backbone_lr, config.weight_decay),
                             betas=(0.9, config.beta2), fused=device.type == "cuda")


def validate(model, batches, config, device, autocast):
    """Mean loss per target on the validation images, and the blind loss: with images exchanged.

    The blind loss is the same texts with the images of other items. If it equals the first, the
    model does not look at the image at all, however good its captions sound. accuracy: of a method that
    chooses among answers.
    """
    model.eval()
    sums = {"val_loss": 0.0, "blind_loss": 0.0} | ({"accuracy": 0.0} if model.method.answers else {})
    total, seen, n = 0, 0, len(batches.entries)
    for part in np.array_split(np.arange(n), -(-n // max(2, config.batch))):
        for batch in batches.micro([(int(j), np.random.default_rng((0, int(j)))) for j in part]):
            images, idx, targets, cond = to_device(batch, device)
            count = int(count_targets(targets))
            total += count
            with torch.no_grad(), autocast:
                feats = model.image_features(images)
                logits, loss = model(feats, idx, targets, cond)
            sums["val_loss"] += loss.item() * count
            if feats is not None:  # a question without an image is as blind as ever
                with torch.no_grad(), autocast:
                    sums["blind_loss"] += model(feats.roll(1, 0), idx, targets, cond)[1].item() * count
                seen += count
            if model.method.answers:
                sums["accuracy"] += soft_accuracy(logits, targets) * count
    model.train()
    return {k: v / max(1, seen if k == "blind_loss" else total) for k, v in sums.items()}


def start_table(model):
    """Which part has how many parameters, and how many of them learn."""
    parts = {"image transformer": model.vit, "language model": model.lm, "method": model.method}
    for name, module in parts.items():
        total = sum(p.numel() for p in module.parameters())
        learn = sum(p.numel() for p in module.parameters() if p.requires_grad)
        print(f"  {name:18}{total:>14,} parameters{learn:>14,} trained{'' if learn else '   frozen'}")
    for name, part in model.method.named_children():
        if 0 < (inside := sum(p.numel() for p in part.parameters())) < total:
            print(f"    {name:16}{inside:>14,}")


def begin_with(model, path):
    """Puts what another run trained into the model. UserError if that was on other frozen weights."""
    origin = read_run_info(path)
    for name in ("gpt2", "clip"):
        if origin[name]["sha256"] != model.run_info[name]["sha256"]:
            raise UserError(f"--init_from {path} was trained on other {name} weights ({origin[name]['name']}); "
                            f"give those with --{name}")
    if origin["method"] != model.run_info["method"]:
        raise UserError(f"--init_from {path} was trained with method {origin['method']}, this is {model.run_info['method']}")
    before, now = origin["config"], model.run_info["config"]
    if other := [k for k in now if before.get(k) != now[k]]:
        raise UserError(f"--init_from {path} was trained with other settings: "
                        + ", ".join(f"{k} {str(before.get(k))[:40]}, here {str(now[k])[:40]}" for k in other))
    path = checkpoint_file(path)
    model.restore(read(path), path)


def check(config, method_config, resume):
    """UserError for a number that makes no sense."""
    for least, names in ((1, "batch rows accumulate max_tokens eval_every eval_images log_every"),
                         (0, "steps epochs warmup weight_decay beta2 lr backbone_lr score workers seed")):
        for name in names.split():
            if getattr(config, name) < least:
                raise UserError(f"--{name} {getattr(config, name)}: must be {least} or more")
    searches = config.search and not (resume and "best" in resume)
    if searches and getattr(method_config, "visual", "") != "one":
        raise UserError("--search looks for the layer of dvp's one prompt token: --method dvp, --visual one")
    if searches and (config.init_from or method_config.insert_layer > 0):
        raise UserError("--search begins anew and finds the layer: leave --init_from and --insert_layer away")
    if searches and (config.search_epochs <= 0 or "WORLD_SIZE" in os.environ):
        raise UserError("--search needs --search_epochs above 0, and runs in one process, without torchrun")
    if getattr(method_config, "insert_layer", 0) < 0 and not config.search:
        raise UserError("--insert_layer -1 is for --search, which trains a cross-attention for every layer")
    if config.beta2 >= 1 or config.grad_clip <= 0:
        raise UserError("--beta2 must be below 1 and --grad_clip above 0")


# ---------------------------------------------------------------------------- the search for a layer

def find_layer(model, data, config, method_config, out, device, autocast, scaler, resume=None):
    """KAB-APP: the layer of GPT-2 where DVP's prompt helps most, by trial while a supernet learns.

    model: with a cross-attention for every layer. Each step trains one of them, drawn uniformly, and all
    else; then the bandit draws some by its policy, and each earns what it scores on a half batch of training
    images that were kept apart. Writes search.json and search.png into out; search.pt is for --resume.
    paper: a constant learning rate, no weight is inherited. differs: theirs is a fifth of the final one, ours
    is --lr; without dropout equal layers score alike, so each of the drawn ones runs once.
    """
    bandit, method = Bandit(len(model.lm.h)), model.method
    dice, history, first = torch.Generator().manual_seed(config.seed), {}, 0
    optimizer = make_optimizer(model, config, device)
    n = len(data.entries)
    steps, kept = round(config.search_epochs * n / config.batch), min(1000, max(config.batch // 2, n // 20))
    if kept >= n or steps < 1:
        raise UserError(f"--search with {n:,} images and --batch {config.batch}: too few for a single step")
    mixed = np.random.default_rng((config.seed, 2)).permutation(n)
    data, mini = data.part(mixed[kept:]), data.part(mixed[:kept], max(1, config.batch // 2))
    if resume:
        first, bandit.alpha, history = resume["step"], resume["alpha"], resume["history"]
        model.restore(resume["trained"], out / "search.pt")
        optimizer.load_state_dict(resume["optimizer"])
        scaler.load_state_dict(resume["scaler"])
        dice.set_state(resume["dice"])
    print(f"search for the layer: {steps:,} steps, rewarded on {kept:,} of the training images")

    def save():
        save_resume(out / "search.pt", step, model, optimizer, config, method_config, scaler=scaler.state_dict(),
                    alpha=bandit.alpha, history=history, dice=dice.get_state())

    out.mkdir(parents=True, exist_ok=True)
    stop, t0 = Stop(), time.time()
    loader = DataLoader(data, batch_size=None, sampler=range(first, steps), num_workers=workers(config),
                        worker_init_fn=ignore_ctrl_c)
    for step, batch in zip(range(first, steps), loader):
        if isinstance(batch, str):
            raise UserError(batch)
        method.K = int(torch.randint(len(bandit.alpha), (), generator=dice))
        total, lost = sum(int(count_targets(targets)) for _, _, targets, _ in batch), 0.0
        for micro in batch:
            images, idx, targets, cond = to_device(micro, device)
            with autocast:
                loss = model(images, idx, targets, cond)[1] * count_targets(targets) / total
            scaler.scale(loss).backward()
            lost += loss.item()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(list(model.trained().values()), config.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)  # None, so that AdamW leaves the layers not drawn as they are

        layers, earned = bandit.draw(dice), {}
        model.eval()
        held = mini[step]
        if isinstance(held, str):
            raise UserError(held)
        with torch.no_grad(), autocast:
            held = [to_device(micro, device) for micro in held]
            held = [(model.image_features(images), *texts) for images, *texts in held]  # once for all layers
            for method.K in layers.unique().tolist():  # the layer where the prompt comes in now
                sums = [(reward(method, *model(feats, idx, targets, cond), targets), int(count_targets(targets)))
                        for feats, idx, targets, cond in held]
                earned[method.K] = sum(r * n for r, n in sums) / sum(n for _, n in sums)
        model.train()
        bandit.update(layers, torch.tensor([earned[l] for l in layers.tolist()], dtype=torch.float64))

        step += 1
        if step % max(1, steps // 200) == 0 or step == steps:
            history[step] = bandit.policy().tolist()
        if step % config.log_every == 0 or step == steps:
            left = (time.time() - t0) / (step - first) * (steps - step)
            print(f"search {step}/{steps}  loss {lost:.4f}  policy "
                  + " ".join(f"{p:.3f}" for p in bandit.policy()) + f"  {clock(left)} left")
        stopping = stop.asked  # asked once: a Ctrl-C between saving and stopping must not lose a step
        if step % config.eval_every == 0 or step == steps or stopping:
            save()
        if stopping:
            stop.over()
            print(f"stopped and saved after step {step} of the search; go on with: python train.py --resume --out {out}")
            raise KeyboardInterrupt
    stop.over()
    best = bandit.best()
    with replacing(out / "search.json") as f:
        f.write(json.dumps({"layer": best[0], "ties": best, "policy": bandit.policy().tolist(), "steps": steps,
                            "history": history}, indent=1).encode() + b"\n")
    shades = pictures.colours(np.linspace(0, 0.85, len(bandit.alpha))) / 255
    pictures.plot([(f"layer {l}", {s: p[l] for s, p in history.items()}, dict(color=shade, lw=1.8))
               for l, shade in enumerate(shades)], out / "search.png", "step of the search", "policy", out / "search.json")
    print(f"search: layer {best[0]}" + (f"; it ties with {best[1:]}" if len(best) > 1 else "") + f" ({out / 'search.png'})")
    return best[0]


def workers(config):
    """How many processes prepare batches; cached features need none."""
    return 0 if config.cache else min(config.workers, os.cpu_count() or 1)


# ---------------------------------------------------------------------------- the whole story

def main(config, method_config, resume=None):
    # ---- setup
    check(config, method_config, resume)
    began = time.time()
    world = Processes()
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
    if ((out / "resume.pt").exists() or (out / "search.pt").exists()) and not resume:
        raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out")
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    say(f"run {out} on {device}" + (f" x {world.size}" if world.size > 1 else "")
        + f", {str(dtype).removeprefix('torch.')}: {why}")

    # ---- data
    shapes, _, part = config.dataset.partition("/")
    if world.main and shapes == "shapes" and part in ("", *prepare.TASKS) and not (prepare.HERE / part / "meta.json").exists():
        say("drawing the shapes world")
        prepare.prepare(part or "caption", prepare.HERE / part)
    world.sum([0], device)  # the other processes wait
    folder = find_dataset(config.dataset)
    items = {split: load_split(folder, split) for split in ("train", "val")}
    if "expression" in items["train"][0]:
        raise UserError(f"{folder}/train.jsonl holds referring expressions; what is trained here needs captions, questions or "
                        "hypotheses")
    if config.score and "scene" not in items["train"][0]:
        raise UserError("--score counts exact scenes, which only the captions of the shapes world have: leave it away")
    head = getattr(method_config, "readout", "") == "head"
    if head and any("choices" in item for item in items["train"]):
        raise UserError("--readout head cannot choose letters with explanations: the answers to questions with choices are "
                        "written")
    task, entries = task_of(items["train"][0]), {split: group_by_image(items[split]) for split in items}
    del items  # hundreds of thousands of questions take a gigabyte
    cls, _ = find_method(config.method)
    for split in entries:
        if entries[split][-1]["image"] is None:
            if cls.needs_image:
                raise UserError(f"{folder}/{split}.jsonl has items without an image, which {config.method} cannot read; dvp can")
            if getattr(method_config, "adapter", 1) == 0 and not config.train_lm and not head:
                raise UserError("--adapter 0 learns nothing from items without an image, and this dataset has some")
    if entries["val"][-1]["image"] is None:  # those without an image come last: a part of both
        entries["val"] = entries["val"][::-(-len(entries["val"]) // config.eval_images)]
    entries["val"] = entries["val"][:config.eval_images]
    if head:
        method_config.answers = method_config.answers or answer_vocabulary(folder, entries["train"])
        known = set(method_config.answers)
        if len(known) > 1 and not any(known & set(answers) for entry in entries["train"] for _, answers in entry["texts"]):
            raise UserError(f"none of the answers in {folder}/train.jsonl is among the {len(known):,} to choose from")

    # ---- model
    if not world.main:  # the main process goes first: what has to be downloaded is downloaded once
        world.sum([0], device)
    vit, gpt2 = CLIPViT.from_pretrained(repo_path(config.clip)), GPT2.from_pretrained(repo_path(config.gpt2))
    gpt2.tokenizer  # asked for now: a missing tokenizer should not end a run later
    if world.main:
        world.sum([0], device)
    check_context(gpt2, (asked for split in entries for entry in entries[split] for asked, _ in entry["texts"]),
              0 if head else config.max_tokens)
    hashes = {"gpt2": fingerprint(gpt2), "clip": fingerprint(vit)}
    vit, gpt2, feats = vit.to(device), gpt2.to(device), {}
    if config.cache and config.train_vision:
        raise UserError("--cache keeps features of a frozen ViT, but --train_vision changes it: leave it away, "
                        "or say --no-cache")
    for split in entries if config.cache else ():
        if world.main:  # the others wait for the file
            cached_features(vit, entries[split], folder, split, device)
        world.sum([0], device)
        feats[split] = cached_features(vit, entries[split], folder, split, device)

    def fresh():
        """The model before its first step."""
        torch.manual_seed(config.seed)
        method = cls(method_config, gpt2, vit)
        model = SeeGPT(vit, gpt2, method, config.train_lm, config.train_vision).to(device).train()
        model.run_info = {"method": config.method, "config": asdict(method_config), "dataset": config.dataset,
                        "task": task, "train_lm": config.train_lm, "train_vision": config.train_vision,
                        **{name: {"name": getattr(config, name), "sha256": hashes[name]} for name in hashes},
                        "train": asdict(config)}
        if config.init_from and not resume:
            begin_with(model, config.init_from)
        return model.cast_frozen(dtype) if dtype != torch.float32 else model

    data = {split: Batches(entries[split], gpt2.tokenizer, config, vit.image_size, feats.get(split),
                           world if split == "train" else None, getattr(method_config, "answers", ()),
                           getattr(method_config, "soft", False)) for split in entries}
    if config.search and not (resume and "best" in resume):
        method_config.insert_layer = -1
        loaded = deepcopy((vit.state_dict(), gpt2.state_dict()))  # the search may tune them; the retraining begins anew
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        method_config.insert_layer = find_layer(fresh(), data["train"], config, method_config, out, device, autocast, scaler,
                                                resume)
        resume = None
        vit.load_state_dict(loaded[0])
        gpt2.load_state_dict(loaded[1])
        del loaded
    model = fresh()
    if not model.trained():
        raise UserError("these settings leave nothing to train")
    if world.main:
        start_table(model)

    # ---- optimizer
    params = list(model.trained().values())
    optimizer = make_optimizer(model, config, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    steps = config.steps or round(config.epochs * len(entries["train"]) / config.batch)
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
    say(f"{len(entries['train']):,} images, {steps:,} steps of {config.batch} images with {config.rows} texts; "
        f"saved every {config.eval_every:,} steps and at the end")

    # ---- loop
    loader = DataLoader(data["train"], batch_size=None, sampler=range(first, steps), num_workers=workers(config),
                        pin_memory=device.type == "cuda", worker_init_fn=ignore_ctrl_c)
    stop = Stop()
    t0, since = time.time(), dict(loss=0.0, tokens=0, images=0, captions=0, t=time.time())
    for step, batch in zip(range(first, steps), loader):
        if isinstance(batch, str):
            raise UserError(batch)

        # one optimiser step: sum over micro-batches of (mean loss * tokens) / all tokens of all processes
        schedule(optimizer, step, config.warmup, steps)
        tokens = sum(int(count_targets(targets)) for _, _, targets, _ in batch)
        total, stopping = world.sum([tokens, float(stop.asked)], device)
        for micro in batch:
            images, idx, targets, cond = to_device(micro, device)
            with autocast:
                loss = net(images, idx, targets, cond)[1]
            n = count_targets(targets)
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
        since["images"] += sum(0 if images is None else len(images) for images, *_ in batch)
        since["captions"] += sum(int((targets != -1).any(1).sum()) for _, _, targets, _ in batch)
        if step % config.log_every == 0 or step == steps:
            keys = ("loss", "tokens", "images", "captions")
            loss, tokens, images, captions = world.sum([float(since[k]) for k in keys], device)
            spent = time.time() - since["t"]
            left = (time.time() - t0) / (step - first) * (steps - step)
            line = {"step": step, "loss": loss / tokens, "lr": optimizer.param_groups[0]["lr"], "grad_norm": float(norm),
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
                right = f"  accuracy {100 * line['accuracy']:.1f} %" if "accuracy" in line else ""
                say(f"step {step}/{steps}  val loss {line['val_loss']:.4f}  with other images {line['blind_loss']:.4f}{right}"
                    + ("" if line["blind_loss"] > 1.01 * line["val_loss"] or len(entries["val"]) == 1 else
                       "  WARNING: no better than with other images: the model does not look"))
                show_captions(model, data["val"], device, autocast)
                if line["val_loss"] < best:
                    best = line["val_loss"]
                    model.save(out / "best.safetensors", step=step, val_loss=best)
            model.save(out / "last.safetensors", step=step)
            save_resume(out / "resume.pt", step, model, optimizer, config, method_config, best=best, scaler=scaler.state_dict())
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
        pictures.curve(out / "log.jsonl", out / "loss.png")
        model.restore(read(out / "best.safetensors"), out / "best.safetensors")
        if config.score:
            with autocast:
                report_exact(model.eval(), folder, device, config.score)
        held = f", {memory / 1e6:,.0f} MB at most" if memory else ""
        asked = "" if task == "captions" else f' --question "a {task}"'
        say(f"done in {clock(time.time() - began)}{held}. Next: python sample.py --ckpt {out} picture.jpg{asked}")
    if world.size > 1:
        world.sum([0], device)  # who leaves first would take the connection away while others still score
        time.sleep(1)  # pitfall: gloo aborts a process whose peer hangs up while it still reads the last answer
        dist.destroy_process_group()


def show_captions(model, batches, device, autocast, n=3):
    """Greedy texts of the first validation images, each beside what a person wrote."""
    shown = [entry for entry in batches.entries if entry["image"] is not None][:n]
    asked = [entry["texts"][0] for entry in shown]
    if not shown:
        return
    feats = batches.images(list(range(len(shown)))).to(device)
    model.eval()
    with autocast:
        if model.method.answers:
            texts = [best[0][0] for best in model.choose(feats, [text for text, _ in asked])]
        else:
            texts = model.generate(feats, [text for text, _ in asked], beam=1)
    model.train()
    for (question, answers), text in zip(asked, texts):
        print(f"    {text!r:60} for {max(answers, key=answers.get)!r}" + (f", {question!r}" if question else ""))


def command_line(argv=None):
    """(config, method_config, resume state or None) from flags, preset and the run to be resumed."""
    first, = parse(Config, argv=argv, peek=True)
    if first.preset not in ("", *PRESETS):
        raise UserError(f"--preset {first.preset}: there are {', '.join(PRESETS)}")
    resume, defaults = None, PRESETS[first.preset] if first.preset else SETTINGS.get(first.dataset, {})
    first, = parse(Config, argv=argv, defaults=defaults, peek=True)
    if not first.preset:
        defaults = defaults | SETTINGS.get(f"{first.dataset} {first.method}", {})
    if first.resume:
        out = run_folder(first)
        resume = load_resume(out)
        defaults = {**resume["config"], **resume["method_config"], "resume": True}
        first.method = resume["config"]["method"]
    elif first.init_from:
        origin = read_run_info(first.init_from)
        kept = {"method": origin["method"], **{k: origin[k] for k in ("train_lm", "train_vision")},
                **{k: origin[k]["name"] for k in ("gpt2", "clip")}}
        defaults = {**defaults, **kept, **origin["config"]}
        first, = parse(Config, argv=argv, defaults=defaults, peek=True)
    _, method_config = find_method(first.method)
    config, method_config = parse(Config, method_config, argv=argv, defaults=defaults)
    for name in ("dataset", "method", "seed") if resume else ():
        if getattr(config, name) != (before := resume["config"][name]):
            raise UserError(f"--resume goes on with {out}, where --{name} is {before}; name another run with --out")
    config.out = str(out if resume else run_folder(config))
    return config, method_config, resume


if __name__ == "__main__":
    run(lambda: main(*command_line()))
