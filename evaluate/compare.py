"""Every method in one table: trained on shapes for the same texts, from the same frozen backbones.

    python -m evaluate.compare                           captions, 3 seeds: 15 trainings
    python -m evaluate.compare --only ituning vanilla --seeds 1
    python -m evaluate.compare --table questions         DVP: its layers, all image tokens, none;
                                                         and on BERT, T5 and LLaMA

Runs train.py and evaluate as you would, one after the other, and prints a Markdown table (mean and
standard deviation over the seeds). Runs are folders in --out; what is finished there is not run
again, and what was stopped goes on. Afterwards TABLE.md, TABLE.json and TABLE.png are there, too.

Speed is measured by itself, in short runs of all methods by turns, so that a busy machine slows all
of them alike: the median of texts/s in training, features of the frozen image model cached for all.
"""

from lib.cli import UserError, note, opt, parse, run  # isort: skip (lib before torch)
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evaluate.tables import fitted, markdown
from lib import curves
from lib.files import check_writable, replacing, write_json
from model import SeeGPT, TextState
from weights.checkpoints import read_run_info

ROOT = Path(__file__).resolve().parents[1]
DVP = ["--dataset", "shapes/vqa"]
MODELS = {"bert": "BERT", "t5": "T5", "llama": "LLaMA"}  # beside GPT-2, shown at every layer
# table -> row -> (title, flags of train.py); everything else is train.py's recipe.
TABLES = {
    "captions": {
        "ituning": ("I-Tuning", ["--method", "ituning"]),
        "vanilla": ("vanilla cross-attention", ["--method", "vanilla"]),
        "vcgpt": ("VC-GPT", ["--method", "vcgpt"]),
        "vcgpt-alone": ("VC-GPT without self-ensemble",
                        ["--method", "vcgpt", "--no-self_ensemble"]),
        "prefix": ("prefix (ClipCap)", ["--method", "prefix"]),
    },
    "questions": {
        "none": ("question only", [*DVP, "--visual", "none"]),
        "all": ("all 65 image tokens, layer 0", [*DVP, "--visual", "all"]),
        **{f"one-{l}": (f"one token, layer {l}", [*DVP, "--insert_layer", str(l)])
           for l in range(4)},
        **{f"{kind}-{name}": (f"{title}: {what}",
                              [*DVP, "--lm", f"data/shapes/tiny-{kind}", *flags])
           for kind, title in MODELS.items() for name, what, flags in (
               ("none", "question only", ["--visual", "none"]),
               ("one-0", "one token, layer 0", ["--insert_layer", "0"]),
               ("searched", "one token, searched layer", ["--search"]))},
    },
}
SCORES = {"captions": ("CIDEr-D", "BLEU-4", "objects named", "exact"),  # the last on novel, too
          "questions": ("accuracy",)}
LESS = ("BLEU-4, test", "objects named, test", "peak memory")  # the last is left out first
COLOURS = ("#1f4e8c", "#d1652a", "#3b8f5a", "#9cc9ab", "#7a4a9e", "#bfa3d6")
STYLES = [{"colour": colour, "width": width, "dashed": dashed}
          for width, dashed in ((2, False), (2, True), (4, False)) for colour in COLOURS]


@dataclass
class Config:
    table: str = opt("captions", "which comparison", choices=tuple(TABLES))
    only: list = opt([], "some of its rows: " + "; ".join(map(", ".join, TABLES.values())))
    seeds: int = opt(3, "runs of each, with seeds 1, 2, ...", at_least=1)
    speed_rounds: int = opt(3, "short runs of each to measure the speed", at_least=1)
    beam: int = opt(5, "beams in evaluation (papers: 5)", at_least=1, at_most=100)
    out: str = opt("out/compare", "folder of the runs and the table")


def at_hand(rows):
    """The rows whose language model is there; the others are named. UserError if none is left."""
    lms = {name: flags[flags.index("--lm") + 1] for name, (_, flags) in rows.items()
           if "--lm" in flags}
    missing = {name: lm for name, lm in lms.items() if not (ROOT / lm / "config.json").exists()}
    for lm in dict.fromkeys(missing.values()):
        note(f"without {', '.join(name for name in missing if missing[name] == lm)}: there is no "
             f"{lm} (python data/shapes/pretrain.py {lm.rpartition('-')[2]})")
    if len(missing) == len(rows):
        raise UserError("no row is left to compare")
    return {name: row for name, row in rows.items() if name not in missing}


# ---------------------------------------------------------------------------- runs

def command(*words):
    """Runs python with these words in the project's folder; its output goes to the terminal."""
    note(f"$ python {' '.join(map(str, words))}")
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, stdout=sys.stderr)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise UserError(f"this failed: python {' '.join(map(str, words))}")


def logged(folder, name):
    """The numbers of one entry of a run's log.jsonl in the order of its steps."""
    log = folder / "log.jsonl"
    found = curves.series(log, name) if log.exists() else {}
    return [found[step] for step in sorted(found)]


def train(folder, flags):
    """One run, unless it is finished; goes on with a stopped one."""
    if logged(folder, "peak_memory"):
        return
    if any((folder / name).exists() for name in ("resume.pt", "search.pt")):
        command("train.py", "--resume", "--out", folder)
    else:
        command("train.py", *flags, "--score", 0, "--out", folder)


def evaluate(folders, split, beam, path):
    """{metric: [score of each run]} on a split; path keeps them."""
    if not path.exists():
        command("-m", "evaluate", "--ckpt", *folders, "--split", split, "--beam", beam,
                "--json", path)
    rows = json.loads(path.read_text("utf-8"))["rows"]
    return {metric: [row["scores"][metric]["score"] for row in rows]
            for metric in rows[0]["scores"]}


def layer_of(folder):
    """The layer that a run's search has found."""
    return json.loads((folder / "search.json").read_text("utf-8"))["layer"]


def searched(out, seeds):
    """The layers that the search finds on GPT-2 with each seed. It needs no row of its own: what is
    trained after it with the same seed is, bit for bit, the row of that layer."""
    folders = [out / f"search-{seed}" for seed in range(1, seeds + 1)]
    for seed, folder in enumerate(folders, 1):
        if (folder / "search.pt").exists() and not (folder / "search.json").exists():
            command("train.py", "--resume", "--out", folder)
        elif not (folder / "search.json").exists():
            command("train.py", *DVP, "--search", "--steps", 1, "--seed", seed, "--out", folder)
    return [layer_of(folder) for folder in folders]


# ---------------------------------------------------------------------------- costs

def speeds(rows, out, rounds, steps=60):
    """{row: median texts/s} of short runs, all rows by turns; where a layer was searched, with the
    one that seed 1 found."""
    seen = {name: [] for name in rows}
    for i in range(rounds):
        for name, (_, flags) in rows.items():
            folder = out / f"speed-{name}-{i}"
            if "--search" in flags:
                flags = [*flags[:-1], "--insert_layer", layer_of(out / f"{name}-1")]
            train(folder, [*flags, "--steps", steps, "--log_every", 10, "--eval_images", 3])
            seen[name] += logged(folder, "captions_per_s")[1:]
    return {name: statistics.median(values) for name, values in seen.items()}


def macs(method, lm, vit, T):
    """Multiply-accumulates in billions for a text of T tokens and its image: (language model, ViT).

    The language model with what the method puts into it, keys and values of the image tokens
    included, without the vocabulary or the classifier. BERT reads one token more, [SEP]; T5's
    decoder its start alone. Attention is counted as the full square, also where it is causal.
    pitfall: torch counts no fused attention on a CPU, so its plain form is asked for.
    """
    device = lm.wte.weight.device
    idx = torch.zeros(1, T, dtype=torch.int64, device=device)
    image = torch.zeros(1, 3, vit.image_size, vit.image_size, device=device)
    state = TextState(condition_len=torch.full((1,), T, device=device))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as of_vit:
            feats = vit(image)
        with FlopCounterMode(display=False) as of_lm:
            ctx = method.encode_image(feats)
            x = lm.start(idx, state, method.block)
            for l, layer in enumerate(lm.h):
                x = method.block(l, layer, x, ctx, state)
    return of_lm.get_total_flops() / 2e9, of_vit.get_total_flops() / 2e9


# ---------------------------------------------------------------------------- the table

def mean_and_std(values):
    """"96.8 ± 0.7": the mean and the sample standard deviation."""
    std = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{std}"


def table_of(results, which):
    """The table as lines of cells; of questions also the cost of one of 16 tokens."""
    questions, metrics = which == "questions", SCORES[which]
    lines = [["method", "trained", "texts/s", "peak memory",
              *(["GMAC", "with ViT"] if questions else []),
              *(f"{metric}, test" for metric in metrics), f"{metrics[-1]}, novel"]]
    for r in results.values():
        lm, vit = r["macs"]
        lines.append([r["title"], f"{r['trained']:,}", f"{r['texts_per_s']:,.0f}",
                      f"{r['peak_memory'] / 1e6:,.0f} MB" if r["peak_memory"] else "not known",
                      *([f"{lm:.4f}", f"{lm + vit:.4f}"] if questions else []),
                      *(mean_and_std(r["test"][metric]) for metric in metrics),
                      mean_and_std(r["novel"][metrics[-1]])])
    return lines


def result_of(name, title, folders, config, out):
    """What the table says of one row: scores, sizes and costs, but not the speed."""
    file = lambda split: out / f"{name}-{split}-{config.seeds}-beam{config.beam}.json"
    model = SeeGPT.load(folders[0])
    memory = [held for folder in folders for held in logged(folder, "peak_memory") if held]
    return {"title": title, "trained": sum(p.numel() for p in model.trained().values()),
            "peak_memory": max(memory, default=None),
            "macs": macs(model.method, model.lm, model.vit, 16),
            **{split: evaluate(folders, split, config.beam, file(split))
               for split in ("test", "novel")}}


def main(config):
    known = TABLES[config.table]
    for name in config.only:
        if name not in known:
            raise UserError(f"--only {name}: there are {', '.join(known)}")
    check_writable(Path(config.out) / f"{config.table}.json")
    rows = at_hand({name: known[name] for name in known if name in (config.only or known)})
    out, seeds = Path(config.out).resolve(), range(1, config.seeds + 1)
    folders = {name: [out / f"{name}-{seed}" for seed in seeds] for name in rows}
    for seed in seeds:  # of all rows before the next: stopped early, there is something to compare
        for name, (_, flags) in rows.items():
            train(folders[name][seed - 1], [*flags, "--seed", seed])
    speed = speeds(rows, out, config.speed_rounds)
    results = {name: result_of(name, title, folders[name], config, out)
               | {"texts_per_s": speed[name]} for name, (title, _) in rows.items()}

    table, path = table_of(results, config.table), out / config.table
    write_json(path.with_suffix(".json"), results)
    with replacing(path.with_suffix(".md")) as f:
        f.write(f"{markdown(table)}\n".encode())
    note(f"{path.with_suffix('.md')} is written")
    print(fitted(table, f"in {path.with_suffix('.md')}",
                 lambda title: LESS.index(title) if title in LESS else -1))
    settings = read_run_info(next(iter(folders.values()))[0])["train"]
    print(f"\n{config.seeds} seeds, {settings['epochs']:g} epochs of 8,000 images with "
          f"{settings['rows']} texts each, beam {config.beam}; scores x 100, mean ± standard "
          "deviation.")
    layers = {title: map(layer_of, folders[name]) for name, (title, flags) in rows.items()
              if "--search" in flags}
    if any(name.startswith("one-") for name in rows):
        layers = {"one token": searched(out, config.seeds)} | layers
    for title, chosen in layers.items():
        print(f"{title}: KAB-APP chose {', '.join(map(str, chosen))}, with seeds 1 to "
              f"{config.seeds}.")
    lines = [curves.Line(title, curves.series(folders[name][0] / "log.jsonl", "val_loss"),
                         dots=True, **style)
             for (name, (title, _)), style in zip(rows.items(), STYLES)]
    curves.plot(lines, path.with_suffix(".png"), "step", "validation loss, nats")


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
