"""Rows of text as tensors, and which texts and images a step sees."""

import numpy as np
import pytest
import torch
from test_train import ENC

from data.batches import Batches, answer_rows, epoch_order, load_entries, text_rows
from data.common import write_split
from lib.cli import UserError
from train import Config

EOT = ENC.eot_token
ASKED = "question: is it red? answer:"


def caption(text):
    return "", {text: 1}


# ---------------------------------------------------------------------------- rows of text

def test_a_row_is_asked_for_every_word_and_the_end_and_for_no_padding():
    """"a star" -> idx [EOT, a, star], targets [a, star, EOT]; with fewer texts there is filler.
    pitfall: id 0 is "!" in GPT-2's vocabulary. Who pads with 0 never learns it."""
    (a,), (star,), (bang,) = map(ENC.encode_ordinary, ("a", " star", "!"))
    texts = [[caption("a star"), caption("!")], [caption("a")]]
    idx, targets, condition_len, wanted = text_rows(texts, 2, ENC, 40)
    assert idx.tolist() == [[EOT, a, star], [EOT, bang, EOT], [EOT, a, EOT], [EOT] * 3]
    assert targets.tolist() == [[a, star, EOT], [bang, EOT, -1], [a, EOT, -1], [-1] * 3]
    assert condition_len.tolist() == [1] * 4 and wanted.tolist() == [0, 1, 2, 3, 4, 6, 7]
    # what is cut does not end there
    assert text_rows(texts[:1], 2, ENC, max_tokens=1)[1].tolist() == [[a, -1], [bang, EOT]]


def test_of_a_question_only_the_answer_that_most_people_gave_is_asked_for():
    idx, targets, (n,), wanted = text_rows([[(ASKED, {"no": 1, "yes": 2})]], 1, ENC, 40)
    yes = ENC.encode_ordinary(" yes")
    assert ENC.decode(idx[0, 1:].tolist()) == f"{ASKED} yes"
    assert n == 1 + len(ENC.encode_ordinary(ASKED))
    assert targets[0].tolist() == [-1] * (n - 1) + [*yes, EOT]
    assert wanted.tolist() == [*range(n - 1, n + len(yes))]


@pytest.mark.parametrize("soft, rows", [
    (True, [[1, 0.3, 0.6], [0, 0, 0], [-1, -1, -1]]),  # five, one and two people
    (False, [[1, 0, 0], [0, 0, 0], [-1, -1, -1]])])
def test_how_right_an_answer_is_depends_on_how_many_gave_it(soft, rows):
    """An answer outside the classes is none of them; answers equally frequent share the one."""
    texts = [[(ASKED, {"yes": 5, "no": 1, "red": 2}), ("and?", {"blue": 4})]]
    classes = {"yes": 0, "no": 1, "red": 2}
    idx, targets, condition_len = answer_rows(texts, 3, ENC, classes, soft)
    torch.testing.assert_close(targets, torch.tensor(rows, dtype=torch.float32))
    assert ENC.decode(idx[1, :condition_len[1]].tolist()) == "<|endoftext|>and?"
    assert idx[2].unique() == EOT and condition_len[2] == 1
    _, tied, _ = answer_rows([[(ASKED, {"yes": 1, "no": 1})]], 1, ENC, classes, soft=False)
    assert tied.tolist() == [[0.5, 0.5, 0]]


def test_texts_that_are_too_long_are_left_out_and_counted(capsys):
    """And what is left keeps the features of its own image."""
    entries = [{"image": f"{i}.png", "texts": [(f"{'long ' * n}?", {"yes": 1}) for n in lengths]}
               for i, lengths in enumerate([(90,), (1, 90), (2,), (3, 90)])]
    feats = np.arange(4).reshape(-1, 1, 1)
    data = Batches(entries, ENC, Config(batch=3, rows=2), 64, feats, room=128)
    assert [len(entry["texts"]) for entry in data.entries] == [1, 1, 1]
    assert capsys.readouterr().err == ("left out: 3 of 6 texts, which are longer than 88 tokens\n")
    assert sorted(images_of(data[0])) == [1, 2, 3]
    asked = {int(i): ENC.decode(row.tolist()).count("long")
             for i, row in zip(data[0][0].images, data[0][0].idx[::2])}
    assert asked == {1: 1, 2: 2, 3: 3}
    with pytest.raises(UserError, match="every text is longer than the 0 tok.*lower --max_tokens 40"):
        Batches(entries, ENC, Config(), 64, feats, room=30)
    assert len(Batches(entries, ENC, Config(), 64, feats, answers=["yes"],
                       room=999).entries) == 4


# ---------------------------------------------------------------------------- batches

def batches(n=18, **settings):
    """n images with 1 to 7 captions; the features of image i are the number i."""
    entries = [{"image": f"{i}.png", "texts": [caption(f"{i} {j}") for j in range(1 + i % 7)]}
               for i in range(n)]
    config = Config(**{"batch": 4, "rows": 3, **settings})
    return Batches(entries, ENC, config, 64, np.arange(n).reshape(-1, 1, 1))


def images_of(batch):
    return [int(i) for micro in batch for i in micro.images]


def test_batches_are_a_function_of_the_step_and_every_epoch_sees_every_image():
    data = batches()
    places = [epoch_order(data.config.seed, epoch, 18).tolist() for epoch in range(2)]
    assert all(sorted(p) == list(range(18)) for p in places) and places[0] != places[1]
    assert images_of(data[4]) == [*places[0][16:], *places[1][:2]]  # on the border of two epochs
    assert torch.equal(data[4][0].idx, batches()[4][0].idx)


def test_surplus_captions_come_up_in_other_epochs():
    data = batches(7, batch=7)
    seen = {ENC.decode([t for t in row if t != EOT])
            for epoch in range(20) for row in data[epoch][0].idx.tolist()}
    assert {text for text in seen if text.startswith("6")} == {f"6 {j}" for j in range(7)}


def test_processes_and_micro_steps_share_the_images_of_a_step():
    whole, parts = sorted(images_of(batches()[2])), []
    for rank in range(2):
        data = batches(accumulate=2)
        data.rank, data.size = rank, 2
        assert len(data[2]) == 2
        parts += images_of(data[2])
    assert sorted(parts) == whole


def test_texts_without_an_image_are_a_micro_batch_of_their_own():
    data = batches(6, batch=6)
    for entry in data.entries[4:]:
        entry["image"] = None
    seeing, blind = data[0]
    assert sorted(images_of([seeing])) == [0, 1, 2, 3] and blind.images is None
    assert len(blind.idx) == 2 * 3


def test_an_image_that_cannot_be_read_comes_as_a_line_that_names_it_and_the_way_out(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    data = Batches([{"image": tmp_path / "a.png", "texts": [caption("a")]}], ENC, Config(), 64)
    assert f"{tmp_path / 'a.png'}: not a readable image" in data[0]
    assert "sound file in its place and --resume" in data[0] and "--check" in data[0]


def test_of_a_dataset_some_validation_items_of_both_kinds_are_kept(tmp_path):
    for split, n in (("train", 2), ("val", 20)):
        write_split(tmp_path, split, [
            {"id": i, "image": f"{i}.png" if i < 12 else None, "question": f"{i}?",
             "answers": {"yes": 1}} for i in range(n)])
    entries, facts = load_entries(tmp_path, 5)
    assert [e["texts"][0][0].split()[1] for e in entries["val"]] == "0? 4? 8? 12? 16?".split()
    assert facts["has_blind_items"] and not facts["has_choices"] and not facts["has_scenes"]
    assert facts["task"] == "question" and facts["answers"]() == ["yes"]
