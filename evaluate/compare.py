"""Every way to connect, in one table: trained on shapes for the same texts from the same frozen backbones.

    python data/shapes/compare.py                              captions, 3 seeds: 15 trainings
    python data/shapes/compare.py --only ituning vanilla --seeds 1
    python data/shapes/compare.py --table questions            DVP: its layers, all image tokens, the question alone

Runs train.py and evaluate.py as you would, one after the other, and prints a Markdown table (mean and
standard deviation over the seeds). Runs are folders in --out; what is finished there is not run again,
and what was stopped goes on. Afterwards TABLE.md, TABLE.json and TABLE.png are there, too.

Speed is measured by itself, in short runs of all methods by turns, so that a busy machine slows all of
them alike: the median of texts/s in training, features of the frozen image model cached for all.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, this folder is all Python sees
from evaluate.tables import markdown
from lib import pictures
from lib.cli import UserError, opt, parse, run
from lib.files import replacing
from model import TextState, SeeGPT, read_run_info

ROOT = Path(__file__).resolve().parents[2]
DVP = ["--dataset", "shapes/vqa"]
# table -> row -> (title, flags of train.py). The rest are the settings of the dataset and method in train.py.
TABLES = {
    "captions": {
        "ituning": ("I-Tuning", ["--method", "ituning"]),
        "vanilla": ("vanilla cross-attention", ["--method", "vanilla"]),
        "vcgpt": ("VC-GPT", ["--method", "vcgpt"]),
        "vcgpt-alone": ("VC-GPT without self-ensemble", ["--method", "vcgpt", "--no-self_ensemble"]),
        "prefix": ("prefix (ClipCap)", ["--method", "prefix"]),
    },
    "questions": {
        "none": ("question only", [*DVP, "--visual", "none"]),
        "all": ("all 65 image tokens, layer 0", [*DVP, "--visual", "all"]),
        **{f"one-{l}": (f"one token, layer {l}", [*DVP, "--insert_layer", str(l)]) for l in range(4)},
    },
}
SCORES = {"captions": ("CIDEr-D", "BLEU-4", "objects named", "exact"), "questions": ("accuracy",)}  # the last on novel, too
LOOKS = ("#1f4e8c", "#d1652a", "#3b8f5a", "#9cc9ab", "#7a4a9e", "#bfa3d6")


@dataclass
class Config:
    table: str = opt("captions", "which comparison", choices=tuple(TABLES))
    only: list = opt([], "some of its rows: " + "; ".join(", ".join(rows) for rows in TABLES.values()))
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


def logged(folder, name):
    """The numbers of one entry of a run's log.jsonl, in the order of its steps; none if there is no log."""
    log = folder / "log.jsonl"
    return [value for _, value in sorted(pictures.series(log, name).items())] if log.exists() else []


def train(folder, flags):
    """One run, unless it is finished; goes on with a stopped one."""
    if logged(folder, "peak_memory"):
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


def searched(out, seeds):
    """The layers that the search finds with each seed. It needs no row of its own: what is trained behind it with the
    same seed is, to the bit, the row of that layer."""
    folders = [out / f"search-{seed}" for seed in range(1, seeds + 1)]
    for seed, folder in enumerate(folders, 1):
        if not (folder / "search.json").exists():
            resume = ["--resume"] if (folder / "search.pt").exists() else [*DVP, "--search", "--steps", 1, "--seed", seed]
            command("train.py", *resume, "--out", folder)
    return [json.loads((folder / "search.json").read_text("utf-8"))["layer"] for folder in folders]


def speeds(runs, out, rounds, steps=60):
    """{name: median texts/s} of short runs, all methods by turns."""
    seen = {name: [] for name in runs}
    for i in range(rounds):
        for name, (_, flags) in runs.items():
            folder = out / f"speed-{name}-{i}"
            train(folder, [*flags, "--steps", steps, "--log_every", 10, "--eval_images", 3])
            seen[name] += logged(folder, "captions_per_s")[1:]
    return {name: statistics.median(values) for name, values in seen.items()}


def macs(method, gpt2, vit, T):
    """Multiply-accumulates in billions for one text of T tokens and its image: (language model, ViT).

    The language model with what the method puts into it, keys and values of the image tokens included,
    without the vocabulary or the classifier. Attention is counted as the full square, also where it is
    causal. pitfall: torch counts no fused attention on a CPU, so its plain form is asked for.
    """
    idx, device = torch.zeros(1, T, dtype=torch.int64, device=gpt2.wte.weight.device), gpt2.wte.weight.device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as eye:
            feats = vit(torch.zeros(1, 3, vit.image_size, vit.image_size, device=device))
        with FlopCounterMode(display=False) as lm:
            ctx, x = method.encode_image(feats), gpt2.embed(idx)
            for l, block in enumerate(gpt2.h):
                x = method.block(l, block, x, ctx, TextState(condition_len=torch.full((1,), T, device=device)))
    return lm.get_total_flops() / 2e9, eye.get_total_flops() / 2e9


def shown(values, digits=1):
    """"96.8 ± 0.7": the mean and the sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main(config):
    known = TABLES[config.table]
    for name in config.only:
        if name not in known:
            raise UserError(f"--only {name}: there are {', '.join(known)}")
    if config.seeds < 1 or config.speed_rounds < 1:
        raise UserError("--seeds and --speed_rounds must be 1 or more")
    rows = {name: known[name] for name in known if name in (config.only or known)}
    out = Path(config.out).resolve()
    runs = {name: [out / f"{name}-{seed}" for seed in range(1, config.seeds + 1)] for name in rows}
    for i in range(config.seeds):  # one seed of all before the next: stopped early, there is something to compare
        for name, (_, flags) in rows.items():
            train(runs[name][i], [*flags, "--seed", i + 1])
    fast = speeds(rows, out, config.speed_rounds)
    results = {}
    for name, (title, _) in rows.items():
        scores = {split: evaluate(runs[name], split, config.beam, out / f"{name}-{split}-{config.seeds}-beam{config.beam}.json")
                  for split in ("test", "novel")}
        model = SeeGPT.load(runs[name][0])
        memory = [held for folder in runs[name] for held in logged(folder, "peak_memory") if held]
        results[name] = {"title": title, "trained": sum(p.numel() for p in model.trained().values()),
                         "texts_per_s": fast[name], "peak_memory": max(memory, default=None),
                         "macs": macs(model.method, model.lm, model.vit, 16), **scores}
    table, path = table_of(results, config.table), out / config.table
    with replacing(path.with_suffix(".json")) as f:
        f.write(json.dumps(results, indent=1).encode() + b"\n")
    with replacing(path.with_suffix(".md")) as f:
        f.write(f"{table}\n".encode())
    print(table)
    settings = read_run_info(next(iter(runs.values()))[0])["train"]
    print(f"\n{config.seeds} seeds, {settings['epochs']:g} epochs of 8,000 images with {settings['rows']} texts each, "
          f"beam {config.beam}; scores x 100, mean ± standard deviation.")
    if config.table == "questions":
        print(f"KAB-APP chose layer {', '.join(map(str, searched(out, config.seeds)))}, with seeds 1 to {config.seeds}.")
    pictures.plot([(title, pictures.series(runs[name][0] / "log.jsonl", "val_loss"), dict(color=colour, marker="o", ms=3))
               for (name, (title, _)), colour in zip(rows.items(), LOOKS)], path.with_suffix(".png"), "step",
              "validation loss, nats", path.with_suffix(".json"))


def table_of(results, which):
    """The Markdown table; of questions also the cost of one of 16 tokens."""
    asked, metrics = which == "questions", SCORES[which]
    lines = [["method", "trained", "texts/s", "peak memory", *(["GMAC", "with ViT"] if asked else []),
              *(f"{metric}, test" for metric in metrics), f"{metrics[-1]}, novel"]]
    for r in results.values():
        memory = f"{r['peak_memory'] / 1e6:,.0f} MB" if r["peak_memory"] else "not known"
        lm, eye = r["macs"]
        cost = [f"{lm:.4f}", f"{lm + eye:.4f}"] if asked else []
        lines.append([r["title"], f"{r['trained']:,}", f"{r['texts_per_s']:,.0f}", memory, *cost,
                      *(shown(r["test"][metric]) for metric in metrics), shown(r["novel"][metrics[-1]])])
    return markdown(lines)


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
