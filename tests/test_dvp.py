"""DVP: sizes that follow from the paper, what may flow where, and the bandit that finds the layer."""

import json
import math

import pytest
import torch

import train
from lib.cli import UserError
from clip_vit import CLIPViT
from gpt2 import GPT2, Cache, GPT2Config
from model import TextState, SeeGPT
from prompts import DVP, Bandit, reward, soft_accuracy
from test_methods import B, K, T, V, build, inputs
from test_train import ENC, ROOT, Path, fit, same  # noqa: F401

COND = torch.tensor([3, 5, 2, 4, 4, 1])  # lengths of the questions of inputs()'s six rows


def count(module):
    return sum(p.numel() for p in module.parameters())


def classifier(seed=0, **settings):
    """build("dvp") with a head of five answers."""
    model = unperturbed(seed, readout="head", answers=list("abcde"), **settings)
    with torch.no_grad():
        for p in model.method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def unperturbed(seed=0, **settings):
    """A random GPT-2 with a DVP as it is before its first step."""
    model = build("dvp", seed)
    torch.manual_seed(seed)
    model.method = DVP(DVP.Config(**settings), model.lm, model.vit)
    return model


# ---------------------------------------------------------------------------- sizes

def test_the_parts_have_the_sizes_of_the_paper_at_768():
    """Cross-attention 2,362,368; 24 adapters 3,559,680; 25 norms 38,400; VQA head 5,993,529."""
    with torch.device("meta"):
        gpt2, vit = GPT2(GPT2Config()), CLIPViT(224, 16, 768, 12, 12, 512)
        method = DVP(DVP.Config(), gpt2, vit)
        adapters = [a for layer in method.adapted for a in (layer.after_attn, layer.after_mlp)]
        assert count(method.xattn) == 2_362_368
        assert sum(map(count, adapters)) == 3_559_680 and adapters[0].down.out_features == 96
        assert count(method) - count(method.xattn) - 3_559_680 == 38_400
        assert count(method) == 5_960_448
        method = DVP(DVP.Config(readout="head", answers=[str(i) for i in range(3129)]), gpt2, vit)
        assert count(method.classify) == 5_993_529 and count(method) == 11_953_977
        assert count(DVP(DVP.Config(adapter=0), gpt2, vit)) == 2_362_368


def test_the_trained_norms_begin_as_copies_and_are_not_those_of_gpt2():
    model = unperturbed()
    layer, block = model.method.adapted[1], model.lm.h[1]
    assert torch.equal(layer.ln_1.weight, block.ln_1.weight) and layer.ln_1.weight is not block.ln_1.weight
    assert layer.ln_1.weight.requires_grad and not block.ln_1.weight.requires_grad


# ---------------------------------------------------------------------------- what flows where

def states(model, images, idx, cond):
    """The states that enter every layer."""
    seen, block = [], model.method.block
    model.method.block = lambda l, b, x, ctx, state: (seen.append(x), block(l, b, x, ctx, state))[1]
    model(images, idx, condition_len=cond)
    del model.method.block
    return seen


def test_below_layer_k_there_is_text_only_and_above_one_token_more():
    model = build("dvp").eval()  # K = 1
    images, idx, _ = inputs()
    seen = states(model, images, idx, COND)
    assert [x.shape[1] for x in seen] == [T, T, T + 1]  # the state that enters layer K has no prompt yet
    other = states(model, images + 1, idx, COND)
    assert torch.equal(seen[1], other[1]) and not torch.equal(seen[2], other[2])


def test_the_prompt_sees_itself_alone_and_every_word_sees_the_prompt():
    model = build("dvp").eval()
    images, idx, _ = inputs()
    _, _, x = states(model, images, idx, COND)
    changed = idx.clone()
    changed[:, -1] = (changed[:, -1] + 1) % V  # a word behind all questions
    _, _, y = states(model, images, changed, COND)
    assert torch.equal(x[:, 0], y[:, 0])
    moved = (model(images, idx, cond=COND)[0] - model(images + 1, idx, cond=COND)[0]).abs().amax(-1)
    assert (moved > 1e-4).all()  # at every position, the first word's too


def test_the_last_word_of_the_question_asks():
    """Another last word, another prompt; another word behind it, the same prompt, bit for bit."""
    model = build("dvp").eval()
    images, idx, _ = inputs()
    prompt = states(model, images, idx, COND)[2][:, 0]
    for r, n in enumerate(COND.tolist()):
        for place, same in ((n - 1, False), (n, True)):
            if place < T:
                changed = idx.clone()
                changed[r, place] = (changed[r, place] + 5) % V
                assert torch.equal(states(model, images, changed, COND)[2][r, 0], prompt[r]) == same


def test_a_prompt_of_a_captioner_does_not_ask():
    """Captions are learnt with the first token as the query, so it stays the query behind any beginning."""
    model = build("dvp").eval()
    images, idx, _ = inputs()
    for task, cond in (("captions", 1), ("question", 3)):
        model.run_info = {"task": task}
        _, _, _, logits = model.start(images, idx[::K, :3], 4)
        want = model(images, idx[::K, :3], cond=torch.full((B,), cond))[0][:, -1]
        torch.testing.assert_close(logits, want)


@pytest.mark.parametrize("settings", [{}, dict(adapter=0), dict(visual="all")])
def test_no_answer_reaches_the_query(settings):
    """Changing answer tokens changes no logits before them."""
    model = build("dvp").eval().double()
    model.method = DVP(DVP.Config(insert_layer=2, **settings), model.lm, model.vit).double()
    images, idx, _ = inputs()
    logits = model(images.double(), idx, cond=COND)[0]
    for r, n in enumerate(COND.tolist()):
        for j in range(n, T):
            changed = idx.clone()
            changed[r, j:] = (changed[r, j:] + 5) % V
            other = model(images.double(), changed, cond=COND)[0]
            torch.testing.assert_close(other[r, :j], logits[r, :j], rtol=0, atol=1e-9)


def test_a_row_is_asked_at_its_own_last_word_whatever_the_padding():
    """The query is gathered per row, not at -1: more padding changes nothing."""
    model = classifier(insert_layer=1).eval()
    images, idx, _ = inputs()
    short = model(images, idx[:, :5], cond=COND)[0]
    pad = model(images, torch.cat([idx[:, :5], torch.full((6, 4), V - 1)], 1), cond=COND)[0]
    torch.testing.assert_close(short, pad)
    alone = torch.cat([model(images[r // K][None], idx[r:r + 1, :n], cond=COND[r:r + 1])[0] for r, n in enumerate(COND.tolist())])
    torch.testing.assert_close(short, alone, rtol=1e-4, atol=1e-5)


def test_the_prompt_moves_no_word():
    """With the prompt hidden, adapters silent and norms as they were, GPT-2's logits come back exactly:
    positions count words only."""
    model = unperturbed(insert_layer=1).eval()
    for layer in model.method.adapted:
        for adapter in (layer.after_attn, layer.after_mlp):
            torch.nn.init.zeros_(adapter.up.weight)
    images, idx, _ = inputs()
    assert torch.equal(model(None, idx)[0], model.lm(idx))  # an item without an image: text alone
    assert not torch.equal(model(images, idx)[0], model.lm(idx))


def test_items_without_an_image_are_read_as_text_alone():
    model = build("dvp").eval()
    _, idx, targets = inputs()
    logits, loss = model(None, idx, targets, all_logits=True)
    assert logits.shape == (B * K, T, V) and loss.isfinite()
    out, _ = model.beam(None, idx[:, :3], beam=2, max_new_tokens=4)
    assert len(out) == B * K


def test_gradient_comes_through_every_later_word_and_stops_below_layer_k():
    """Without adapters and norms nothing below K learns: no layer below K keeps anything for the backward pass."""
    model = build("dvp-full").train()  # K = 2 of 3 layers
    images, idx, _ = inputs()
    seen = states(model, images, idx, COND)
    assert not seen[1].requires_grad and not seen[2].requires_grad  # nothing that learns has been used yet
    for place in range(T):
        model.zero_grad()
        model(images, idx, cond=COND)[0][:, place].sum().backward()
        assert model.method.xattn[0].o.weight.grad.abs().max() > 0


def test_cached_generation_equals_recomputation_with_questions_of_unequal_length():
    """The first pass reads the question with the prompt, the next ones one word each."""
    model = build("dvp").eval().double()
    images, idx, _ = inputs()
    images, cond = images.double(), torch.tensor([4, 2, 3, 1, 4, 3])
    full = model(images, idx, condition_len=cond)[0]
    ctx = model.method.encode_image(model.image_features(images))
    cache = Cache(model.method.layers(model.lm), T + model.method.n_prompt)
    parts = [model.forward_text(idx[:, :4], ctx, TextState(cache, 0, cond))]
    parts += [model.forward_text(idx[:, t:t + 1], ctx, TextState(cache, t, cond)) for t in range(4, T)]
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=0, atol=1e-9)
    assert cache.len == [T, T + 1, T + 1]


# ---------------------------------------------------------------------------- choosing an answer

@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_of_chosen_answers(soft):
    """Soft: binary cross-entropy summed over answers; else cross-entropy. Filler rows do not count."""
    model = classifier(soft=soft).eval()
    images, idx, _ = inputs()
    targets = torch.eye(5)[[0, 1, 2, 3, 4, 0]]
    targets[1, 3] = 0.3 if soft else 0.0
    targets[5] = -1
    logits, loss = model(images, idx, targets, COND)
    want = []
    for r in range(5):
        p = logits[r].sigmoid() if soft else logits[r].softmax(0)
        want.append(-sum(t * p[i].log() + (1 - t) * (1 - p[i]).log() if soft else t * p[i].log()
                         for i, t in enumerate(targets[r])))
    torch.testing.assert_close(loss, torch.stack(want).mean())
    loss.backward()
    assert model.method.classify[3].weight.grad.abs().max() > 0


def test_answers_come_with_probabilities_best_first_whatever_the_length_of_the_question():
    model = classifier().eval()
    model.lm.tokenizer = Letters()
    images, _, _ = inputs()
    found = model.answer(images[[0, 1, 0]], ["ab", "abc", "ab"], top=5)
    assert found[0] == found[2] and {a for a, _ in found[0]} == set("abcde")
    for row in found:
        p = [p for _, p in row]
        assert p == sorted(p, reverse=True) and abs(sum(p) - 1) < 1e-5
    one, = model.answer(images[1:], ["abc"], top=2)
    assert [a for a, _ in one] == [a for a, _ in found[1][:2]]
    with pytest.raises(UserError, match="writes its answers"):
        build("dvp").answer(images, ["ab", "ab"])


class Letters:
    eot_token = V - 1

    def encode_ordinary(self, text):
        return [ord(c) % (V - 1) for c in text]


def test_soft_accuracy_is_the_worth_of_the_likeliest_answer():
    targets = torch.tensor([[1.0, 0.3], [0.0, 0.6], [-1.0, -1.0]])
    assert soft_accuracy(torch.tensor([[2.0, 1.0], [0.0, 1.0], [9.0, 0.0]]), targets) == pytest.approx(0.8)


def test_targets_of_ten_answers_are_as_in_the_released_code():
    """0, .3, .6, .9, 1 for 0, 1, 2, 3 and more; an answer outside the vocabulary is no target."""
    texts = [[("question: is it red? answer:", {"yes": 5, "no": 3, "perhaps": 1, "maybe": 1})]]
    _, targets, cond = train.answer_rows(texts, 2, ENC, {"yes": 0, "no": 1, "maybe": 2, "red": 3}, soft=True)
    torch.testing.assert_close(targets, torch.tensor([[1.0, 0.9, 0.3, 0.0], [-1.0] * 4]))
    _, hard, _ = train.answer_rows(texts, 1, ENC, {"yes": 0, "no": 1, "maybe": 2, "red": 3}, soft=False)
    assert hard.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert cond.tolist() == [1 + len(ENC.encode_ordinary("question: is it red? answer:")), 1]


def test_of_a_question_only_the_answer_is_asked_for():
    idx, targets, cond = train.text_rows([[("question: is it red? answer:", {"no": 1, "yes": 2})]], 1, ENC, 40)
    n, yes = int(cond[0]), ENC.encode_ordinary(" yes")
    assert ENC.decode(idx[0, 1:].tolist()) == "question: is it red? answer: yes"
    assert targets[0].tolist() == [-1] * (n - 1) + [*yes, ENC.eot_token]


# ---------------------------------------------------------------------------- the search

def test_the_first_step_of_the_bandit_is_the_paper_s():
    """Scores 60, 50, 50, 50, 50 on five of twelve layers: +0.0030556 for the first, -0.00076389 for the others."""
    bandit = Bandit(12)
    layers = torch.arange(5)
    bandit.update(layers, torch.tensor([60.0, 50, 50, 50, 50], dtype=torch.float64))
    want = torch.tensor([0.0030556, *[-0.00076389] * 4, *[0.0] * 7], dtype=torch.float64)
    torch.testing.assert_close(bandit.alpha, want, rtol=0, atol=1e-7)
    for layers, scores in ((torch.zeros(5, dtype=torch.int64), [60.0, 50, 50, 50, 50]), (layers, [50.0] * 5)):
        bandit = Bandit(12)
        bandit.update(layers, torch.tensor(scores, dtype=torch.float64))
        assert bandit.alpha.abs().max() < 1e-12  # all draws on one layer, or equal scores: nothing is learnt


def test_a_planted_best_layer_is_found_in_95_of_100_seeds_and_ties_are_told():
    """50 + 5 * [layer 4] + N(0, 3) percent, twelve layers: 500 steps, of 2,100 in the paper's shortest search."""
    found = 0
    for seed in range(100):
        dice, bandit = torch.Generator().manual_seed(seed), Bandit(12)
        for _ in range(500):
            layers = bandit.draw(dice)
            scores = 50 + 5.0 * (layers == 4) + 3 * torch.randn(len(layers), generator=dice, dtype=torch.float64)
            bandit.update(layers, scores)
        found += bandit.best() == [4]
    assert found >= 95
    assert Bandit(3).best() == [0, 1, 2]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """24 train and 8 val pictures of the shapes world with three questions each."""
    import random

    from data.common import write_meta, write_split
    from data.shapes import prepare, world
    folder = tmp_path_factory.mktemp("vqa")
    rng = random.Random(0)
    for split, n in (("train", 24), ("val", 8)):
        items = []
        for i in range(n):
            scene = world.sample_from(rng, 1 + i % 2, ("train",))
            world.render(scene, rng).save(folder / f"{split}{i}.png")
            items += [{"image": f"{split}{i}.png", **x} for x in prepare.texts("vqa", scene, rng)]
        write_split(folder, split, [{"id": i, **item} for i, item in enumerate(items)])
    write_meta(folder, {"task": "vqa"})
    return folder


DVP_FLAGS = ["--method", "dvp", "--readout", "head"]


def test_a_supernet_step_moves_only_the_drawn_layers_cross_attention(questions, tmp_path, monkeypatch):
    """Step by step, since AdamW's momentum would move a layer of an earlier one, were its gradient zero, not None. The
    images that reward are none of those that train."""
    real, parts, part = train.find_layer, [], train.Batches.part

    def watched(model, *args):
        steps, own = [], lambda: {n: p.detach().clone() for n, p in model.trained().items() if ".xattn." in n}
        model.register_forward_pre_hook(lambda m, a: steps.append((m.method.K, own())) if m.training else None)
        layer = real(model, *args)
        steps.append((None, own()))
        assert len({K for K, _ in steps}) > 2  # two layers at least were drawn
        for (drawn, before), (_, after) in zip(steps, steps[1:]):
            for l in range(4):
                same = all(torch.equal(p, before[n]) for n, p in after.items() if n.startswith(f"method.xattn.{l}."))
                assert same == (l != drawn), (l, drawn)
        return layer

    monkeypatch.setattr(train.Batches, "part", lambda self, which, *a: parts.append(set(which.tolist())) or part(self, which, *a))
    monkeypatch.setattr(train, "find_layer", watched)
    fit(questions, tmp_path / "run", *DVP_FLAGS, "--search", "--search_epochs", "1", "--steps", "1")
    assert len(parts) == 2 and all(parts) and not parts[0] & parts[1] and parts[0] | parts[1] == set(range(24))


def test_rewards_are_percent():
    """Half of the answers right; a loss of 1 nat."""
    logits, targets = torch.eye(2)[[0, 0]], torch.eye(2)[[0, 1]]
    assert reward(classifier().method, logits, torch.tensor(9.0), targets) == 50
    assert reward(build("dvp").method, None, torch.tensor(1.0), None) == pytest.approx(100 / math.e)


def test_search_then_retrain_with_the_found_layer_and_resume_is_exact(questions, tmp_path, monkeypatch):
    """Stopped in the search, and again in training: the layer, the policy and the weights are those of an unbroken run."""
    flags = [*DVP_FLAGS, "--search", "--search_epochs", "1", "--steps", "6"]
    tensors, log = fit(questions, tmp_path / "a", *flags)
    found = json.loads((tmp_path / "a" / "search.json").read_text())
    assert found["layer"] in found["ties"] and len(found["policy"]) == 4 and abs(sum(found["policy"]) - 1) < 1e-9
    origin = train.run_info(tmp_path / "a")
    assert origin["config"]["insert_layer"] == found["layer"] and len(origin["config"]["answers"]) > 2
    assert not any(n.startswith("method.xattn.1.") for n in tensors)  # one cross-attention, not one a layer
    # What was learnt in the search is not inherited: the layer's own run with this seed gives the same bits.
    plain, _ = fit(questions, tmp_path / "c", *DVP_FLAGS, "--insert_layer", str(found["layer"]), "--steps", "6")
    assert same(plain, tensors)

    class Impatient(train.Stop):
        """Ctrl-C after the second step."""
        looks = 0

        def __init__(self):
            self.before = {}

        @property
        def condition_lengths(self):
            Impatient.looks += 1
            return Impatient.looks > 2

    real = train.Stop
    for _ in range(2):
        Impatient.looks = 0
        monkeypatch.setattr(train, "Stop", Impatient)
        with pytest.raises(KeyboardInterrupt):
            words = ["--resume", "--out", str(tmp_path / "b")] if (tmp_path / "b").exists() else None
            train.main(*train.command_line(words)) if words else fit(questions, tmp_path / "b", *flags)
    monkeypatch.setattr(train, "Stop", real)
    train.main(*train.command_line(["--resume", "--out", str(tmp_path / "b")]))
    assert json.loads((tmp_path / "b" / "search.json").read_text()) == found
    assert same(train.read(tmp_path / "b" / "last.safetensors"), tensors)


@pytest.mark.parametrize("words, says", [
    (["--search", "--method", "ituning"], "for dvp|dvp's one"), (["--search", "--insert_layer", "2", *DVP_FLAGS], "finds the layer"),
    (["--insert_layer", "9", *DVP_FLAGS], "layers 0 to 3"),
    (["--insert_layer", "-1", *DVP_FLAGS], "for --search"), (["--search", "--visual", "all", *DVP_FLAGS], "one prompt token"),
    (["--method", "dvp", "--readout", "head", "--answers", "x"], "two answers or more")])
def test_settings_that_cannot_be_are_refused(questions, tmp_path, words, says):
    with pytest.raises(UserError, match=says):
        fit(questions, tmp_path / "run", *words)


def test_a_search_does_not_begin_with_another_run(questions, tmp_path):
    fit(questions, tmp_path / "a", *DVP_FLAGS, "--steps", "1")
    with pytest.raises(UserError, match="begins anew"):
        fit(questions, tmp_path / "b", *DVP_FLAGS, "--search", "--init_from", str(tmp_path / "a"))


def test_questions_without_a_picture_are_learnt_beside_the_others(questions, tmp_path):
    """As in ScienceQA: half of the items have no image. I-Tuning refuses them."""
    from data.common import write_split
    from data.tasks import load_split
    for split in ("train", "val"):
        items = load_split(questions, split)
        for i, item in enumerate(items):
            item["image"] = str(item["image"]) if i % 2 else None
        write_split(tmp_path, split, items)
    _, log = fit(tmp_path, tmp_path / "run", "--method", "dvp", "--steps", "3")
    assert len(log) == 3
    with pytest.raises(UserError, match="items without an image"):
        fit(tmp_path, tmp_path / "run2", "--method", "ituning")


# ---------------------------------------------------------------------------- asking a trained model

@pytest.fixture(scope="module")
def trained(questions, tmp_path_factory):
    """A short run that chooses among the answers of the mini questions."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    fit(questions, folder, *DVP_FLAGS, "--insert_layer", "2")
    return folder


def command(module, *words):
    module.main(*module.parse(module.Config, argv=[str(w) for w in words]))


def test_evaluation_answers_every_question_and_counts_the_right_ones(questions, trained, tmp_path, capsys):
    import evaluate
    command(evaluate, "--ckpt", trained, "--dataset", questions, "--split", "val", "--json", tmp_path / "s.json", "--batch", "3")
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "s.json").read_text())["rows"][0]
    answers = json.loads((tmp_path / result["answers"]).read_text())
    items = train.load_split(questions, "val")
    assert [a["question_id"] for a in answers] == [item["id"] for item in items]
    model = SeeGPT.load(trained)
    for item, given in zip(items, answers):
        feats = evaluate.features(model, [item], "cpu")
        assert model.answer(feats, [item["question"]], top=1)[0][0][0] == given["answer"]
    right = [a["answer"] in item["answers"] for a, item in zip(answers, items)]
    assert result["scores"]["accuracy"]["score"] == pytest.approx(100 * sum(right) / len(right))
    assert f"{100 * sum(right) / len(right):.1f} [" in out and "yes or no" in out


def test_what_a_model_has_not_learnt_is_not_asked_of_it(questions, trained, tmp_path):
    """Nor a question that leaves no room for its answer, in training as in evaluation: said before the first step."""
    import evaluate
    from data.common import write_split
    items = [{k: str(v) if k == "image" else v for k, v in item.items()} for item in train.load_split(questions, "val")]
    write_split(tmp_path, "test", [{"id": 1, "image": items[0]["image"], "hypothesis": "a star", "label": "entailment"}])
    write_split(tmp_path, "train", items)
    with pytest.raises(UserError, match="trained on answers to questions; .* asks for labels of hypotheses"):
        command(evaluate, "--ckpt", trained, "--dataset", tmp_path)
    items[-1]["question"] = "is there a star? " * 100
    for split in ("train", "val", "test"):
        write_split(tmp_path, split, items)
    with pytest.raises(UserError, match="'question: is there a star.*shorten it"):
        fit(tmp_path, tmp_path / "run", *DVP_FLAGS)
    with pytest.raises(UserError, match="'question: is there a star.*shorten it"):
        command(evaluate, "--ckpt", trained, "--dataset", tmp_path)
    items[-1] = {**items[0], "choices": ["a", "b"]}
    write_split(tmp_path, "train", items)
    with pytest.raises(UserError, match="questions with choices are written"):
        fit(tmp_path, tmp_path / "run", *DVP_FLAGS)


def test_a_split_without_answers_is_answered_but_not_scored(questions, trained, tmp_path, capsys):
    import evaluate
    from data.common import write_split
    items = [{k: str(v) if k == "image" else v for k, v in item.items() if k != "answers"}
             for item in train.load_split(questions, "val")]
    write_split(tmp_path, "test", items)
    write_split(tmp_path, "train", items[:1])
    with pytest.raises(UserError, match="no answers to compare with; --json"):
        command(evaluate, "--ckpt", trained, "--dataset", tmp_path)
    command(evaluate, "--ckpt", trained, "--dataset", tmp_path, "--json", tmp_path / "s.json")
    row, = json.loads((tmp_path / "s.json").read_text())["rows"]
    out = capsys.readouterr().out
    assert "no answers to compare with" in out and "95 %" not in out
    assert row["scores"] == {} and len(json.loads((tmp_path / row["answers"]).read_text())) == len(items)


def test_vqa_accuracy_is_used_where_ten_people_answered(questions, trained):
    import evaluate
    item = {"id": 1, "image": None, "question": "red?", "answers": {"yes": 3}, "raw_answers": ["yes"] * 3 + ["No."] * 7}
    scores, right = evaluate.score_answers(["Yes", "no", "green"], [item] * 3)
    assert right.tolist() == pytest.approx([0.9, 1.0, 0.0]) and scores["accuracy"][0] == pytest.approx(190 / 3)
    choice = {"id": 1, "image": None, "question": "which?", "choices": ["a", "b"], "answers": {"B": 1}}
    texts = [" B. because of\nthis", "(B) b", "B", "A", "", "Because it is A.", "both", "banana", "B answer"]
    assert evaluate.score_answers(texts, [choice] * 9)[1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    several = {"id": 1, "image": None, "question": "red?", "answers": {"yes": 8, "no": 2}}
    assert evaluate.score_answers(["yes", "no", "maybe"], [several] * 3)[1].tolist() == [1, 0, 0]  # as soft_accuracy
    assert evaluate.score_answers(["yes"], [{"id": 1, "image": None, "question": "red?", "label": "yes"}]) == ({}, None)


def test_one_asks_about_a_picture(questions, trained, tmp_path, capsys):
    import sample
    photo = questions / "val0.png"
    command(sample, "--ckpt", trained, photo, "--question", "is there a star?", "--attn", tmp_path / "a.png", "--json", tmp_path / "a.json")
    line = capsys.readouterr().out.strip()
    found, = json.loads((tmp_path / "a.json").read_text())
    assert found["question"] == "is there a star?" and len(found["answers"]) == 3
    assert line == f"{photo}: " + ", ".join(f"{a} ({100 * p:.1f} %)" for a, p in found["answers"])
    from PIL import Image
    assert Image.open(tmp_path / "a.png").width > 500
    with pytest.raises(UserError, match="answers questions: ask one"):
        command(sample, "--ckpt", trained, photo)


# ---------------------------------------------------------------------------- what cannot work ends in one line

def rewritten(questions, folder, change):
    """A copy of the mini questions with every item changed."""
    from data.common import write_split
    from data.tasks import load_split
    for split in ("train", "val"):
        items = [{**item, "image": str(item["image"])} for item in load_split(questions, split)]
        write_split(folder, split, [change(item) or item for item in items])
    return folder


@pytest.mark.parametrize("answers, says", [
    ('[1, 2]', "not a list of different texts"), ('null', "not a list"), ('["yes", "yes"]', "not a list of different"),
    ('["heavy", "light"]', "none of the answers"), ('["yes"]', "two answers or more"), ("{", "not JSON")])
def test_answers_that_cannot_be_chosen_from_are_refused(questions, tmp_path, answers, says):
    rewritten(questions, tmp_path, lambda item: None)
    (tmp_path / "answers.json").write_text(answers)
    with pytest.raises(UserError, match=says):
        fit(tmp_path, tmp_path / "run", *DVP_FLAGS)


def test_items_that_teach_nothing_are_named(questions, tmp_path):
    rewritten(questions, tmp_path, lambda item: item.pop("answers") and None)
    with pytest.raises(UserError, match="lacks the captions, answers"):
        fit(tmp_path, tmp_path / "run", *DVP_FLAGS)


@pytest.mark.parametrize("words, says", [
    (["--visual", "none", "--adapter", "0"], "nothing to train"), ([*DVP_FLAGS, "--score", "5"], "without|exact scenes"),
    ([*DVP_FLAGS, "--search", "--batch", "60"], "too few")])
def test_runs_that_could_not_learn_are_refused(questions, tmp_path, words, says):
    with pytest.raises(UserError, match=says):
        fit(questions, tmp_path / "run", "--method", "dvp", *words)


def test_a_chooser_is_not_asked_for_captions(questions, trained, tmp_path):
    import evaluate
    with pytest.raises(UserError, match="chooses among answers"):
        trained_model = SeeGPT.load(trained)
        trained_model.generate(torch.randn(1, 65, 128))
    from data.common import write_split
    write_split(tmp_path, "test", [{"id": 0, "image": str(questions / "val0.png"), "captions": ["a star"]}])
    with pytest.raises(UserError, match="asks for captions"):
        command(evaluate, "--ckpt", trained, "--dataset", tmp_path)


def test_a_stopped_search_is_not_overwritten(questions, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "search.pt").touch()
    with pytest.raises(UserError, match="already holds a run"):
        fit(questions, tmp_path / "run", *DVP_FLAGS)


def test_an_answer_outside_the_classes_is_no_target_but_wrong(questions):
    model = classifier().eval()
    images, idx, _ = inputs()
    targets = torch.eye(5)[[0, 1, 2, 3, 4, 0]]
    targets[2] = 0
    logits, loss = model(images, idx, targets, COND)
    kept = [0, 1, 3, 4, 5]
    want = torch.nn.functional.cross_entropy(logits[kept], targets[kept].argmax(1), reduction="sum") / 6
    torch.testing.assert_close(loss, want)  # it counts among the rows, as in the weights of micro-batches
    parts = [model(images[i:i + 1], idx[r], targets[r], COND[r])[1] for i, r in enumerate((slice(0, 3), slice(3, 6)))]
    torch.testing.assert_close(sum(parts) / 2, loss)
    assert soft_accuracy(targets * 2 - 1 + torch.eye(5)[[0, 1, 2, 3, 4, 0]], targets) == pytest.approx(5 / 6)
    _, tied, _ = train.answer_rows([[("is it red?", {"yes": 1, "no": 1})]], 1, ENC, {"yes": 0, "no": 1}, soft=False)
    assert tied.tolist() == [[0.5, 0.5]]


def test_a_dvp_that_writes_has_no_map_for_every_word(questions, tmp_path):
    import sample
    fit(questions, tmp_path / "run", "--method", "dvp", "--steps", "1")
    with pytest.raises(UserError, match="does not attend to the image word by word"):
        command(sample, "--ckpt", tmp_path / "run", questions / "val0.png", "--question", "is there a star?", "--attn", tmp_path / "a.png")
