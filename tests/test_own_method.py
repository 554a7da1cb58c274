"""The README's example of one's own method: a short file, and it keeps the contract of the built-in ones."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import test_methods
from lib.cli import parse
from model import find_method

README = Path(__file__).resolve().parent.parent / "README.md"
CONTRACT = [test for name, test in vars(test_methods).items()
            if name.startswith("test_") and "name" in inspect.signature(test).parameters
            and "watch" not in name and "by_heart" not in name]  # these two are not for every method


@pytest.fixture(scope="module")
def mymethod(tmp_path_factory):
    """The README's Python block as mymethod.py, found where Python looks for modules."""
    folder = tmp_path_factory.mktemp("own")
    blocks = re.findall(r'^```python\n("""mymethod\.py.*?)^```', README.read_text("utf-8"), re.S | re.M)
    assert len(blocks) == 1, "README.md should hold one mymethod.py"
    (folder / "mymethod.py").write_text(blocks[0], "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "mymethod", raising=False)
        patch.syspath_prepend(folder)
        importlib.import_module("mymethod")
        yield "mymethod"
        del sys.modules["mymethod"]


def test_it_is_a_file_of_at_most_40_lines(mymethod):
    assert len(Path(sys.modules[mymethod].__file__).read_text("utf-8").splitlines()) <= 40


def test_its_flags_are_read_from_its_own_config(mymethod):
    _, config = find_method(mymethod)
    assert parse(config, argv=["--scale", "0.5"])[0].scale == 0.5


@pytest.mark.parametrize("test", CONTRACT, ids=lambda test: test.__name__)
def test_it_keeps_the_contract(test, mymethod, tmp_path):
    wanted = inspect.signature(test).parameters
    for switch, prefix in [("train_lm", "gpt2."), ("train_vision", "vit.")] if "switch" in wanted else [(None, None)]:
        given = {"name": mymethod, "tmp_path": tmp_path, "switch": switch, "prefix": prefix}
        test(**{key: given[key] for key in wanted})
