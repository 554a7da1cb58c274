"""Lets the tests import the project's modules from wherever pytest is started."""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)  # tiny models: a second thread only gets in the way
