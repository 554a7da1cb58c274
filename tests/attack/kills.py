"""Runs that are killed, whose disk is full, whose readers die, or that get company: what is left
goes on to the end that an unbroken run has, bit for bit."""

import os
import signal
import time
from pathlib import Path

from tests.attack.runs import KINDS, Run, finish, unbroken

CASES = 100
# Signal, and whether the whole group gets it, as from a terminal.
SIGNALS = ((signal.SIGKILL, True), (signal.SIGKILL, True), (signal.SIGKILL, False),
           (signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGINT, True),
           (signal.SIGINT, False), (signal.SIGHUP, False))


def started(out):
    """The moment at which there is something to lose."""
    return lambda: any((out / name).exists() for name in ("resume.pt", "search.pt"))


def killed(rng, kind, out, log):
    """Signals at random moments, once or several times."""
    _, seconds = unbroken(kind)
    for n in range(rng.choice((1, 1, 2, 3))):
        new = rng.random() < 0.1
        run = Run(kind, out, log.with_name(f"{n}.txt"), new=new)
        if rng.random() < 0.3:
            run.wait(started(out))
            seconds /= 2
        time.sleep(rng.random() * (seconds + 2 * new))
        number, group = rng.choice(SIGNALS)
        run.send(number, group)
        if number == signal.SIGINT and rng.random() < 0.3:  # an impatient user
            time.sleep(rng.random() * 0.1)
            run.send(number, group)
        codes = (0, -number) if number == signal.SIGKILL else (0, 130, -number)
        said = run.end(*codes)
        assert "saved after step" not in said or started(out)(), "nothing is there"


def full(rng, kind, out, log):
    """No file may be longer than so much; as for the program, a disk is full."""
    room = int(rng.choice((100, 1000, 3000, 3e5, 6e5, 1.2e6, 1.6e6)) * (0.5 + rng.random()))
    Run(kind, out, log.with_name("full.txt"), room=room).end(0, 1)


def orphaned(rng, kind, out, log):
    """A process that reads images is killed."""
    run = Run("workers", out, log.with_name("orphaned.txt"))
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    readers = lambda: children.read_text().split()
    run.wait(lambda: len(readers()) == 2)
    time.sleep(rng.random())
    if run.alive() and readers():
        os.kill(int(rng.choice(readers())), signal.SIGKILL)
    said = run.end(0, 1)
    assert run.code == 0 or "a process that reads images has died" in said, said[-500:]


def crowded(rng, kind, out, log):
    """A second run begins in the same folder."""
    first = Run(kind, out, log.with_name("first.txt"))
    first.wait((out / "lock").exists)
    time.sleep(0.1 + rng.random() * 0.8)
    second = Run(kind, out, log.with_name("second.txt"))
    said = second.end(0, 1)  # 0: the first was through
    assert second.code == 0 or "another process is training here" in said \
        or "already holds a run" in said, said[-500:]
    first.end(0)


def case(rng, folder):
    what = rng.choice((killed,) * 9 + (full, full, orphaned, crowded))
    # The limit of a file's length is also that of the memory which workers share.
    kinds = {orphaned: ["workers"], full: sorted(KINDS.keys() - {"workers"})}
    kind = rng.choice(kinds.get(what, sorted(KINDS)))
    out, log = folder / "run", folder / "end.txt"

    def call():
        what(rng, kind, out, log)
        finish(kind, out, log)

    return f"{what.__name__} {kind}", call


case.patience = 600  # seconds: on a busy machine a run takes long to start
