"""Every way to connect, in one table: trained on shapes for the same captions from the same frozen backbones.

    python data/shapes/compare.py                              all, 3 seeds: about an hour on two cores
    python data/shapes/compare.py --only ituning vanilla --seeds 1

Runs train.py and evaluate.py as you would, one after the other, and prints a Markdown table (mean and
standard deviation over the seeds). Runs are folders in --out; what is finished there is not run again,
and what was stopped goes on. Afterwards table.md, results.json and curves.png are there, too.

Speed is measured by itself, in short runs of all methods by turns, so that a busy machine slows all of
them alike: the median of captions/s in training, features of the frozen image model cached for all.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, this folder is all Python sees
import draw
from cli import UserError, opt, parse, run
from data.common import replacing
from model import origin_of
from weights import read

ROOT = Path(__file__).resolve().parents[2]
# name -> (row's title, flags of train.py). The rest are the settings of "shapes METHOD" in train.py.
RUNS = {
    "ituning": ("I-Tuning", ["--method", "ituning"]),
    "vanilla": ("vanilla cross-attention", ["--method", "vanilla"]),
    "vanilla-gate": ("vanilla, tanh gate", ["--method", "vanilla", "--gate"]),
    "vcgpt": ("VC-GPT", ["--method", "vcgpt"]),
    "vcgpt-alone": ("VC-GPT without self-ensemble", ["--method", "vcgpt", "--no-self_ensemble"]),
    "prefix": ("prefix (ClipCap)", ["--method", "prefix"]),
    "prefix-tuned": ("prefix, GPT-2 tuned", ["--method", "prefix", "--train_lm"]),
}
SCORES = {"CIDEr-D": "CIDEr-D", "BLEU-4": "BLEU-4", "exact": "exact, test"}
LOOKS = ("#1f4e8c", "#d1652a", "#e2a36f", "#3b8f5a", "#9cc9ab", "#7a4a9e", "#bfa3d6")


@dataclass
class Config:
    only: list = opt([], f"some of {', '.join(RUNS)}; none: all")
    seeds: int = opt(3, "runs of each, with seeds 1, 2, ...")
    speed_rounds: int = opt(3, "short runs of each to measure the speed")
    beam: int = opt(5, "beams in evaluation (papers: 5)")
    out: str = opt("out/compare", "folder of the runs and the table")


def command(*words):
    """Runs one of the project's scripts; its output goes to the terminal."""
    print("$ python", *words, file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, stdout=sys.stderr)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise UserError(f"this failed: python {' '.join(map(str, words))}")


def entries(folder):
    """The lines of a run's log.jsonl; empty if there is none."""
    log = folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []


def train(folder, flags):
    """One run, unless it is finished; goes on with a stopped one."""
    if any("peak_memory" in x for x in entries(folder)):
        return
    if (folder / "resume.pt").exists():
        command("train.py", "--resume", "--out", folder)
    else:
        command("train.py", *flags, "--score", 0, "--out", folder)


def evaluate(folders, split, beam, path):
    """{metric: [score of each run]} on a split."""
    if not path.exists():
        command("evaluate.py", "--ckpt", *folders, "--split", split, "--beam", beam, "--json", path)
    rows = json.loads(path.read_text("utf-8"))["rows"]
    return {metric: [row["scores"][metric]["score"] for row in rows] for metric in rows[0]["scores"]}


def speeds(names, out, rounds, steps=60):
    """{name: median captions/s} of short runs, all methods by turns."""
    seen = {name: [] for name in names}
    for i in range(rounds):
        for name in names:
            folder = out / f"speed-{name}-{i}"
            if not entries(folder):
                command("train.py", *RUNS[name][1], "--steps", steps, "--log_every", 10, "--eval_images", 3,
                        "--score", 0, "--out", folder)
            seen[name] += [x["captions_per_s"] for x in entries(folder) if "captions_per_s" in x][1:]
    return {name: statistics.median(values) for name, values in seen.items()}


def shown(values, digits=1):
    """"96.8 ± 0.7": the mean and the sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main(config):
    names = config.only or list(RUNS)
    for name in names:
        if name not in RUNS:
            raise UserError(f"--only {name}: there are {', '.join(RUNS)}")
    if config.seeds < 1 or config.speed_rounds < 1:
        raise UserError("--seeds and --speed_rounds must be 1 or more")
    out = Path(config.out).resolve()
    runs = {name: [out / f"{name}-{seed}" for seed in range(1, config.seeds + 1)] for name in names}
    for i in range(config.seeds):  # one seed of all before the next: stopped early, there is something to compare
        for name in names:
            train(runs[name][i], [*RUNS[name][1], "--seed", i + 1])
    fast = speeds(names, out, config.speed_rounds)
    results = {}
    for name in names:
        scores = {split: evaluate(runs[name], split, config.beam, out / f"{name}-{split}-{config.seeds}.json")
                  for split in ("test", "novel")}
        first = runs[name][0]
        memory = [x["peak_memory"] for folder in runs[name] for x in entries(folder) if x.get("peak_memory")]
        results[name] = {"title": RUNS[name][0], "trained": sum(t.numel() for t in read(first / "best.safetensors").values()),
                         "captions_per_s": fast[name], "peak_memory": max(memory, default=None), **scores}
    table = table_of(results)
    with replacing(out / "results.json") as f:
        f.write(json.dumps(results, indent=1).encode() + b"\n")
    with replacing(out / "table.md") as f:
        f.write(table.encode())
    print(table, end="")
    settings = origin_of(runs[names[0]][0])["train"]
    print(f"\n{config.seeds} seeds, {settings['epochs']:g} epochs of 8,000 images with {settings['rows']} captions each, "
          f"beam {config.beam}; mean ± standard deviation.")
    draw.plot([(RUNS[name][0], draw.series(runs[name][0] / "log.jsonl", "val_loss"), dict(color=colour, marker="o", ms=3))
               for name, colour in zip(names, LOOKS)], out / "curves.png", "step",
              "validation loss, nats per token", out / "results.json")


def table_of(results):
    """The Markdown table."""
    head = ["method", "trained", "captions/s", "peak memory", *SCORES.values(), "exact, novel"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for r in results.values():
        memory = f"{r['peak_memory'] / 1e6:,.0f} MB" if r["peak_memory"] else "not known"
        lines.append([r["title"], f"{r['trained']:,}", f"{r['captions_per_s']:,.0f}", memory,
                      *(shown(r["test"][metric]) for metric in SCORES), shown(r["novel"]["exact"])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
