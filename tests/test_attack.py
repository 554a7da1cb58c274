"""A few cases of each attack (tests/attack). At length: python -m tests.attack."""

import importlib
import sys

import pytest

# Kind: how many cases.
FEW = {"commands": 20, "kills": 2, "pairs": 1, "images": 22, "records": 60,
       "archives": 25, "downloads": 20, "weights": 33, "tokenizers": 80}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches processes by fork and /proc")


@pytest.mark.parametrize("kind", FEW)
def test_every_case_ends_well_or_in_one_clear_line(kind):
    from tests.attack import watch
    module = importlib.import_module(f"tests.attack.{kind}")
    assert not watch.bad(watch.attack(module.case, range(FEW[kind]), seed=7))
