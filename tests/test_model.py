"""Generation, one step of training, checkpoints: what model.py promises for any method."""

import json
import math
import shutil
from copy import deepcopy
from dataclasses import asdict

import pytest
import torch
import torch.nn as nn
from conftest import ROOT
from test_methods import Letters, V, backbones, build

import train
from clip_vit import CLIPViT
from data.batches import Batch, answer_rows, text_rows
from data.recipes import PRESETS, RECIPES
from gpt2 import GPT2
from ituning import ITuning
from lib.cli import UserError
from lib.decoding import Beams
from lib.settings import find_method, read_command
from model import Method, SeeGPT, training_step
from weights.reading import fingerprint, read
from weights.safetensors import write

EOT = V - 1
TINY = {name: ROOT / "data" / "shapes" / f"tiny-{kind}"
        for name, kind in (("lm", "gpt2"), ("clip", "clip"))}


def speaker(name="ituning", eot=EOT, task="captions"):
    """A model whose texts end now and then, with the id eot."""
    model = build(name).eval()
    model.lm.tokenizer, model.run_info = Letters(eot), {"task": task}
    with torch.no_grad():
        model.lm.wte.weight[eot] *= 2
    return model


def noise(n, seed):
    torch.manual_seed(seed)
    return torch.randn(n, 3, 16, 16)


def slow_beam(model, image, prompt, beam, n, penalty):
    """Beam search in plain Python: no cache, every continuation of every text scored."""
    alive, done, eot = [(0.0, [])], [], model.lm.eot
    for step in range(n):
        options = []
        for score, ids in alive:
            given = torch.tensor([1 if model.run_info["task"] == "captions" else len(prompt)])
            logits, _ = model(image[None], torch.tensor([prompt + ids]), condition_len=given)
            logp = logits[0, -1].log_softmax(0)
            options += [(score + logp[t].item(), ids + [t]) for t in range(V)]
        options = sorted(options, key=lambda o: -o[0])[:2 * beam]
        alive = []
        for rank, (score, ids) in enumerate(options):
            if ids[-1] == eot or step == n - 1:
                if rank < beam:
                    done.append((score / len(ids) ** penalty, ids))
            elif len(alive) < beam:
                alive.append((score, ids))
        done = sorted(done, key=lambda d: -d[0])[:beam]
        if not alive or len(done) == beam and done[-1][0] >= alive[0][0] / (step + 1) ** penalty:
            break
    return done[0]


@torch.no_grad()
@pytest.mark.parametrize("name, beam, penalty, eot, task", [
    ("ituning", 1, 0.0, EOT, ""), ("ituning", 2, 0.0, EOT, ""), ("ituning", 3, 1.0, 0, ""),
    ("ituning", 5, 2.0, 17, ""), ("vanilla", 3, 1.0, EOT, ""), ("vcgpt", 1, 0.0, EOT, ""),
    ("vcgpt", 3, 0.0, EOT, ""), ("prefix", 3, 1.0, EOT, ""), ("dvp", 3, 0.0, EOT, "question"),
    ("dvp", 3, 0.0, EOT, "captions")])
def test_cached_batched_beam_search_equals_a_plain_one(name, beam, penalty, eot, task):
    """All caches are reordered alike, those of a stack or behind a prefix too. One beam is greedy.
    The end may be any id, the first or one in the middle of a padded vocabulary. Captions are
    learnt with the first token as their condition, so that is it behind any beginning."""
    model, images, prompt = speaker(name, eot, task), noise(6, 6), [eot, 4, 9]
    search = Beams(6, beam, 7, penalty, eot)
    model.decode(model.image_features(images), torch.tensor([prompt] * 6), search, 7)
    for image, ids, score in zip(images, search.texts, search.scores):
        slow_score, slow_ids = slow_beam(model, image, prompt, beam, 7, penalty)
        assert ids == slow_ids and math.isclose(score, slow_score, abs_tol=1e-4)
    assert name != "ituning" or len({*map(len, search.texts)}) > 1  # some ended early, some not


@pytest.mark.parametrize("how", [dict(beam=1), dict(beam=5), dict(beam=3, length_penalty=1.0)])
def test_64_images_in_a_batch_get_the_captions_they_get_alone(how):
    model, images, prompts = speaker(), noise(64, 8), ["ab", "c"] * 32
    together = model.generate(images, prompts, max_new_tokens=8, **how)
    alone = [model.generate(image[None], prompt, max_new_tokens=8, **how)[0]
             for image, prompt in zip(images, prompts)]
    assert together == alone and len(set(together)) > 30


@pytest.mark.parametrize("eot, n_vocab", [(0, V), (17, V), (EOT, V), (17, 20)])
@pytest.mark.parametrize("how", [dict(beam=3), dict(temperature=2.0)])
def test_nothing_stands_behind_the_end_of_a_text_whichever_id_it_has(how, eot, n_vocab):
    """And nothing of a vocabulary's padding, from n_vocab on, is ever said."""
    model = speaker(eot=eot)
    model.lm.tokenizer = Letters(eot, n_vocab)
    found = model.generate(noise(50, 10), max_new_tokens=9, with_ids=True, **how)
    lengths = {len(ids) for _, ids in found}
    assert len(lengths) > 3 and max(lengths) == 9  # some ended early, some not at all
    assert all(eot not in ids and text == Letters().decode(ids) for text, ids in found)
    assert max(max(ids, default=0) for _, ids in found) < n_vocab


def test_drawing_follows_the_temperature_and_top_k():
    model, images = speaker(), noise(50, 10)
    draw = lambda **how: model.generate(images, max_new_tokens=9, **how)
    assert draw(beam=1) == draw(temperature=1e-6) == draw(temperature=1.0, top_k=1)
    assert draw(beam=1) != draw(temperature=2.0)


def test_no_image_for_a_method_that_needs_one_is_refused():
    model = build("ituning")
    for ask in (lambda: model.generate(None, "A"), lambda: model(None, torch.ones(1, 1))):
        with pytest.raises(UserError, match="this method needs an image"):
            ask()


def test_too_long_a_generation_is_refused():
    with pytest.raises(UserError, match="positions"):
        speaker().generate(noise(1, 0), max_new_tokens=99)


def test_frozen_weights_held_in_bfloat16_give_what_autocast_gives():
    """Bit for bit, and only matrices of frozen layers change their type."""
    model, images, idx = build("ituning").eval(), noise(4, 11), torch.randint(0, V, (4, 6))
    with torch.autocast("cpu", torch.bfloat16):
        before = model(images, idx)[0]
        assert torch.equal(model.cast_frozen(torch.bfloat16)(images, idx)[0], before)
    cast = {n for n, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert {"lm.h.0.attn.c_attn.weight", "vit.transformer.resblocks.1.attn.in_proj_weight"} <= cast
    assert not any(n.startswith("method.") or "ln" in n or "embedding" in n or "wpe" in n
                   for n in cast)
    model.lm.wte.rounded.zero_()  # the head reads this copy, and does not make one for every token
    with torch.autocast("cpu", torch.bfloat16):
        assert not model(images, idx)[0].any()


# ---------------------------------------------------------------------------- a method of one's own

class Chooser(Method):
    """Chooses an answer by the image alone; what it says beyond that is Method's own."""

    answers = ("yes", "no", "maybe")

    def __init__(self, config, lm, vit):
        super().__init__()
        self.map = nn.Linear(vit.width, 3)

    def encode_image(self, feats):
        return self.map(feats.mean(1))

    def logits(self, lm, x, ctx, state):
        return ctx.repeat_interleave(len(x) // len(ctx), 0)


def chooser(soft=False):
    torch.manual_seed(0)
    vit, lm = backbones()
    model = SeeGPT(vit, lm, Chooser(Chooser.Config(), lm, vit))
    model.method.soft_answers = soft
    return model


@pytest.mark.parametrize("soft", [False, True])
def test_a_method_with_answers_needs_to_say_no_more_than_those(soft):
    """Soft: binary cross-entropy summed over answers; else cross-entropy. Filler rows do not count,
    answers outside the classes do: for such a row nothing is right."""
    model, images = chooser(soft), noise(2, 1)
    targets = torch.tensor([[1.0, 0, 0], [0.4, 0.6, 0], [0, 0, 0], [-1, -1, -1]])
    logits, loss = model(images, torch.full((4, 1), EOT), targets)
    assert logits.shape == (4, 3) and torch.equal(logits[0], logits[1])
    p = logits.sigmoid() if soft else logits.softmax(-1)
    by_hand = -targets * p.log() - (1 - targets) * (1 - p).log() * soft
    torch.testing.assert_close(loss, by_hand[:3].sum() / 3)
    for found in (model.answer(images, ["ab", "abc"], top=3), model.choose(images, ["", "x"], 3)):
        for row, q in zip(found, p[::2].tolist()):
            assert row == sorted(zip(model.method.answers, q), key=lambda pair: -pair[1])
    assert [[row[0]] for row in found] == model.choose(images, ["", ""])
    with pytest.raises(UserError, match="ask it questions"):
        model.generate(images)
    with pytest.raises(UserError, match="writes its answers"):
        build("ituning").answer(images, ["ab", "abc"])


CLASSES = {answer: i for i, answer in enumerate(Chooser.answers)}


@pytest.mark.parametrize("model, rows", [
    (build("ituning"), lambda texts: text_rows(texts, 3, Letters(), 40)),
    (chooser(), lambda texts: answer_rows(texts, 3, Letters(), CLASSES, False))])
def test_a_step_of_unequal_micro_batches_is_that_of_one_big_batch(model, rows):
    """The loss is a mean over all targets, so a micro-batch counts by its number of them. The norm
    of the gradient is limited, but told as it was."""
    images, texts = noise(3, 2), [[("ab", {"yes": 1})] * n for n in (1, 3, 2)]
    begin = {n: p.detach().clone() for n, p in model.trained().items()}
    mean = model(images, *rows(texts))[1].item()

    def step(*parts):
        model.restore(begin, "begin")
        optimizer = torch.optim.SGD(model.trained().values(), lr=1.0)
        batch = [Batch(images[part], *rows(texts[part])) for part in parts]
        found = training_step(model, batch, optimizer, 0.01)
        now = model.trained()
        return *found, torch.cat([(p - now[n].detach()).flatten() for n, p in begin.items()])

    loss, count, norm, moved = step(slice(0, 3))
    torch.testing.assert_close(step(slice(0, 1), slice(1, 3)), (loss, count, norm, moved),
                               rtol=1e-4, atol=1e-7)
    assert loss / count == pytest.approx(mean) and count == 6 * (1 if model.method.answers else 5)
    assert moved.norm() == pytest.approx(0.01, 1e-3) and norm > 0.01


OWN = """
from dataclasses import dataclass
import model
from lib.cli import opt
class Method(model.Method):
    n_prompt = 2
    @dataclass
    class Config:
        strength: float = opt(1.0, "of it")
"""


@pytest.mark.parametrize("name, text, says", [
    ("own_good", OWN, None), ("own_empty", "", "needs a class Method"),
    ("own_outside", OWN + "class Config: pass", "with its Config inside"),
    ("own_clash", OWN.replace("strength", "lr"), "two settings are called lr"),
    ("own_alias", OWN.replace("strength", "gpt2"), "two settings are called gpt2"),
    ("own_plain", OWN.replace('opt(1.0, "of it")', "1.0"), None),  # a default without a help text
    ("own_untyped", OWN.replace(": float", ""), "line [78] cannot .* no type annotation"),
    ("own_needy", OWN.replace(' = opt(1.0, "of it")', ""), "strength has no default: give it one"),
    ("own_odd", OWN.replace("float", "dict"), "strength is of type .*: a flag can be bool, int"),
    ("own_loose", OWN + "        depth = 3\n", "depth = 3 in Config.*write depth: int = 3"),
    ("own_undecorated", OWN.replace("@dataclass", ""), "write @dataclass above the class Config"),
    ("own_orphan", OWN.replace("model.Method", ""), "derived from model.Method"),
    ("own_typo", OWN + "def :", r"own_typo.py cannot be imported: SyntaxError"),
    ("own_crash", OWN + "1 / 0", r"own_crash.py line 10 cannot be imported: ZeroDivisionError"),
    ("statistics", OWN, "another module is called statistics, too; rename the file"),
    ("itunning", None, "did you mean ituning"), ("ituning.py", None, "did you mean itun"),
    ("", None, "there is no method ''"), ("json.decoder", None, "there is no method"),
    ("../x", None, "there is no method")])
def test_a_method_of_ones_own_is_found_by_its_file_name_or_refused_in_a_line(
        name, text, says, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    read = lambda: read_command(train.Config, RECIPES, PRESETS,
                                argv=["--method", name, "--out", str(tmp_path / "run")])
    if says is None:
        assert read()[1].strength == 1.0 and find_method(name).n_prompt == 2
        return
    with pytest.raises(UserError, match=f"^.*{says}.*$"):  # one line: a dot is no newline
        read()


def test_a_method_that_reads_settings_but_has_no_config_is_told_so():
    with pytest.raises(UserError, match="needs a class Config inside, with a field strength"):
        Method.Config().strength


def test_a_checkpoint_s_method_is_no_module_from_anywhere_and_is_named_before_it_runs(
        tmp_path, monkeypatch, capsys):
    """What a checkpoint says is the word of whoever made it."""
    (tmp_path / "anywhere").mkdir()
    (tmp_path / "anywhere" / "payload.py").write_text("print('it ran')\n" + OWN)
    monkeypatch.syspath_prepend(tmp_path / "anywhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no method 'payload'"):
        find_method("payload")
    assert "it ran" not in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "anywhere")
    find_method("payload")
    said = capsys.readouterr()
    assert said.out == "it ran\n" and f"payload: from {tmp_path}" in said.err


# ---------------------------------------------------------------------------- checkpoints

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model on the committed backbones, and the run's folder as train.py leaves it."""
    lm, vit = GPT2.from_pretrained(TINY["lm"]), CLIPViT.from_pretrained(TINY["clip"])
    config = ITuning.Config(first_layer=1)
    model = SeeGPT(vit, lm, ITuning(config, lm, vit)).eval()
    with torch.no_grad():
        for p in model.trained().values():
            p.add_(0.1 * torch.randn_like(p))
    model.run_info = {"method": "ituning", "config": asdict(config), "dataset": "x",
                      "train_lm": False, "train_vision": False,
                      "lm": {"name": str(TINY["lm"]), "sha256": fingerprint(lm)},
                      "clip": {"name": str(TINY["clip"]), "sha256": fingerprint(vit)}}
    run = tmp_path_factory.mktemp("trained") / "run"
    model.save(run / "last.safetensors")
    return model, run


def test_a_run_folder_is_all_that_load_needs(trained):
    model, run = trained
    loaded, images = SeeGPT.load(run), torch.randn(2, 3, 64, 64)
    idx = torch.randint(0, 50, (2, 4))
    assert torch.equal(loaded(images, idx)[0], model(images, idx)[0])
    assert loaded.run_info == model.run_info and not loaded.training


def test_frozen_weights_may_lie_elsewhere_but_not_be_others(trained, tmp_path):
    """An adapter means nothing on top of other weights: one changed number is enough."""
    shutil.copytree(TINY["lm"], tmp_path / "moved")
    SeeGPT.load(trained[1], lm=tmp_path / "moved")
    tensors = read(tmp_path / "moved")
    next(iter(tensors.values())).view(-1)[0] += 1
    write(tmp_path / "moved" / "model.safetensors", tensors)
    with pytest.raises(UserError, match="other lm weights"):
        SeeGPT.load(trained[1], lm=tmp_path / "moved")


@pytest.mark.parametrize("change, says", [
    (lambda tensors, info: info.clear(), "not a checkpoint of train.py"),
    (lambda tensors, info: info.pop("lm"), "earlier version of train.py"),
    (lambda tensors, info: info["config"].update(no_such=1), "has other settings than"),
    (lambda tensors, info: tensors.popitem(), "does not fit this model")])
def test_a_file_that_is_no_checkpoint_of_this_model_is_refused(trained, tmp_path, change, says):
    model, run = trained
    tensors, info = read(run / "last.safetensors"), deepcopy(model.run_info)
    change(tensors, info)
    write(tmp_path / "x.safetensors", tensors, {"seegpt": json.dumps(info)} if info else {})
    with pytest.raises(UserError, match=says):
        SeeGPT.load(tmp_path / "x.safetensors")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint here"):
        SeeGPT.load(tmp_path)
