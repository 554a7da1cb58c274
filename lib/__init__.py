"""Flags, files, devices, run folders and pictures: no science. Skip it at first.

Every command imports lib before torch, so what must be settled before torch is loaded stands here.
"""

import importlib.util
import os
import sys

if sys.version_info < (3, 10):
    sys.exit("error: this needs Python 3.10 or newer; here is %d.%d" % sys.version_info[:2])
if missing := [name for name in ("torch", "numpy", "PIL") if not importlib.util.find_spec(name)]:
    sys.exit(f"error: {', '.join(missing)} not found: pip install -r requirements.txt")

# Ctrl-C while torch is loaded, which takes seconds: Python ends as ever, but shows no traceback.
sys.excepthook = lambda kind, error, trace, before=sys.excepthook: (
    None if kind is KeyboardInterrupt else before(kind, error, trace))

# pitfall: a thread of torch that waits for another one spins, by libgomp's default for
# milliseconds. Where another program keeps a core busy, the one waited for does not run meanwhile:
# training took several times as long. Spinning shortly and then sleeping costs nothing measurable.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & {*os.environ}:  # what the user has set wins
    os.environ["GOMP_SPINCOUNT"] = "1000"
