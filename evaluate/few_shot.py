"""The few-shot experiment: CPT and the fine-tuned head, tuned on K expressions with each seed."""

from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from evaluate.region_head import Images, score_head, tune_head
from evaluate.regions import chosen, load_expressions
from evaluate.tables import fitted
from evaluate.tuning import Copies, draw_shots, score_cpt, tune_cpt
from lib import curves
from lib.cli import UserError, note, time_left
from lib.files import read_json, write_json

ZERO, HEAD = "zero-shot", "fine-tuned head"
SCORES = {"prior": "log p({})", "released": "log p({}) - log p(none)"}
WORK = []  # what the processes of side_by_side do
COLOURS = ("#1f4e8c", "#d1652a", "#2a9d68", "#8a4fb0", "#c2a000", "#777777")


def few_shot(model, items, hits, config, settings):
    """Prints the accuracy x 100 of every row for each of --shots: mean and standard deviation over
    the seeds. With --json every run is written when it is done, and a second call with the same
    settings goes on from there; with --png the curve is drawn."""
    pool, shots = load_expressions(config.dataset, "train"), list(dict.fromkeys(
        K if K == "all" else str(int(K)) for K in config.shots))
    accuracies = read_accuracies(config.json, settings)
    todo = [(K, seed) for seed in range(config.seeds) for K in shots
            if len(accuracies.get(ZERO, {}).get(K, ())) <= seed]
    # The ViT does not learn: what is tested on is painted and encoded once for all runs.
    test = Copies(model, items, config, most=len(items)), Images(model, items)
    before = score_cpt(model, test[0], config)["prior"] if todo else None
    left = time_left(0, len(todo))

    def tuned(job):
        some = draw_shots(pool, len(pool) if job[0] == "all" else int(job[0]), job[1])
        return tuned_scores(model, some, test, config, job[1])

    for done, ((K, seed), scores) in enumerate(zip(todo, side_by_side(tuned, todo, config)), 1):
        found = {ZERO: before, **scores}
        for name, scores in found.items():
            row = accuracies.setdefault(name, {}).setdefault(K, [])
            row.append(100 * chosen(scores, hits).mean())
        write_json(config.json, {"settings": settings, "accuracies": accuracies}, quiet=True)
        note(f"{K} shots, seed {seed}: " + ", ".join(
            f"{name} {accuracies[name][K][-1]:.1f}" for name in found) + f"; {left(done)} left")
    # The population's standard deviation, as CPT reports it.
    rows = {name: {K: (np.mean(runs[K][:config.seeds]), np.std(runs[K][:config.seeds]))
                   for K in shots} for name, runs in accuracies.items()}
    print(fitted([["accuracy x 100, shots", *shots],
                  *([name, *("{:.1f} ± {:.1f}".format(*row[K]) for K in shots)]
                    for name, row in rows.items())], "with --json",
                 lambda K: K not in (shots[0], shots[-1])))
    if config.json:
        note(f"{config.json} is written")
    if config.png:
        draw_curve(rows, config.png, 100 * np.mean([np.mean(h) for h in hits]))


def side_by_side(f, jobs, config):
    """Yields f(job) of each job in order; --jobs of them at a time, each in a process of its own
    with one thread, which for models this small is faster than two threads for one."""
    if config.jobs < 2 or len(jobs) < 2:
        yield from map(f, jobs)
        return
    WORK.append(f)  # a forked process finds it there: models and pictures are not copied
    try:
        with get_context("fork").Pool(config.jobs, torch.set_num_threads, (1,)) as pool:
            yield from pool.imap(run_job, jobs)
    finally:
        WORK.clear()


def run_job(job):
    return WORK[0](job)


def tuned_scores(model, shots, test, config, seed):
    """{row of the table: scores [(n,) of the proposals of each item that is tested on]} of all that
    is tuned on the shots, each with each learning rate."""
    copies, images, found = Copies(model, shots, config), Images(model, shots), {}
    for loss in config.loss:
        for lr in config.lr:
            tuned = tune_cpt(model, copies, config, seed, loss, float(lr))
            for score, values in score_cpt(tuned, test[0], config).items():
                name = SCORES[score].format(config.colour)
                found[f"CPT, {loss}, lr {lr}, {name}"] = values
    for lr in config.head_lr:
        head = tune_head(model, images, config, seed, float(lr))
        found[f"{HEAD}, lr {lr}"] = score_head(head, test[1])
    return found


def read_accuracies(path, settings):
    """{row: {K: [accuracy of each seed]}} that a file already holds. UserError if it is one of
    other settings."""
    if not path or not Path(path).exists():
        return {}
    written = read_json(Path(path), "expected the numbers of --shots in it")
    if not isinstance(written, dict) or written.get("settings") != settings:
        raise UserError(f"{path} is of other settings: name another file, or remove it")
    rows = written.get("accuracies")
    if not isinstance(rows, dict) or not all(
            isinstance(row, dict) and all(isinstance(runs, list) and all(
                isinstance(x, float) for x in runs) for runs in row.values())
            for row in rows.values()):
        raise UserError(f"{path}: damaged; remove it, or name another file")
    return rows


def draw_curve(rows, path, chance):
    """Accuracy over shots, {row: {K: (mean, standard deviation)}}, with bands of one deviation;
    what was not tuned is a level. Of CPT's scores the prior's alone."""
    few = {name: {int(K): (float(mean), float(std)) for K, (mean, std) in row.items() if K != "all"}
           for name, row in rows.items() if "none" not in name}
    zero = few.pop(ZERO, {})
    lines = [curves.Line(name, {K: mean for K, (mean, _) in row.items()}, colour, dots=True,
                         band={K: (mean - std, mean + std) for K, (mean, std) in row.items()})
             for (name, row), colour in zip(few.items(), COLOURS)]
    levels = [("chance", chance), *((ZERO, mean) for mean, _ in [*zero.values()][:1])]
    curves.plot(lines, path, "expressions tuned on (band: one standard deviation)", "accuracy, %",
                levels, sorted(set().union(*few.values())))
