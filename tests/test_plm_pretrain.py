"""Tiny BERT, T5 and LLaMA of the shapes world: what they are asked for, their files, and DVP on
them from one command to the answer to a question.
"""

import random

import pytest
import test_dvp
import torch
from test_train import fit, same

from data.shapes import plms, pretrain
from data.shapes.texts import discourse
from lib.cli import UserError, parse
from lib.runs import read_log
from model import SeeGPT
from plm import CLASSES, load_lm
from prompts import DVP
from weights.checkpoints import read_run_info
from weights.kinds import kind_of

KINDS = ("bert", "t5", "llama")
pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="pre-training needs it")
questions, rewrite = test_dvp.questions, test_dvp.rewrite  # fixtures


def text(rng):
    return discourse(pretrain.scene_for(rng), rng)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two steps of each, on narrow models."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        full = plms.tiny
        patch.setattr(plms, "tiny", lambda *args: full(*args, width=32, n_layer=3))
        patch.setattr(pretrain, "corpus", lambda n, seed, real=pretrain.corpus: real(300, seed))
        for kind in KINDS:
            found[kind] = tmp_path_factory.mktemp(kind)
            pretrain.main(*parse(pretrain.Config, argv=[kind, "--steps", "2", "--out",
                                                        str(found[kind])]))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_back_as_the_model_that_was_written(folders, kind):
    """Every word of the discourse is one token, and a text survives; the loss is near log V."""
    lm = load_lm(folders[kind], DVP)
    assert kind_of(folders[kind]) == kind and type(lm) is CLASSES[kind]
    words = text(random.Random(3))
    ids = lm.tokenizer.encode_ordinary(words)
    said = lm.tokenizer.decode(ids)  # BERT puts a space before marks, too
    assert said.replace(" ", "") == words.replace(" ", "") and (kind == "bert" or said == words)
    assert len(ids) <= len(plms.WORDS(words)) + (kind == "llama") * len(words)
    with torch.no_grad():
        first, again = (plms.loss(kind, lm, random.Random(0), text) for _ in range(2))
    assert 1 < first < 12 and abs(again - first) < 1e-5


def test_bert_is_asked_for_15_percent_mostly_behind_masks(folders):
    tokenizer = load_lm(folders["bert"], DVP).tokenizer
    idx, targets = plms.bert_batch(random.Random(0), tokenizer, text, rows=200)
    asked = targets != -1
    assert abs(asked.float().mean() - 0.145) < 0.01 and asked.any(1).all()
    share = lambda hit: (hit & asked).sum() / asked.sum()
    assert abs(share(idx == tokenizer.mask) - 0.8) < 0.03
    assert abs(share(idx == targets) - 0.1) < 0.03
    assert (idx[:, 0] == tokenizer.cls).all() and (idx[:, -1] == tokenizer.sep).all()
    assert not asked[:, 0].any() and not asked[:, -1].any()


def test_what_t5_reads_and_writes_is_the_text_together(folders):
    """Each hole's sentinel is replaced by what the decoder writes behind the same one."""
    sentinels = [*range(900, 920)]
    for seed in range(200):
        rng = random.Random(seed)
        ids = [rng.randrange(10, 800) for _ in range(rng.choice((12, 30, 64)))]
        read, write = plms.corrupt(rng, ids, sentinels)
        assert read[-1] == write[-1] == plms.EOS and write[-2] in sentinels
        holes, current = {}, None
        for i in write[:-1]:
            current = holes.setdefault(i, []) if i in sentinels else current.append(i) or current
        joined = [i for token in read[:-1] for i in holes.get(token, [token])]
        assert joined == ids and list(holes) == sentinels[:len(holes)]


@pytest.mark.parametrize("kind", KINDS)
def test_dvp_is_searched_trained_and_asked_on_it(questions, folders, kind, tmp_path):
    """The recipe of the kind is found; a layer is found; load brings back the same answers."""
    flags = ["--method", "dvp", "--lm", folders[kind], "--readout", "head", "--search",
             "--search_epochs", 1, "--steps", 2, "--adapter", 8]
    tensors, _ = fit(questions, tmp_path / "a", *flags)
    again, _ = fit(questions, tmp_path / "b", *flags)
    assert same(tensors, again)
    config = read_run_info(tmp_path / "a")["config"]
    assert config["types"] == (kind != "llama") and config["silu"] == (kind == "llama")
    assert any("accuracy" in line for line in read_log(tmp_path / "a" / "log.jsonl"))
    model = SeeGPT.load(tmp_path / "a")
    images = torch.randn(2, 3, 64, 64)
    answers = model.answer(images, ["is there a star?", "what colour is the small circle?"])
    alone = model.answer(images[1:], ["what colour is the small circle?"])
    assert [a for a, _ in answers[1]] == [a for a, _ in alone[0]]


def test_a_question_that_would_push_berts_sep_out_is_left_out(rewrite, folders, tmp_path, capsys):
    """One of 127 tokens with [CLS] fits into 128 positions, one of 128 does not."""
    encode = load_lm(folders["bert"], DVP).tokenizer.encode_ordinary
    for more, left_out in ((0, False), (1, True)):
        words = 127 - 1 - len(encode("question: answer:")) + more
        folder = rewrite({"question": "a " * words}, every=2)
        fit(folder, tmp_path / f"{more}", "--method", "dvp", "--lm", folders["bert"], "--steps", 1)
        assert ("longer than 127 tokens" in capsys.readouterr().err) == left_out


def test_t5_writes_an_answer_and_bert_is_refused(questions, folders, tmp_path):
    flags = ["--method", "dvp", "--steps", 1, "--readout", "lm"]
    fit(questions, tmp_path / "t5", *flags, "--lm", folders["t5"])
    model = SeeGPT.load(tmp_path / "t5")
    written = model.generate(torch.randn(2, 3, 64, 64), ["question: is it red? answer:"] * 2,
                             beam=2, max_new_tokens=3, with_ids=True)
    assert len(written) == 2 and all(len(ids) <= 3 for _, ids in written)
    for more, says in ((["--method", "dvp", "--readout", "lm"], "BERT fills in words"),
                       (["--method", "ituning"], "is a BERT, and this method needs a GPT2 or")):
        with pytest.raises(UserError, match=says):
            fit(questions, tmp_path / "bert", *more, "--steps", 1, "--lm", folders["bert"])
