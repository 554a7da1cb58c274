"""The few-shot experiment: CPT and the fine-tuned head, tuned on K expressions with each seed."""

from pathlib import Path

import numpy as np

from evaluate.region_head import score_head, tune_head
from evaluate.regions import chosen, load_expressions
from evaluate.tables import markdown
from evaluate.tuning import draw_shots, score_cpt, tune_cpt
from lib import pictures
from lib.cli import UserError, note, time_left
from lib.files import read_json, write_json

CPT, HEAD = "CPT", "fine-tuned head"
COLOURS = {CPT: "#1f4e8c", HEAD: "#d1652a"}


def few_shot(model, items, hits, config, settings):
    """Prints the accuracy x 100 of both for each of --shots: mean and standard deviation over the
    seeds. With --json every run is written when it is done, and a second call with the same
    settings goes on from there; with --png the curve is drawn."""
    pool, shots = load_expressions(config.dataset, "train"), list(dict.fromkeys(config.shots))
    accuracies = read_accuracies(config.json, settings)
    todo = [(K, seed) for seed in range(config.seeds) for K in shots
            if len(accuracies[CPT].get(K, ())) <= seed]
    left = time_left(0, len(todo))
    for done, (K, seed) in enumerate(todo, 1):
        some = draw_shots(pool, len(pool) if K == "all" else int(K), seed)
        for name, scores in ((CPT, score_cpt(tune_cpt(model, some, config, seed), items, config)),
                             (HEAD, score_head(tune_head(model, some, config, seed), items))):
            accuracies[name].setdefault(K, []).append(100 * chosen(scores, hits).mean())
        write_json(config.json, {"settings": settings, "accuracies": accuracies})
        note(f"{K} shots, seed {seed}: CPT {accuracies[CPT][K][-1]:.1f}, head "
             f"{accuracies[HEAD][K][-1]:.1f}; {left(done)} left")
    # The population's standard deviation, as CPT reports it.
    rows = {name: {K: (np.mean(runs[K][:config.seeds]), np.std(runs[K][:config.seeds]))
                   for K in shots} for name, runs in accuracies.items()}
    cells = [[K, *("{:.1f} ± {:.1f}".format(*row[K]) for row in rows.values())] for K in shots]
    print(markdown([["shots", *rows], *cells]))
    if config.png:
        draw_curve(rows, config.png, config.json or "the table above")


def read_accuracies(path, settings):
    """{method: {K: [accuracy of each seed]}} that a file already holds. UserError if it is one of
    other settings."""
    if not path or not Path(path).exists():
        return {CPT: {}, HEAD: {}}
    written = read_json(Path(path), "expected the numbers of --shots in it")
    if (not isinstance(written, dict) or written.get("settings") != settings
            or "accuracies" not in written):
        raise UserError(f"{path} is of other settings: name another file, or remove it")
    return written["accuracies"]


def draw_curve(rows, path, numbers):
    """Accuracy over shots, {method: {K: (mean, standard deviation)}}, dotted one deviation away."""
    lines = []
    for name, row in rows.items():
        for label, sign, style in ((name, 0, {"marker": "o"}), ("", 1, {"linestyle": ":"}),
                                   ("", -1, {"linestyle": ":"})):
            points = {int(K): float(mean + sign * std) for K, (mean, std) in row.items()
                      if K != "all"}
            lines.append((label, points, {**style, "color": COLOURS[name]}))
    pictures.plot(lines, path, "expressions tuned on (dotted: one standard deviation)",
                  "accuracy, %", numbers)
