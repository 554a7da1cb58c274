"""Trains a method between a frozen CLIP ViT and a frozen GPT-2: one config, one plain loop.

    python train.py                                   the shapes world, minutes on a laptop's CPU
    python train.py --dataset coco                    captions (python data/coco/prepare.py first)
    python train.py --dataset shapes/vqa --search     questions; first finds the prompt's layer
    python train.py --dataset path/to/folder          photos of your own (data/folder/prepare.py)
    python train.py --dataset coco --init_from out/vg    begin with what another run trained
    python train.py --resume                          go on with the newest run, exactly
    torchrun --standalone --nproc_per_node=8 train.py --dataset coco

  recipe ---> Run (device, dtype, folder) ---> data ---> frozen models ---> method ---> loop
                log.jsonl, best.safetensors, last.safetensors, resume.pt, loss.png <-----+

Settings: the defaults below, one recipe, the command line. Many defaults are those of SmallCap
(Ramos et al. 2023, code: RitaRamo/smallcap).

Next: sample.py
"""

from lib.cli import UserError, opt, time_left  # isort: skip (lib before torch)
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from clip_vit import CLIPViT
from data.batches import Batches, answer_accuracy, count_targets, load_entries
from data.features import cached_features
from data.recipes import PRESETS, RECIPES
from data.shapes import prepare
from data.shapes.exact import report_exact
from data.tasks import find_dataset
from lib import cli, curves
from lib.devices import (Processes, autocast, check_dtype, compile_model, peak_memory, pick_dtype,
                         to_device)
from lib.files import repo_path
from lib.optim import check_reached, make_optimizer, schedule
from lib.runs import (Log, check_finite, grad_scaler, loop, print_parameters, put_back, save_resume,
                      say_done, show_validation, writing_alone)
from lib.settings import check, check_data, count_steps, differing, find_method, read_command
from model import SeeGPT, training_step
from plm import load_lm
from weights.checkpoints import begin_with, checkpoint_file
from weights.reading import fingerprint, read


@dataclass
class Config:
    dataset: str = opt("shapes", "shapes, coco, ..., or a folder with train.jsonl")
    method: str = opt("ituning", "ituning, vanilla, vcgpt, prefix, dvp, or mymethod of mymethod.py")
    lm: str = opt("gpt2", "frozen language model: public name, file or folder", alias="gpt2")
    clip: str = opt("ViT-B/16", "frozen image transformer: public name, file or folder")
    train_lm: bool = opt(False, "train the language model too")
    train_vision: bool = opt(False, "train the ViT too")
    preset: str = opt("", "sizes and recipe of a paper in place of the dataset's: ituning-base, "
                          "-medium, -large, vanilla, vcgpt, vcgpt-tuned, clipcap, clipcap-tuned")
    init_from: str = opt("", "begin with what that run trained (its folder or checkpoint file): "
                             "its method and backbones, not its dataset, become the defaults")
    search: bool = opt(False, "dvp: first find the prompt's layer (KAB-APP), then train anew")
    search_epochs: float = opt(2.0, "passes over the images in the search (DVP 2)")
    out: str = opt("", "the run's folder; empty: a new one, out/DATASET-METHOD")
    resume: bool = opt(False, "go on with the run in --out, or the newest one, with its settings")
    steps: int = opt(0, "optimiser steps; 0: as many as --epochs makes")
    epochs: float = opt(10.0, "passes over the images (SmallCap, ClipCap: 10)")
    batch: int = opt(13, "images a step, over all processes (SmallCap: 64 captions, here 13 x 5)")
    rows: int = opt(5, "captions per image and step; they share its keys and values")
    accumulate: int = opt(1, "micro-steps per step: less memory, the same gradient")
    max_tokens: int = opt(40, "longest caption in tokens, the rest is cut (ours; SmallCap 25)")
    lr: float = opt(1e-4, "peak learning rate of the method (SmallCap 1e-4)")
    backbone_lr: float = opt(1e-5, "of the LM and the ViT with --train_lm, --train_vision (ours)")
    warmup: int = opt(1000, "steps of linear warm-up, at most a fifth of all (ours)")
    weight_decay: float = opt(0.0, "of AdamW, on matrices only (SmallCap 0)")
    beta2: float = opt(0.999, "of AdamW (SmallCap 0.999)")
    grad_clip: float = opt(1.0, "largest norm of the gradient (SmallCap 1)")
    eval_every: int = opt(1000, "steps between validations; each also saves")
    eval_images: int = opt(500, "validation images")
    log_every: int = opt(20, "steps between log lines")
    score: int = opt(0, "test images to caption and score at the end (needs exact scenes)")
    cache: bool = opt(False, "keep the frozen ViT's features in a file beside the dataset, fp16")
    workers: int = opt(4, "processes that read and preprocess images; 0: none")
    seed: int = opt(1337, "of the method's weights and the order of the images")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    dtype: str = opt("auto", "precision of the forward pass",
                     choices=("auto", "float32", "bfloat16", "float16"))
    compile: bool = opt(None, "torch.compile; default: on CUDA, where it works")


class Run:
    """What a run works with: its settings, where it computes, its data, the frozen models."""

    def __init__(self, config, method_config, resume=None):
        check(config)
        self.began = time.time()
        self.config, self.method_config, self.resume = config, method_config, resume
        self.out, self.processes = Path(config.out), Processes(config.device)
        self.device = self.processes.device
        check_dtype(config.dtype, self.device)
        self.workers = 0 if config.cache else config.workers  # cached features are read by none
        self.method = find_method(config.method)

    def load_data(self):
        """Reads train and val; draws the shapes world if it is asked for and not there."""
        name, _, task = self.config.dataset.partition("/")
        drawn = (prepare.HERE / task / "meta.json").exists()
        if self.processes.main and name == "shapes" and task in ("", *prepare.TASKS) and not drawn:
            print("drawing the shapes world")
            prepare.prepare(task or "caption", prepare.HERE / task)
        self.processes.barrier()
        self.folder = find_dataset(self.config.dataset)
        self.entries, self.facts = load_entries(self.folder, self.config.eval_images)
        check_data(self)
        self.method.fit_dataset(self.method_config, self.facts, self.config)

    def load_models(self):
        """The frozen models and, with --cache, their features of all images."""
        config, self.feats = self.config, {}
        with self.processes.main_first():  # a download happens once
            self.vit = CLIPViT.from_pretrained(repo_path(config.clip))
            self.lm = load_lm(repo_path(config.lm), self.method)
            self.lm.tokenizer  # asked for now: a missing one should not end a run later
        self.hashes = {"lm": fingerprint(self.lm), "clip": fingerprint(self.vit)}
        self.vit, self.lm = self.vit.to(self.device), self.lm.to(self.device)
        self.dtype, why = pick_dtype(config.dtype, self.device, self.lm.config.n_embd)
        self.autocast = autocast(self.device, self.dtype)
        self.processes.say(f"computing in {str(self.dtype)[6:]}: {why}")
        for split, entries in self.entries.items() if config.cache else ():
            self.feats[split] = cached_features(self.vit, entries, self.folder, split,
                                                self.processes)

    def build(self, method_config):
        """The model before its first step."""
        config = self.config
        torch.manual_seed(config.seed)
        method = self.method(method_config, self.lm, self.vit)
        model = SeeGPT(self.vit, self.lm, method, config.train_lm, config.train_vision)
        model.run_info = {"method": config.method, "config": asdict(method_config),
                          "dataset": config.dataset, "task": self.facts["task"],
                          "train": asdict(config),
                          "train_lm": config.train_lm, "train_vision": config.train_vision,
                          **{name: {"name": getattr(config, name), "sha256": self.hashes[name]}
                             for name in self.hashes}}
        model = model.to(self.device).train()
        if config.init_from and not self.resume:
            begin_with(model, config.init_from)
        return model.cast_frozen(self.dtype) if self.dtype != torch.float32 else model

    def batches(self, split, method):
        """The batches of a split (data/batches.py); in training each process has its share."""
        return Batches(self.entries[split], self.lm.tokenizer, self.config, self.vit.image_size,
                       self.feats.get(split), self.processes if split == "train" else None,
                       method.answers, method.soft_answers, self.lm.room)


@torch.no_grad()
def validate(model, batches, run):
    """Mean loss per target on the validation images, and the blind loss: of the same texts with the
    images of other items. If they are equal, the model does not look at the image at all,
    however good its captions sound. accuracy: of a method that chooses among answers.
    """
    model.eval()
    sums, counts = Counter(), Counter()
    n = len(batches.entries)  # in parts of two or more: one image would be its own "other"
    for part in np.array_split(np.arange(n), max(1, min(-(-n // run.config.batch), n // 2))):
        for micro in batches.collate([(int(j), np.random.default_rng((0, int(j)))) for j in part]):
            images, *texts = to_device(micro, run.device)
            count = int(count_targets(texts[1]))
            with run.autocast:
                feats = model.image_features(images)
                logits, loss = model(feats, *texts)
                found = {"val_loss": loss.item()}
                if feats is not None and len(feats) > 1:  # without an image it is always blind
                    found["blind_loss"] = model(feats.roll(1, 0), *texts)[1].item()
            if model.method.answers:
                found["accuracy"] = answer_accuracy(logits, texts[1])
            for name, value in found.items():
                sums[name] += value * count
                counts[name] += count
    model.train()
    return {name: sums[name] / max(1, counts[name]) for name in sums}


# ---------------------------------------------------------------------------- the loop

def train(model, run):
    """Step after step: now and then a log line, now and then validation and saving."""
    config, processes, say = run.config, run.processes, run.processes.say
    data = {split: run.batches(split, model.method) for split in run.entries}
    optimizer, scaler = make_optimizer(model.trained(), config, run.device), grad_scaler(run)
    steps, first, best = count_steps(run), 0, float("inf")
    if run.resume:
        first, best = put_back(run.resume, model, optimizer, scaler, best=best)
        say(f"resuming after step {first}")
    compiled = compile_model(model, config.compile, run.device, say)
    say(f"{len(data['train'].entries):,} images, {steps:,} steps of {config.batch} images with "
        f"{config.rows} texts; saved every {config.eval_every:,} steps and at the end")
    log, left = Log(run.out / "log.jsonl", first, processes), time_left(first, steps)

    def save(step, due):
        nonlocal best
        check_finite(model, step)
        with log.paused():
            if due:
                line = log.write(step, **validate(model, data["val"], run))
                show_validation(model, data["val"], run, f"step {step:,}/{steps:,}", line)
                if line["val_loss"] < best:
                    best = line["val_loss"]
                    model.save(run.out / "best.safetensors", step=step, val_loss=best)
            model.save(run.out / "last.safetensors", step=step)
            save_resume(run.out / "resume.pt", step, model, optimizer, scaler, run, best=best)

    for step, batch in loop(run, data["train"], first, steps, save):
        schedule(optimizer, step, config.warmup, steps)
        loss, count, norm = training_step(compiled, batch, optimizer, config.grad_clip, scaler,
                                          run.autocast, processes)  # forward, backward, step
        if step == first and not run.facts["has_blind_items"]:
            check_reached(model, optimizer)
        log.count(loss, count, batch)
        if (step + 1) % config.log_every == 0 or step + 1 == steps:
            line = log.write_counted(step + 1, lr=optimizer.param_groups[0]["lr"],
                                     grad_norm=norm.item())
            say(f"step {step + 1:,}/{steps:,}  loss {line['loss']:.4f}  {left(step + 1)} left  "
                f"{cli.rate(line['captions_per_s'])} captions/s  "
                f"{cli.rate(line['images_per_s'])} images/s  lr {line['lr']:.2e}", renew=True)
    if processes.main:
        finish(model, run, log, steps)


def finish(model, run, log, steps):
    """The best checkpoint's exact scenes, if asked for, the curve, and what to do next."""
    memory = log.write(steps, peak_memory=peak_memory(run.device))["peak_memory"]
    curves.draw_losses(run.out / "log.jsonl", run.out / "loss.png")
    model.restore(read(checkpoint_file(run.out)), run.out)  # the best one
    if run.config.score:
        with run.autocast:
            report_exact(model.eval(), run.folder, run.device, run.config.score)
    say_done(run, memory)


def main(config, method_config, recipe, resume):
    run = Run(config, method_config, resume)
    say = run.processes.say
    say(f"run {run.out} on {run.device}")
    say(f"recipe {recipe}; not at its default: {differing(config, method_config)}")
    run.load_data()
    with writing_alone(run.out, run.processes, resume):
        run.load_models()
        if config.search and not (resume and "best" in resume):  # resume.pt has it, search.pt not
            run.method_config = run.method.search(method_config, run)
            run.resume = None
            if config.train_lm or config.train_vision:
                run.load_models()  # the search has tuned them
        model = run.build(run.method_config)
        if not model.trained():
            raise UserError("these settings leave nothing to train")
        print_parameters(model, say)
        train(model, run)


if __name__ == "__main__":
    cli.run(lambda: main(*read_command(Config, RECIPES, PRESETS)))
