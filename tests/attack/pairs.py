"""Two processes that train together, of which one is killed or never comes: the other ends soon and
in one line, and both go on to the end that an unbroken pair has, bit for bit."""

import signal
import socket
import time
from pathlib import Path

from tests.attack.runs import HOME, Run, same_end

CASES = 40


def pair(out, folder, name):
    """Two runs that look for each other on this machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    return [Run("plain", out, folder / f"{name}-{rank}.txt",
                env={"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"})
            for rank in (0, 1)]


def unbroken():
    """(folder, seconds) of a pair that nothing happens to."""
    out = Path(HOME.name) / "unbroken-pair"
    took = out / "seconds"
    if not took.exists():
        began = time.monotonic()
        for run in pair(out, Path(HOME.name), "pair"):
            run.end(0)
        took.write_text(str(time.monotonic() - began))
    return out, float(took.read_text())


def case(rng, folder):
    out, victim = folder / "run", rng.randrange(2)
    number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))

    def call():
        whole, seconds = unbroken()
        runs = pair(out, folder, "first")
        if rng.random() < 0.5:
            runs[0].wait((out / "resume.pt").exists)
            seconds /= 3
        time.sleep(rng.random() * seconds)
        runs[victim].send(number)
        runs[victim].end(0, 130, 1, -number)
        said = runs[1 - victim].end(0, 130, 1, seconds=120)
        assert runs[1 - victim].code != 1 or "lost the others" in said \
            or "did not meet the others" in said, said[-500:]
        for run in pair(out, folder, "last"):
            run.end(0)
        same_end(out, whole)

    return f"{number.name} to {victim}", call


case.patience = 600  # seconds: on a busy machine a run takes long to start
