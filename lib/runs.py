"""A run is a folder: its name, its checkpoints, its log, resuming, Ctrl-C.

    out/shapes-ituning/   best.safetensors  last.safetensors    what was trained, nothing frozen
                          resume.pt         log.jsonl  loss.png
                          lock              held by the process that trains here
"""

import contextlib
import io
import json
import math
import re
import shlex
import signal
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from lib.cli import UserError, clock
from lib.devices import first_line
from lib.files import open_file, plain_errors, replacing, repo_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


def new_folder(dataset, method):
    """A new out/DATASET-METHOD, -2, -3, ...: no run overwrites another."""
    base = Path("out") / f"{Path(dataset).name}-{method}"
    out, n = base, 2
    while out.exists() and [p.name for p in out.glob("*")] != ["lock"]:  # an end before any work
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


def lock(file):
    """Locks an open file for this process, until it is closed or dies. OSError: another has it."""
    # pitfall: flock would be passed on to the processes that read images, which live on for some
    # seconds where the one that trains is killed.
    if fcntl:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


@contextlib.contextmanager
def writing_alone(folder, processes, resume=None):
    """While the block runs, no other run may write to the folder; at its end the processes part.
    UserError if another run does, or did since resume was read (None: nothing was there)."""
    with contextlib.ExitStack() as stack:
        if processes.main:
            with plain_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(folder / "lock", "a"))
            try:
                lock(file)
            except OSError:
                raise UserError(f"{folder}: another process is training here; wait for its end, "
                                "or choose another --out") from None
            if resume_file(folder)[1] != (resume and resume["written"]):
                raise UserError(f"{folder}: another process has just trained here; go on with "
                                "--resume, or choose another --out")
            for left in folder.glob("*.tmp"):  # by a run that was killed while it saved
                left.unlink(missing_ok=True)
        yield
        processes.leave()


# ---------------------------------------------------------------------------- resuming

def frozen_hashes(model):
    return {name: model.run_info[name]["sha256"] for name in ("lm", "clip")}


def data_bytes(run):
    """How long the lines to train on are: another number means that they have changed."""
    return (run.folder / "train.jsonl").stat().st_size


def save_resume(path, step, model, optimizer, scaler, run, **more):
    """Everything that the next step depends on, in a file that is either old or new, never half."""
    state = {"step": step, "config": asdict(run.config), "method_config": asdict(run.method_config),
             "trained": {n: p.detach() for n, p in model.trained().items()},
             "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
             "rng": torch.get_rng_state(), "frozen": frozen_hashes(model),
             "data_bytes": data_bytes(run), **more}
    if torch.cuda.is_initialized():  # dropout of a method draws on the GPU
        state["cuda_rng"] = torch.cuda.get_rng_state()
    with replacing(path) as f:
        try:
            torch.save(state, f)
        except RuntimeError as e:  # in it torch hides what the file said, such as: the disk is full
            raise e.__context__ if isinstance(e.__context__, OSError) else e


def damaged(path, error):
    """The UserError for a file to go on from that is not as it was written."""
    return UserError(f"{path} is damaged ({type(error).__name__}); start anew, or use "
                     f"{path.parent}/last.safetensors with sample.py")


def resume_file(folder):
    """(path, when it was written or None) of what save_resume wrote in training (resume.pt), or
    before that in a search (search.pt)."""
    files = [Path(folder) / name for name in ("resume.pt", "search.pt")]
    path = files[1] if files[1].exists() and not files[0].exists() else files[0]
    return path, path.stat().st_mtime_ns if path.exists() else None


def load_resume(folder):
    """What save_resume wrote, and its "path" and when it was "written"."""
    path, written = resume_file(folder)
    try:
        with open_file(path) as f:
            state = torch.load(f, map_location="cpu", weights_only=True)
        if type(state["step"]) is not int or state["step"] < 0:
            raise ValueError
        {**state["config"], **state["method_config"]}  # settings by their names
    except FileNotFoundError:
        raise UserError(f"--resume: {folder} has no resume.pt; it appears with the first "
                        "validation") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from None
    except Exception as e:  # a damaged pickle can raise almost anything
        raise damaged(path, e) from None
    if not {"lm", "method"} <= state["config"].keys():
        raise UserError(f"{path}: written by an earlier version of train.py; train it again")
    return {**state, "path": path, "written": written}


def put_back(state, model, optimizer, scaler, **more):
    """Parameters, optimiser, loss scale and dice as save_resume found them -> the step, and each of
    `more` as it was given to save_resume; here it says of which kind that has to be."""
    try:
        if state["frozen"] != frozen_hashes(model):
            raise UserError(f"{state['path']}: this run began on other frozen weights than lie "
                            "there now")
        model.restore(state["trained"], state["path"])
        # Rates and decay are settings; of the optimiser's own only its averages are put back.
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state["optimizer"]["state"]})
        for p, averages in optimizer.state.items():
            if averages.keys() != {"step", "exp_avg", "exp_avg_sq"} or averages["step"].dim() \
                    or not p.shape == averages["exp_avg"].shape == averages["exp_avg_sq"].shape:
                raise ValueError
        if scaler.is_enabled() and state["scaler"]:  # empty if the run was not in float16 then
            scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_initialized() and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"])
        for name, value in more.items():
            found = state[name]
            if type(found) is not type(value) or torch.is_tensor(value) and (
                    found.dtype != value.dtype or found.shape != value.shape):
                raise TypeError
    except UserError:
        raise
    except Exception as e:  # whatever stands where something else should
        raise damaged(state["path"], e) from None
    return [state[name] for name in ("step", *more)]


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
                # pitfall: what a buffer could not write to a full disk, it tries to write again.
                self.file = open(path, "ab", buffering=0)
        self.restart()

    @contextlib.contextmanager
    def paused(self):
        """What is done in the block is no part of a step's time."""
        began = time.time()
        yield
        self.since += time.time() - began

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
            raise diverged(f"the loss is {sums[0]} at step {step}")
        return self.write(step, loss=sums[0] / sums[1], **line, images_per_s=sums[2] / spent,
                          captions_per_s=sums[3] / spent)

    def write(self, step, **line):
        """Writes a line and gives it back."""
        if self.file:
            with plain_errors(self.file.name):
                self.file.write((json.dumps({"step": step, **line}) + "\n").encode())
        return line


def read_log(path):
    """The lines of a log.jsonl as dictionaries, without those that are none: the last line of a
    killed run may be half a line."""
    lines = []
    with plain_errors(path), open_file(path) if path.exists() else io.BytesIO() as f:
        text = f.read().decode(errors="replace")
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, OverflowError,
                                 RecursionError):
            line = json.loads(line)
            for value in line.values():
                math.isnan(0 if value is None else value)  # TypeError for what is no number
            lines += [line] if type(line["step"]) is int else []
    return lines


def diverged(what):
    """The UserError for numbers that nothing can be learnt from."""
    return UserError(f"{what}: start again with a lower --lr, or with --dtype float32 if it was "
                     "another; what was saved before is good")


def check_finite(model, step):
    """UserError for trained numbers that are none, before they are saved over good ones."""
    for name, p in model.trained().items():
        if not p.isfinite().all():
            raise diverged(f"{name} holds numbers that are not finite after step {step}")


def print_parameters(model, say):
    """Which part has how many parameters, and how many of them learn."""
    parts = {"image transformer": model.vit, "language model": model.lm, "method": model.method}
    for name, module in parts.items():
        total = sum(p.numel() for p in module.parameters())
        learn = sum(p.numel() for p in module.parameters() if p.requires_grad)
        say(f"  {name:18}{total:>14,} parameters{learn:>14,} trained"
              f"{'' if learn else '   frozen'}")
    for name, part in model.method.named_children():
        if 0 < (inside := sum(p.numel() for p in part.parameters())) < total:
            say(f"    {name:16}{inside:>14,}")


def show_validation(model, batches, run, label, line, n=3):
    """The losses, and greedy texts of the first validation images beside what a person wrote."""
    entries = batches.entries
    if not math.isfinite(line["val_loss"]):
        raise diverged(f"the validation loss is {line['val_loss']}")
    text = f"{label}  val loss {line['val_loss']:.4f}"
    if "blind_loss" in line:
        text += f"  with other images {line['blind_loss']:.4f}"
    if "accuracy" in line:
        text += f"  accuracy {100 * line['accuracy']:.1f} %"
    if len(entries) > 1 and line.get("blind_loss", math.inf) <= 1.01 * line["val_loss"]:
        text += "  WARNING: no better than with other images: the model does not look"
    run.processes.say(text)
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
        run.processes.say(f"    {text!r:60} for {max(answers, key=answers.get)!r}"
                          + (f", {condition!r}" if condition else ""))


def say_done(run, memory):
    """The time and the bytes of memory (None: unknown) that the run took, and what to do next."""
    held = f", {memory / 1e6:,.0f} MB at most" if memory else ""
    task, out = run.facts["task"], shlex.quote(str(run.out))
    question = "" if task == "captions" else f' --question "a {task}"'
    run.processes.say(f"done in {clock(time.time() - run.began)}{held}. Next: python sample.py "
                      f"--ckpt {out} picture.jpg{question}")


# ---------------------------------------------------------------------------- the loop's input

class Stop:
    """with Stop() as stop: Ctrl-C, SIGTERM and SIGHUP (the terminal is closed) only set stop.asked,
    so that the loop can save and stop after its step; some seconds later it is at once."""

    SIGNALS = [getattr(signal, s) for s in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, s)]

    def __enter__(self):
        self.asked = 0
        # nohup and the shell's & have some of them ignored, and so they stay.
        kept = [s for s in self.SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        self.before = {s: signal.signal(s, self.ask) for s in kept}
        return self

    def ask(self, number, frame):
        # torchrun passes on what the terminal has sent to all: two signals for one Ctrl-C.
        if self.asked and time.monotonic() - self.asked > 2:
            raise KeyboardInterrupt
        self.asked = self.asked or time.monotonic()

    def __exit__(self, *error):
        for s, handler in self.before.items():
            signal.signal(s, handler)


def ignore_ctrl_c(worker):
    """A data worker lets the main process decide when to stop."""
    for s in Stop.SIGNALS:
        signal.signal(s, signal.SIG_IGN)


def load_batches(data, first, steps, workers, device):
    """Yields (step, batch) for the steps first .. steps - 1, read ahead by so many processes. A
    batch that cannot be read is a message (data/batches.py), the last one."""
    loader = iter(DataLoader(data, batch_size=None, sampler=range(first, steps),
                             num_workers=workers, pin_memory=device.type == "cuda",
                             worker_init_fn=ignore_ctrl_c))
    if workers and hasattr(signal, "SIGCHLD"):
        # pitfall: torch's handler raises the death of a worker in the middle of a step.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for step in range(first, steps):
        try:
            batch = next(loader)
        except RuntimeError as e:
            if not re.search("DataLoader worker|Pin memory thread", str(e)):
                raise
            batch = ("a process that reads images has died, perhaps for lack of memory: try fewer "
                     f"--workers ({first_line(e)})")
        yield step, batch


def grad_scaler(run):
    """Keeps small gradients in float16 from vanishing; does nothing for other dtypes."""
    return torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)


def loop(run, data, first, steps, save):
    """Yields (step, batch) for the caller to train on. After that, when it is due, at the end, or
    when it cannot go on, the main process calls save(steps done, whether it was due).
    KeyboardInterrupt when a user wants to stop, UserError when a batch cannot be read."""
    saved, processes = first if run.resume else None, run.processes
    with Stop() as stop:
        for step, batch in load_batches(data, first, steps, run.workers, run.device):
            broken = isinstance(batch, str)
            if any(processes.sum([stop.asked or not processes.heard, broken])):
                if processes.main and step != saved:
                    save(step, False)
                how = f"saved after step {step}; go on with: python train.py --resume --out " \
                      f"{shlex.quote(str(run.out))}"
                processes.barrier()  # torchrun ends the others as soon as one has left
                if broken:
                    raise UserError(f"{batch}. Stopped and {how}")
                processes.say(f"stopped and {how}")
                raise KeyboardInterrupt
            yield step, batch
            if (step + 1) % run.config.eval_every == 0 or step + 1 == steps:
                saved = step + 1
                if processes.main:
                    save(saved, True)
