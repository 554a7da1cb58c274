"""A run is a folder: its name, its checkpoints, its log, resuming, Ctrl-C.

    out/shapes-ituning/   best.safetensors  last.safetensors    what was trained, nothing frozen
                          resume.pt         log.jsonl  loss.png
"""

import json
import math
import signal
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from lib.cli import UserError
from lib.files import plain_errors, replacing, repo_path


def new_folder(dataset, method):
    """A new out/DATASET-METHOD, -2, -3, ...: no run overwrites another."""
    base = Path("out") / f"{Path(dataset).name}-{method}"
    out, n = base, 2
    while out.exists():
        out, n = base.with_name(f"{base.name}-{n}"), n + 1
    return out


def newest(*names):
    """The folder in out/ in which a file of one of these names was written last, or None."""
    found = [p for name in names for p in Path(repo_path("out")).glob(f"*/{name}")]
    return max(found, key=lambda p: p.stat().st_mtime).parent if found else None


def newest_run():
    """The run in out/ that was saved last. UserError if there is none."""
    if found := newest("best.safetensors", "last.safetensors"):
        return found
    raise UserError("there is no checkpoint in out/ yet: run python train.py first, or name one "
                    "with --ckpt")


# ---------------------------------------------------------------------------- resuming

def frozen_hashes(model):
    return {name: model.run_info[name]["sha256"] for name in ("lm", "clip")}


def save_resume(path, step, model, optimizer, scaler, run, **more):
    """Everything that the next step depends on, in a file that is either old or new, never half."""
    state = {"step": step, "config": asdict(run.config), "method_config": asdict(run.method_config),
             "trained": {n: p.detach() for n, p in model.trained().items()},
             "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
             "rng": torch.get_rng_state(), "frozen": frozen_hashes(model), **more}
    with replacing(path) as f:
        torch.save(state, f)


def load_resume(folder):
    """What save_resume wrote in training (resume.pt), or before that in a search (search.pt)."""
    files = [Path(folder) / name for name in ("resume.pt", "search.pt")]
    path = files[1] if files[1].exists() and not files[0].exists() else files[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["step"], state["config"], state["method_config"]
    except FileNotFoundError:
        raise UserError(f"--resume: {folder} has no resume.pt; it appears with the first "
                        "validation") from None
    except Exception as e:  # a damaged pickle can raise almost anything
        raise UserError(f"{path} is damaged ({type(e).__name__}); start anew, or use {folder}/"
                        "last.safetensors with sample.py") from None
    if "lm" not in state["config"]:
        raise UserError(f"{path}: written by an earlier version of train.py; train it again")
    return state


def put_back(state, model, optimizer, scaler, path):
    """Parameters, optimiser, loss scale and dice as save_resume found them."""
    if state["frozen"] != frozen_hashes(model):
        raise UserError(f"{path}: this run began on other frozen weights than lie there now")
    model.restore(state["trained"], path)
    optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:  # empty if the run was not in float16 then
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"])


class Log:
    """log.jsonl: one line every so often, with the loss and the speed since the last one."""

    def __init__(self, path, step, processes):
        """Cut back to the lines up to this step, and opened for more by the main process."""
        self.processes, self.file = processes, None
        if processes.main:
            with plain_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                kept = [line for line in read_log(path) if line["step"] <= step] if step else []
                path.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
                self.file = open(path, "a", buffering=1, encoding="utf-8")
        self.restart()

    def restart(self):
        self.sums, self.since = Counter(), time.time()

    def count(self, loss, targets, batch):
        """What a step did: its summed loss, its targets, its images and captions."""
        self.sums["loss"] += loss
        self.sums["targets"] += targets
        for micro in batch:
            self.sums["images"] += 0 if micro.images is None else len(micro.images)
            self.sums["captions"] += int((micro.targets != -1).any(1).sum())

    def write_counted(self, step, **line):
        """As write, with the loss and the speed since the last time, over all processes."""
        names = ("loss", "targets", "images", "captions")
        sums = self.processes.sum([float(self.sums[name]) for name in names])
        spent = time.time() - self.since
        self.restart()
        if not math.isfinite(sums[0]):
            raise UserError(f"the loss is {sums[0]} at step {step}: lower --lr, or take float32; "
                            "what was saved before is good")
        return self.write(step, loss=sums[0] / sums[1], **line, images_per_s=sums[2] / spent,
                          captions_per_s=sums[3] / spent)

    def write(self, step, **line):
        """Writes a line and gives it back."""
        if self.file:
            self.file.write(json.dumps({"step": step, **line}) + "\n")
        return line


def read_log(path):
    """The lines of a log.jsonl as dictionaries."""
    lines = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            pass  # the last line of a killed run may be half a line
    return lines


def print_parameters(model):
    """Which part has how many parameters, and how many of them learn."""
    parts = {"image transformer": model.vit, "language model": model.lm, "method": model.method}
    for name, module in parts.items():
        total = sum(p.numel() for p in module.parameters())
        learn = sum(p.numel() for p in module.parameters() if p.requires_grad)
        print(f"  {name:18}{total:>14,} parameters{learn:>14,} trained"
              f"{'' if learn else '   frozen'}")
    for name, part in model.method.named_children():
        if 0 < (inside := sum(p.numel() for p in part.parameters())) < total:
            print(f"    {name:16}{inside:>14,}")


def show_validation(model, batches, run, label, line, n=3):
    """The losses, and greedy texts of the first validation images beside what a person wrote."""
    entries = batches.entries
    if not math.isfinite(line["val_loss"]):
        raise UserError(f"validation loss {line['val_loss']}: lower --lr, or --dtype float32")
    text = f"{label}  val loss {line['val_loss']:.4f}"
    if "blind_loss" in line:
        text += f"  with other images {line['blind_loss']:.4f}"
    if "accuracy" in line:
        text += f"  accuracy {100 * line['accuracy']:.1f} %"
    if len(entries) > 1 and line.get("blind_loss", math.inf) <= 1.01 * line["val_loss"]:
        text += "  WARNING: no better than with other images: the model does not look"
    print(text)
    shown = [i for i in range(len(entries)) if entries[i]["image"] is not None][:n]
    if not shown:
        return
    pairs = [entries[i]["texts"][0] for i in shown]
    feats, conditions = batches.load_images(shown).to(run.device), [text for text, _ in pairs]
    model.eval()
    with run.autocast:
        texts = ([best[0][0] for best in model.choose(feats, conditions)] if model.method.answers
                 else model.generate(feats, conditions, 1, min(30, run.config.max_tokens)))
    model.train()
    for (condition, answers), text in zip(pairs, texts):
        print(f"    {text!r:60} for {max(answers, key=answers.get)!r}"
              + (f", {condition!r}" if condition else ""))


# ---------------------------------------------------------------------------- the loop's input

class Stop:
    """with Stop() as stop: Ctrl-C and SIGTERM only set stop.asked, so that the loop can save and
    stop after its step; the second time it is at once."""

    def __enter__(self):
        self.asked = False
        self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error):
        for s, handler in self.before.items():
            signal.signal(s, handler)


def ignore_ctrl_c(worker):
    """A data worker lets the main process decide when to stop."""
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)


def load_batches(data, first, steps, workers, device):
    """Yields (step, batch) for the steps first .. steps - 1, read ahead by so many processes.
    UserError where the batch is the message of a broken image (data/batches.py)."""
    loader = DataLoader(data, batch_size=None, sampler=range(first, steps), num_workers=workers,
                        pin_memory=device.type == "cuda", worker_init_fn=ignore_ctrl_c)
    for step, batch in zip(range(first, steps), loader):
        if isinstance(batch, str):
            raise UserError(batch)
        yield step, batch


def loop(run, data, first, steps, save):
    """Yields (step, batch) for the caller to train on. After that, when it is due, at the end, or
    when a user wants to stop, the main process calls save(steps done, whether it was due)."""
    with Stop() as stop:
        for step, batch in load_batches(data, first, steps, run.workers, run.device):
            yield step, batch
            step, stopping = step + 1, any(run.processes.sum([stop.asked]))
            due = step % run.config.eval_every == 0 or step == steps
            if run.processes.main and (due or stopping):
                save(step, due)
            if stopping and step < steps:
                run.processes.say(f"stopped and saved after step {step}; go on with: python "
                                  f"train.py --resume --out {run.out}")
                run.processes.barrier()  # torchrun ends the others as soon as one has left
                raise KeyboardInterrupt
