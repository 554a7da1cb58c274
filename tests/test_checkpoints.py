"""What a checkpoint says about itself is checked before anything of it is believed."""

import json

import pytest
import torch

from lib.cli import UserError
from lib.settings import method_config
from weights.checkpoints import begin_with, checkpoint_file, no_larger_than, read_run_info
from weights.safetensors import write

FROZEN = {"name": "tiny", "sha256": "5d"}
NOTE = {"method": "ituning", "config": {"heads": 4}, "lm": FROZEN, "clip": FROZEN,
        "train_lm": False, "train_vision": False, "dataset": "shapes", "task": "captions"}


def checkpoint(folder, note, **tensors):
    """A run's folder with a checkpoint whose note is a dictionary or, as it stands, a text."""
    text = note if isinstance(note, str) else json.dumps(note)
    write(folder / "best.safetensors", tensors or {"w": torch.ones(2)}, {"seegpt": text})
    return folder


def test_a_note_comes_back_as_it_was_written(tmp_path):
    assert read_run_info(checkpoint(tmp_path, NOTE)) == NOTE
    assert checkpoint_file(tmp_path) == tmp_path / "best.safetensors"


@pytest.mark.parametrize("note, says", [
    ("{", "damaged"), ("[" * 99_999, "damaged"), ("9" * 5000, "damaged"), ("[]", "all of it"),
    ("5", "all of it"), ("null", "not a checkpoint"), ("{}", "earlier version"),
    *(({**NOTE, "method": name}, "method is not") for name in (
        "os.path", "../x", "", "a b", 5, None, "x" * 5000)),
    *(({**NOTE, **entry}, f"{next(iter(entry))} is not") for entry in (
        {"config": []}, {"lm": "gpt2"}, {"clip": None}, {"train_lm": "no"}, {"task": 5},
        {"dataset": ["x"]}, {"train": 1})),
    ({**NOTE, "lm": {"name": 5, "sha256": ""}}, "lm.name is not"),
    ({**NOTE, "clip": {"name": "x"}}, "clip.sha256 is not"),
    *(({**NOTE, "config": {"heads": value}}, "config.heads is not") for value in (
        {}, [[]], 10**30, float("nan"), float("inf"))),
    *(({k: v for k, v in NOTE.items() if k != gone}, f"{gone} is not") for gone in (
        "method", "config", "train_vision"))])
def test_a_note_that_train_py_cannot_have_written_is_refused(note, says, tmp_path):
    with pytest.raises(UserError, match=says):
        read_run_info(checkpoint(tmp_path, note))


@pytest.mark.parametrize("config, says", [
    ({"heads": "4"}, "heads '4': must be of type int"), ({"heads": True}, "of type int"),
    ({"width_ratio": [1]}, "of type float"), ({"first_layer": None}, "of type int"),
    ({"heads": -1}, "heads -1: must be 0 or more"), ({"depth": 1}, "other settings than ituning")])
def test_settings_that_no_flag_could_have_given_are_refused(config, says):
    assert method_config({**NOTE, "config": {"width_ratio": 1}}, "x").width_ratio == 1
    with pytest.raises(UserError, match=says):
        method_config({**NOTE, "config": config}, "x")


class Model:
    """What begin_with asks of a model."""
    def __init__(self, info):
        self.run_info, self.taken = info, None

    def restore(self, tensors, path):
        self.taken = tensors, path


@pytest.mark.parametrize("change, says", [
    ({"method": "dvp"}, "trained with --method ituning, and this is dvp"),
    ({"clip": {"name": "x", "sha256": "00"}}, "other clip weights .tiny.*give those with --clip"),
    ({"config": {"heads": 2}}, "other settings: heads 4, here 2"),
    ({"train_lm": True}, "other settings: train_lm False, here True"),
    ({"config": {"heads": 2}, "task": "vqa"}, "its task was captions, here it is vqa.: heads 4")])
def test_a_run_that_begins_with_another_is_told_how_the_two_differ(change, says, tmp_path):
    with pytest.raises(UserError, match=says):
        begin_with(Model({**NOTE, **change}), checkpoint(tmp_path, NOTE))


def test_a_run_may_begin_with_one_of_another_task(tmp_path):
    """Captions first, then questions, as the papers do. If the tensors do not fit after all, the
    complaint names both tasks."""
    model = Model({**NOTE, "task": "vqa"})
    begin_with(model, checkpoint(tmp_path, NOTE))
    assert list(model.taken[0]) == ["w"] and "captions, here it is vqa" in model.taken[1]


def test_a_model_that_outgrows_its_checkpoint_is_stopped_while_it_is_built(tmp_path):
    """The note may ask for a million layers; here for a matrix, of no memory on the meta device."""
    path = checkpoint_file(checkpoint(tmp_path, NOTE, w=torch.ones(999)))
    with no_larger_than(path):
        torch.nn.Linear(20, 20)
    with pytest.raises(UserError, match="of a larger model than it holds"), no_larger_than(path):
        torch.nn.Linear(10**9, 10**9, device="meta")
    with pytest.raises(UserError, match="more memory than there is"), no_larger_than(path):
        torch.nn.Linear(10**9, 10**9)
    torch.nn.Linear(99, 99)  # afterwards all is as before
