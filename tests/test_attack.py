"""A few cases of each attack (tests/attack). At length: python -m tests.attack."""

import functools
import importlib
import os
import sys

import pytest

from lib.cli import UserError

if sys.platform != "linux":
    pytest.skip("watches processes by fork and /proc", allow_module_level=True)

from tests.attack import watch

# Kind: how many cases.
FEW = {"commands": 20, "kills": 2, "pairs": 1, "images": 22, "records": 60,
       "archives": 25, "downloads": 20, "weights": 60, "tokenizers": 80}


@pytest.mark.parametrize("kind", FEW)
def test_every_case_ends_well_or_in_one_clear_line(kind):
    module = importlib.import_module(f"tests.attack.{kind}")
    assert not watch.bad(watch.attack(module.case, range(FEW[kind]), seed=7))


def one_way_to_end(rng, folder):
    """A case that says in its label how it should be found to have ended."""
    ways = {"fine": lambda: None, "traceback": lambda: 1 / 0, "died": lambda: os._exit(1),
            "memory": lambda: bytearray(2500 << 20), "payload": (folder / watch.TRACE).touch,
            "refused": functools.partial(refuse, "a line"), "unclear": functools.partial(refuse, "")}
    return (way := rng.choice(sorted(ways))), ways[way]


def refuse(text):
    error = UserError(text)
    error.args = (text or "two\nlines",)  # UserError itself would make it one
    raise error


def test_the_watch_sees_how_a_case_ends():
    """A case that dies cannot tell its label."""
    outcomes = watch.attack(one_way_to_end, range(30))
    assert len(outcomes) == 30 and len({o.result for o in outcomes}) == 7
    assert all(o.result == ("died" if o.label == "?" else o.label) for o in outcomes)
    assert len(watch.bad(outcomes)) == sum(o.result not in ("fine", "refused") for o in outcomes)
