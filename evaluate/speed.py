"""How fast is training and captioning here, beside the limit of this machine and beside a peer?

    python -m evaluate.speed                           I-Tuning and vanilla, all kinds of work
    python -m evaluate.speed --peer transformers       beside its VisionEncoderDecoderModel
    python -m evaluate.speed --only train greedy-8 --methods ituning vcgpt --rounds 3 --compile

Nothing is downloaded: ViT-B/16 and GPT-2 base with random weights, which compute as long as trained
ones. Every piece of work has a process of its own; they run by turns, so that a busy machine slows
all of them alike. Speed is the median of the rounds, a ratio the median of those of the rounds.

"of limit" is the share of the machine's measured rates that is reached: the time that the
arithmetic would take at the rate of one large matrix product (and for every further token of a
caption, if that is longer, the reading of GPT-2's weights from memory) by the time that it took.
"same" is what a peer's computation shares with that of vanilla: the losses' largest relative
difference before the first update, or the share of equal captions.
"""

from lib.cli import UserError, note, opt, parse, run  # isort: skip (lib before torch)
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from clip_vit import CLIPViT
from evaluate import peers
from evaluate.roofline import bandwidth, floor_of, matrix_rate
from evaluate.tables import fitted
from evaluate.workloads import NEW, WORKS, Task, cost_of, make_models, our_piece
from gpt2 import GPT2, GPT2Config
from lib.devices import peak_memory, pick_device
from lib.files import check_writable, write_json
from lib.settings import find_method

ROOT = Path(__file__).resolve().parents[1]
LOAD = {"transformers": "from transformers import VisionEncoderDecoderModel as Model; "
                        "Model.from_pretrained({0!r} + '/peer')",
        "seeGPT": "import lib.cli; from model import CLIPViT; from gpt2 import GPT2; "
                  "GPT2.from_pretrained({0!r} + '/lm.safetensors'); "
                  "CLIPViT.from_pretrained({0!r} + '/clip.safetensors')"}


@dataclass
class Config:
    peer: str = opt("", "measure this library beside it", choices=("", *peers.PEERS))
    only: list = opt([], "some of the work: " + ", ".join(["load", *WORKS]))
    methods: list = opt(["ituning", "vanilla"], "methods, a line each")
    dtypes: list = opt(["float32", "bfloat16"], "float32, bfloat16, float16")
    rounds: int = opt(5, "times that each piece of work is done", at_least=1, at_most=1000)
    compile: bool = opt(False, "torch.compile in training, for the peer, too")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    json: str = opt("", "write all numbers to this file")


# ---------------------------------------------------------------------------- processes

def serve(pipe, task):
    """A process with one piece of work: answers "run" with its seconds and proof, "cost" and
    "peak", until it is asked to "end"."""
    piece, model = (peers.piece if task.method in peers.PEERS else our_piece)(task)
    while (question := pipe.recv()) != "end":
        if question == "cost":
            pipe.send(cost_of(piece, model, WORKS[task.work]))
        elif question == "peak":
            pipe.send(peak_memory(task.device))
        else:
            began = time.perf_counter()
            proof = piece()  # numbers of Python: the device has finished
            pipe.send((time.perf_counter() - began, proof))


class Worker:
    """The process of one task, as seen from here."""

    def __init__(self, task):
        self.task, context = task, multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, task))
        self.process.start()
        theirs.close()

    def ask(self, question):
        try:
            self.pipe.send(question)
            return self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise UserError(f"{self.task.method}, {self.task.work}, {self.task.dtype}: its process "
                            "has died, for the reason above or for lack of memory") from None

    def end(self):
        try:
            self.pipe.send("end")
        except OSError:
            pass  # it has died
        self.process.join(5)
        self.process.terminate()  # one that is in the middle of its work
        self.process.join()


def measure(tasks, rounds):
    """[{seconds: of every round, proof, cost, peak}, ...] of tasks that run by turns."""
    workers = [Worker(task) for task in tasks]
    try:
        found = [{"seconds": [], "proof": worker.ask("run")[1]} for worker in workers]  # warm-up
        for _ in range(rounds):
            for worker, result in zip(workers, found):
                result["seconds"].append(worker.ask("run")[0])
        for worker, result in zip(workers, found):
            result["peak"] = worker.ask("peak")
            if worker.task.method not in peers.PEERS:
                result["cost"] = worker.ask("cost")
        return found
    finally:
        for worker in workers:
            worker.end()


def measure_load(folder, names, rounds):
    """The same of starting Python, importing and loading the models from files."""
    found = [{"seconds": [], "peak": None} for _ in names]
    for _ in range(rounds + 1):  # the first reads the files into memory
        for name, result in zip(names, found):
            began = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", LOAD[name].format(folder)], cwd=ROOT)
            if done.returncode:
                raise UserError(f"{name} could not be loaded, for the reason above")
            result["seconds"].append(time.perf_counter() - began)
    return [result | {"seconds": result["seconds"][1:]} for result in found]


# ---------------------------------------------------------------------------- the table

def sameness(ours, theirs):
    """What two proofs share: captions that are equal, or losses (n,) before the first update."""
    if isinstance(ours[0], list):
        return f"{sum(a == b for a, b in zip(ours, theirs))}/{len(ours)}"
    return f"{abs(ours[0] - theirs[0]) / abs(theirs[0]):.0e}"


def line_of(work, dtype, method, result, peer, limits):
    """One line of the table as cells; limits: (FLOP/s, bytes/s)."""
    count = WORKS[work].count if work in WORKS else None
    seconds, gb = statistics.median(result["seconds"]), lambda r: f"{r['peak'] / 1e9:.2f} GB"
    speed = lambda s: f"{count / s:.2f}/s" if count else f"{s:.2f} s"
    cells = [work, dtype, method, speed(seconds)]
    share = floor_of(result["cost"], NEW, *limits) / seconds if "cost" in result else None
    cells += ["" if share is None else f"{share:.0%}", gb(result) if result["peak"] else ""]
    if peer:
        ratio = statistics.median(b / a for a, b in zip(result["seconds"], peer["seconds"]))
        cells += [speed(statistics.median(peer["seconds"])), f"{ratio:.2f}x",
                  gb(peer) if peer["peak"] else "",
                  sameness(result["proof"], peer["proof"]) if method == "vanilla" else ""]
    return cells


def check(config):
    """UserError for names that are not known, before anything is measured."""
    known = {"only": ["load", *WORKS], "dtypes": ["float32", "bfloat16", "float16"]}
    for flag, names in known.items():
        for name in getattr(config, flag):
            if name not in names:
                raise UserError(f"--{flag} {name}: there are {', '.join(names)}")
    for name in config.methods:
        find_method(name)
    check_writable(config.json)
    if config.peer:
        peers.library()


def measured(config, device, folder):
    """Yields (cells of a line, its numbers) of the table."""
    side = [config.peer] if config.peer else []
    works = [work for work in ("load", *WORKS) if work in (config.only or ("load", *WORKS))]
    bytes_per_s = bandwidth(device)
    for dtype in config.dtypes:
        limits = matrix_rate(device, getattr(torch, dtype)), bytes_per_s
        note(f"{dtype}: {limits[0] / 1e9:,.0f} GFLOP/s, memory {limits[1] / 1e9:,.1f} GB/s")
        for work in works:
            if work == "load":
                if dtype != config.dtypes[0]:
                    continue
                names = ["seeGPT", *side]
                found = measure_load(folder, names, config.rounds)
            else:
                names = [*config.methods, *(side if WORKS[work].source != "files" else ())]
                found = measure([Task(folder, work, name, dtype, device, config.compile)
                                 for name in names], config.rounds)
            peer = found.pop() if names[-1:] == side else None
            for name, result in zip(names, found):
                cells = line_of(work, dtype, name, result, peer, limits)
                note("  ".join(cells))
                yield cells, {"work": work, "dtype": dtype, "method": name, "limits": limits,
                              "peer": peer, **result}


def main(config):
    check(config)
    device = pick_device(config.device)
    head = ["work", "precision", "method", "here", "of limit", "memory"]
    head += [config.peer, "ratio", "its memory", "same"] if config.peer else []
    with tempfile.TemporaryDirectory() as folder:
        model = make_models(folder, GPT2(GPT2Config()), CLIPViT(224, 16, 768, 12, 12, 512))
        if config.peer:
            peers.save(model, folder)
        del model
        chip = (torch.cuda.get_device_name() if device.type == "cuda" else
                platform.processor() or platform.machine())
        about = (f"{device} {chip}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
                 f"median of {config.rounds} rounds; training in captions/s, the others in "
                 "images/s")
        lines, numbers = [], []
        try:
            for cells, line in measured(config, device, folder):
                lines.append(cells + [""] * (len(head) - len(cells)))
                numbers.append(line)
                write_json(config.json, {"about": about, "lines": numbers}, quiet=True)
        finally:  # stopped early, there is something to read
            print(f"{fitted([head, *lines], 'with --json', keep=4)}\n\n{about}")
            if config.json and numbers:
                note(f"{config.json} is written")


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
