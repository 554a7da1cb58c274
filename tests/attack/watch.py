"""Runs numbered cases in a watched child process and says how each of them ended.

A case is a function (rng, folder) -> (label, call). It may write files to the folder, which is
empty; call() is what gets attacked. rng depends on the seed and the number of the case alone, so
one case can be repeated. What may happen:

    fine        call() came back                  refused     a UserError of one clear line
    unclear     a UserError, but not one line     traceback   any other exception
    slow        over SECONDS of computing         memory      over MEGABYTES more than before
    died        the process is gone               payload     a file's code ran
"""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter, namedtuple
from pathlib import Path

from lib.cli import UserError

SECONDS, MEGABYTES = 10, 2000
GOOD = ("fine", "refused")
ROOT = Path(__file__).resolve().parents[2]
# What a payload in a file would run: it leaves a trace in the case's folder.
TRACE = "the_payload_ran"

Outcome = namedtuple("Outcome", "number label result detail")


def is_clear(text):
    """Whether a message is one line that a terminal shows as it is, and not too long to read."""
    return len(text) <= 2000 and text.isprintable()


def peak():
    """The most memory that this process held since the last reset_peak(), in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


class TooLong(BaseException):
    """Raised by the clock; no `except Exception` catches it."""


def too_long(*_):
    raise TooLong


def place(error):
    """"gpt2.py:17", the last line of the project that an exception passed through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename]
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "?"


def run_case(case, number, seed):
    """One case, in this process."""
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    label, before, began = "?", peak(), time.process_time()
    try:
        label, call = case(random.Random(f"{seed} {number}"), folder)
        os.chdir(folder)
        reset_peak()
        before, began = peak(), time.process_time()
        # Others may want the processor, too; a case of many processes says how long it may take.
        signal.setitimer(signal.ITIMER_REAL, getattr(case, "patience", 3 * SECONDS))
        try:
            call()
            result, detail = "fine", ""
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except UserError as e:
        result, detail = "refused" if is_clear(str(e)) else "unclear", f"{str(e)[:300]!r}"
        if label == "?":  # raised while the case was made
            result = "traceback"
    except TooLong as e:
        result, detail = "slow", place(e)
    except BaseException as e:
        result, detail = "traceback", f"{place(e)} {type(e).__name__}: {str(e)[:200]!r}"
    if time.process_time() - began > SECONDS:
        result = "slow"
    if peak() - before > MEGABYTES:
        result, detail = "memory", f"{peak() - before} MB; {detail}"
    if list(folder.rglob(TRACE)):
        result = "payload"
    os.chdir(ROOT)
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(number, label, result, detail)


def work(case, numbers, seed, pipe):
    """The child: tells each number before the case and its outcome after it."""
    signal.signal(signal.SIGALRM, too_long)
    limit = 8 << 30  # a file that asks for more gets a MemoryError, not the machine
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    for number in numbers:
        pipe.send(number)
        pipe.send(run_case(case, number, seed))
    pipe.close()


def attack(case, numbers, seed=1):
    """Outcomes of the cases with these numbers. A child that dies or hangs is replaced."""
    context, todo, outcomes = multiprocessing.get_context("fork"), list(numbers), []
    patience = 2 * getattr(case, "patience", 3 * SECONDS)
    while todo:
        ours, theirs = context.Pipe()
        child = context.Process(target=work, args=(case, todo, seed, theirs), daemon=True)
        child.start()
        theirs.close()
        try:
            while todo and ours.poll(patience):
                number = ours.recv()
                if not ours.poll(patience):
                    break
                outcomes.append(ours.recv())
                todo.remove(number)
        except EOFError:  # it died in the middle of a case
            pass
        if todo:
            outcomes.append(Outcome(todo.pop(0), "?", "died", "killed, crashed or silent for long"))
        child.kill()
        child.join()
    return outcomes


def bad(outcomes):
    """The outcomes that should not be, as lines to print."""
    return [f"{o.number} [{o.label}] {o.result}: {o.detail}" for o in outcomes
            if o.result not in GOOD]


def summary(outcomes):
    """"1,000 cases: 700 refused, 300 fine"."""
    counts = Counter(o.result for o in outcomes).most_common()
    return f"{len(outcomes):,} cases: " + ", ".join(f"{n:,} {result}" for result, n in counts)
