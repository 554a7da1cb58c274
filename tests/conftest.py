"""Lets the tests import the project's modules from wherever pytest is started."""

import signal
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & and nohup have signals
if hasattr(signal, "SIGHUP"):  # ignored, and what is ignored stays so
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(1)  # tiny models: a second thread only gets in the way
OWN = None  # the method named by --method


def pytest_addoption(parser):
    parser.addoption("--method", help="run only the contract of test_methods.py, and only on this "
                     "method: mymethod for mymethod.py in the working folder")


def pytest_configure(config):
    global OWN
    OWN = config.getoption("--method")


def pytest_collection_modifyitems(items):
    if OWN:
        items[:] = [item for item in items if hasattr(item, "callspec")
                    and item.callspec.params.get("name") == OWN]
