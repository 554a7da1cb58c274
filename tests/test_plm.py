"""DVP on LLaMA, BERT and T5: the contract of test_methods.py, what dvp.md counts, and whole runs.

The three models are tiny and random. That each equals transformers' is in their own tests.
"""

import json

import pytest
import torch
from test_methods import B, K, Letters, V, close, perturbed

import train
from clip_vit import CLIPViT
from data.batches import encode_answer, text_ids, text_rows
from data.recipes import RECIPES
from gpt2 import GPT2, Cache, GPT2Config
from ituning import ITuning
from lib.cli import UserError
from lib.settings import find_recipe
from model import SeeGPT, TextState
from plm import load_lm
from plm.bert import BERT, BERTConfig
from plm.llama import LLaMA, LLaMAConfig
from plm.t5 import T5, T5Config
from prompts import DVP
from weights.kinds import kind_of
from weights.reading import read
from weights.safetensors import write
from weights.sentencepiece import BPE, SentencePiece

HEAD = dict(readout="head", answers=list("abcde"))
TYPED = dict(types=True)
# name: the model's kind and DVP's settings. T = 7 tokens a row, as in test_methods.
CASES = {
    "llama-lm": ("llama", dict(insert_layer=1, silu=True)),
    "llama-head": ("llama", dict(HEAD, insert_layer=1, silu=True, widening=0.25)),
    "bert-head": ("bert", dict(HEAD, **TYPED, insert_layer=1)),
    "bert-all": ("bert", dict(HEAD, visual="all")),
    "bert-full": ("bert", dict(HEAD, insert_layer=2, adapter=0)),
    "t5-head": ("t5", dict(HEAD, **TYPED, insert_layer=1)),
    "t5-lm": ("t5", dict(TYPED, insert_layer=1)),
    "t5-all": ("t5", dict(visual="all", insert_layer=2)),
}
every = pytest.mark.parametrize("name", CASES)
writing = pytest.mark.parametrize("name", [n for n, (_, s) in CASES.items() if "readout" not in s])
choosing = pytest.mark.parametrize("name", [n for n, (_, s) in CASES.items() if "readout" in s])


class Begins(Letters):
    """Letters whose texts begin with a token of their own, or with T5's padding."""

    def __init__(self, bos, eot):
        super().__init__(eot)
        self.bos = bos


def language_model(kind):
    """Three layers, random."""
    if kind == "bert":
        lm = BERT(BERTConfig(V, 32, 2, 3, 4, 32, 64))
    elif kind == "t5":
        lm = T5(T5Config(V, 2, 3, 4, 32, 64, 8, 8))
    else:
        lm = LLaMA(LLaMAConfig(V, 32, 3, 4, 2, 32, 8, 64, tied=False))
    lm.__dict__["tokenizer"] = Begins(0 if kind == "t5" else 35, 1 if kind == "t5" else 36)
    return lm


@pytest.fixture(autouse=True)
def tokenizers(monkeypatch):
    for cls in (BERT, T5, LLaMA):  # a plain attribute in place of what looks for files
        monkeypatch.setattr(cls, "tokenizer", None, raising=False)
        monkeypatch.setattr(cls, "eot", property(lambda self: self.tokenizer.eot_token))


def build(name, seed=0, **switches):
    torch.manual_seed(seed)
    kind, settings = CASES[name]
    vit = perturbed(CLIPViT(16, patch=4, width=24, layers=2, heads=2, embed_dim=8), 0.1)
    lm = perturbed(language_model(kind), 0.1)
    model = SeeGPT(vit, lm, perturbed(DVP(DVP.Config(**settings), lm, vit), 0.3), **switches)
    return model.eval()


def inputs(name, seed=1):
    """Images, idx, targets and lengths of conditions: of two images with three questions each."""
    torch.manual_seed(seed)
    idx = torch.randint(2, V, (B * K, 7))
    lengths = torch.tensor([3, 1, 4, 2, 4, 4])
    if "readout" in CASES[name][1]:
        targets = torch.eye(5)[[0, 1, 2, 3, 4, 0]]
        targets[5] = -1
    else:
        behind = torch.arange(7) >= lengths[:, None] - 1
        targets = torch.where(behind, torch.randint(2, V, idx.shape), -1)
        targets[5] = -1
    return torch.randn(B, 3, 16, 16), idx, targets, lengths


@every
def test_frozen_stays_and_all_that_is_trained_learns(name):
    model = build(name).train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.trained().values(), lr=1e-2, weight_decay=0)
    for _ in range(10):
        optimizer.zero_grad()
        model(*inputs(name))[1].backward()
        optimizer.step()
    assert {n for n in model.trained()} == {f"method.{n}" for n in model.method.state_dict()}
    for n, p in model.named_parameters():
        if not n.startswith("method."):
            assert torch.equal(p, before[n]) and p.grad is None, n
        elif not n.endswith(".k.bias"):  # softmax ignores what is added to all scores of a query
            assert not torch.equal(p, before[n]), n


@pytest.mark.parametrize("name", ["bert-full", "t5-head", "t5-lm", "llama-lm"])
def test_the_language_model_is_tuned_where_that_is_asked_for(name):
    """All of it that takes part, which BERT's head for masked words does not."""
    model = build(name, train_lm=True).train()
    model(*inputs(name))[1].backward()
    left = {n for n, p in model.lm.named_parameters() if p.grad is None}
    if "adapter" in CASES[name][1]:  # else norms are learnt as copies
        assert left == {n for n in left if n.startswith("cls.")} and left
    assert model.lm.wte.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.method.parameters())


@every
def test_an_image_changes_its_own_rows_and_no_others(name):
    model, (images, idx, targets, lengths) = build(name), inputs(name)
    logits = model(images, idx, targets, lengths)[0]
    other = model(torch.stack([images[0], images[1] + 1]), idx, targets, lengths)[0]
    n = K if "readout" in CASES[name][1] else int((targets[:K] != -1).sum())
    close(other[:n], logits[:n])
    assert (other[n:] - logits[n:]).abs().max() > 1e-3


@every
def test_a_row_alone_equals_the_row_among_others_whatever_fills_it_up(name):
    """Padding behind a text, and the length of its neighbours, change nothing."""
    model, (images, idx, targets, lengths) = build(name).double(), inputs(name)
    images = images.double()
    together = model(images, idx, targets, lengths)[0]
    if "readout" in CASES[name][1]:
        for r in range(B * K):
            row = torch.cat([idx[r:r + 1, :lengths[r]], torch.full((1, r % 3), 7)], 1)
            alone, _ = model(images[r // K:][:1], row, condition_len=lengths[r:r + 1])
            close(alone[0], together[r])
        return
    start = 0
    for r in range(B * K - 1):
        n = int((targets[r] != -1).sum())
        alone = model(images[r // K:][:1], idx[r:r + 1], targets[r:r + 1], lengths[r:r + 1])[0]
        close(alone, together[start:start + n])
        start += n


@writing
def test_no_later_token_changes_an_earlier_logit(name):
    model, (images, idx, targets, lengths) = build(name).double(), inputs(name)
    images, where = images.double(), (targets != -1).nonzero()
    logits = model(images, idx, targets, lengths)[0]
    for j in range(4, 7):
        changed = idx.clone()
        changed[:, j:] = (changed[:, j:] + 5) % (V - 2) + 2
        close(model(images, changed, targets, lengths)[0][where[:, 1] < j],
              logits[where[:, 1] < j])


@writing
@pytest.mark.parametrize("beam", [1, 3])
def test_generation_with_a_cache_equals_reading_all_again(name, beam):
    """The likeliest text of three beams as found without a cache, and the greedy one."""
    model = build(name).double()
    images = inputs(name)[0].double()
    prompts = ["CDE", "FG"]
    written = model.generate(images, prompts, beam=beam, max_new_tokens=4, with_ids=True)
    for i, (_, ids) in enumerate(written):
        given = [model.lm.tokenizer.bos, *model.lm.tokenizer.encode_ordinary(prompts[i])]
        beams = [(0.0, given)]
        for _ in range(4):
            found = []
            for score, row in beams:
                if row[-1] == model.lm.eot and len(row) > len(given):
                    found.append((score, row))
                    continue
                last = torch.tensor([len(row) - 1])
                logits = model.forward_text(torch.tensor([row]), model.method.encode_image(
                    model.image_features(images[i:i + 1])),
                    TextState(condition_len=torch.tensor([len(given)]), wanted=last))[0]
                found += [(score + float(p), [*row, t])
                          for t, p in enumerate(logits.float().log_softmax(-1)[:V])]
            beams = sorted(found, key=lambda pair: -pair[0])[:beam]
        if beam == 1:
            best = beams[0][1][len(given):]
            assert ids == (best[:best.index(model.lm.eot)] if model.lm.eot in best else best)
        else:
            assert tuple(ids) in {tuple(t for t in row[len(given):] if t != model.lm.eot)
                                  for _, row in beams}


@every
def test_a_checkpoint_brings_back_what_was_trained(name, tmp_path):
    model, other = build(name), build(name, seed=0)
    with torch.no_grad():
        for p in other.method.parameters():
            p.zero_()
    model.save(tmp_path / "x.safetensors")
    other.restore(read(tmp_path / "x.safetensors"), "x")
    assert torch.equal(model(*inputs(name))[0], other(*inputs(name))[0])


@choosing
def test_a_question_is_answered_as_in_training(name):
    """Of one alone and of two together; the tokenizer begins and ends texts, not the caller."""
    model, images = build(name), inputs(name)[0]
    model.run_info = {"task": "question"}
    both = model.choose(images, ["QUESTION", "WHY"], 5)
    for i, text in enumerate(["QUESTION", "WHY"]):
        alone, = model.choose(images[i:i + 1], [text], 5)
        assert [a for a, _ in alone] == [a for a, _ in both[i]]
        close(torch.tensor([p for _, p in alone]), torch.tensor([p for _, p in both[i]]))


@pytest.mark.parametrize("name", ["llama-head", "bert-head", "t5-head", "t5-lm"])
def test_eight_images_are_told_apart_by_what_is_trained(name):
    """The same question on each has an answer of its own: near-zero loss, and with the images
    shuffled a high one."""
    torch.manual_seed(0)
    kind, settings = CASES[name]
    settings = settings | ({"answers": list("abcdefgh")} if "readout" in settings else {})
    vit = CLIPViT(16, patch=4, width=24, layers=2, heads=2, embed_dim=8)
    lm = perturbed(language_model(kind), 0.1)  # LLaMA's own start hardly lets a token see another
    model = SeeGPT(vit, lm, DVP(DVP.Config(**settings), lm, vit)).train()
    idx, lengths = torch.randint(2, V, (1, 6)).repeat(8, 1), torch.full((8,), 5)
    right = torch.eye(8)
    if "readout" not in settings:
        idx[:, 5], right = torch.arange(8) + 2, torch.full((8, 6), -1)
        right[:, 4] = idx[:, 5]
    images = torch.randn(8, 17, 24)
    optimizer = torch.optim.Adam(model.trained().values(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = model(images, idx, right, lengths)[1]
        loss.backward()
        optimizer.step()
    assert loss < 0.05 and model(images.roll(1, 0), idx, right, lengths)[1] > 1


# ---------------------------------------------------------------------------- the mechanism

def test_t5s_shared_head_reads_the_copy_that_is_held_in_bfloat16():
    model, batch = build("t5-lm"), inputs("t5-lm")
    with torch.autocast("cpu", torch.bfloat16):
        before = model(*batch)[0]
        assert torch.equal(model.cast_frozen(torch.bfloat16)(*batch)[0], before)
        model.lm.wte.rounded.zero_()
        assert before.any() and not model(*batch)[0].any()


def test_on_bert_cls_asks_and_answers_one_place_on_and_nobody_sees_padding():
    """Against BERT run by hand around the prompt, without adapters."""
    model = build("bert-full")
    bert, dvp, (images, idx, _, lengths) = model.lm, model.method, inputs("bert-full")
    ctx, by_hand = dvp.encode_image(model.vit(images)), []
    for r in range(B * K):
        ids = torch.cat([idx[r, :lengths[r]], torch.tensor([36])])[None]
        x = bert.embed(ids)
        for l, layer in enumerate(bert.h):
            if l == 2:
                kv = [part[r // K:][:1] for part in ctx]
                x = torch.cat([dvp.xattn[0](x[:, :1], kv), x], 1)
            x = layer(x, None, l)
        by_hand.append(dvp.classify(x[:, 1]))
    close(model(images, idx, condition_len=lengths)[0], torch.cat(by_hand))


def test_on_t5_the_encoders_mean_asks_and_the_prompt_stands_before_the_start():
    """Against T5 run by hand, row by row; with its own distances in all layers."""
    torch.manual_seed(0)
    vit = CLIPViT(16, patch=4, width=24, layers=2, heads=2, embed_dim=8)
    t5 = perturbed(language_model("t5"), 0.1)
    dvp = DVP(DVP.Config(**HEAD, **TYPED, insert_layer=1, adapter=0), t5, vit)
    model, (images, idx, _, lengths) = SeeGPT(vit, t5, dvp).eval(), inputs("t5-head")
    ctx, by_hand = dvp.encode_image(vit(images)), []
    for r in range(B * K):
        reading = t5.read(torch.cat([idx[r, 1:lengths[r]], torch.tensor([1])])[None])
        x = t5.embed(torch.tensor([[0]]))
        for l, layer in enumerate(t5.h):
            if l == 1:
                p = dvp.xattn[0](reading.states.mean(1, True), [part[r // K:][:1] for part in ctx])
                x = torch.cat([p + dvp.types[0][1], x + dvp.types[0][0]], 1)
            x = layer(x, reading, l)
        by_hand.append(dvp.classify(t5.ln_f(x)[:, 1]))
    close(model(images, idx, condition_len=lengths)[0], torch.cat(by_hand))


@every
def test_without_adapters_effect_and_prompt_the_logits_are_the_frozen_models(name):
    """Zero maps up, untouched norms, no image. T5's encoder, too, runs with its copies of norms."""
    kind, settings = CASES[name]
    if "readout" in settings:
        return
    torch.manual_seed(0)
    vit, lm = CLIPViT(16, patch=4, width=24, layers=2, heads=2, embed_dim=8), language_model(kind)
    model = SeeGPT(vit, lm, DVP(DVP.Config(**settings), lm, vit)).eval()
    for n, p in model.method.named_parameters():
        if ".up." in n:
            torch.nn.init.zeros_(p)
    _, idx, targets, lengths = inputs(name)
    logits = model(None, idx, targets, lengths)[0]
    if kind == "llama":
        return close(logits, lm(idx)[targets != -1])
    for r in range(B * K - 1):
        n, scored = int(lengths[r]), targets[r] != -1
        text = torch.cat([idx[r, 1:n], torch.tensor([1])])[None]
        want = lm(text, None, torch.cat([torch.tensor([0]), idx[r, n:]])[None])[0]
        close(logits[:int(scored.sum())], want)
        logits = logits[int(scored.sum()):]


def test_texts_begin_with_the_models_own_token_and_answers_with_one_space():
    """GPT-2's begin as they end. SentencePiece puts the space in front of an answer by itself."""
    assert [text_ids(Letters(), "B"), text_ids(Begins(35, 36), "B")] == [[36, 1], [35, 1]]
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁red", -1.0, 1),
              ("▁", -2.0, 1), ("r", -3.0, 1), ("e", -3.0, 1), ("d", -3.0, 1), ("▁r", -2.5, 1),
              ("ed", -2.6, 1)]
    llama = SentencePiece(pieces, BPE, trim=False)
    assert encode_answer(llama, "red", "what colour?") == [3] == encode_answer(llama, "red", "")
    assert [llama.decode_single_token_bytes(i) for i in (3, 4, 9)] == [b" red", b" ", b"ed"]
    assert llama.bos == 1 == text_ids(llama, "red")[0]
    idx, targets, lengths, _ = text_rows([[("red", {"red": 1})]], 1, llama, 9)
    assert idx.tolist() == [[1, 3, 3]] and targets.tolist() == [[-1, 3, 2]] and lengths == 2


# ---------------------------------------------------------------------------- sizes

ANSWERS = {"vqa2": 3129, "gqa": 1843, "snli_ve": 3}
CROSS = 768 * 768 * 4 + 4 * 768
LLAMA = dict(adapter=64, silu=True, widening=0.125)


@pytest.mark.parametrize("kind, adapters, norms", [
    ("bert", 3_559_680, 36_864), ("t5", 8_899_200, 47_616), ("llama", 33_820_672, 266_240)])
@pytest.mark.parametrize("dataset, heads", [
    ("vqa2", (5_993_529, 3_703_865)), ("gqa", (4_016_947, 3_044_147)),
    ("snli_ve", (1_188_867, 2_100_227))])
def test_what_is_trained_has_the_papers_sizes(kind, adapters, norms, dataset, heads):
    """At d = 768, with ViT-B/16, and at LLaMA-7B's 4,096; with the settings of the recipes."""
    with torch.device("meta"):
        vit = CLIPViT(224, 16, 768, 12, 12, 512)
        lm = {"bert": lambda: BERT(BERTConfig()), "t5": lambda: T5(T5Config()),
              "llama": lambda: LLaMA(LLaMAConfig(32000, 2048, 32, 32, 32, 4096, 128, 11008,
                                                 tied=False))}[kind]()
        name = {"bert": "bert-base-uncased", "t5": "t5-base", "llama": "smollm2"}[kind]
        _, settings = find_recipe(train.Config(dataset=dataset, method="dvp", lm=name), RECIPES, {})
        settings = {k: v for k, v in settings.items() if k in DVP.Config.__dataclass_fields__}
        answers = [str(i) for i in range(ANSWERS[dataset])]
        dvp = DVP(DVP.Config(**settings, answers=answers), lm, vit)
    count = lambda test: sum(p.numel() for n, p in dvp.named_parameters() if test(n))
    assert count(lambda n: "xattn" in n) == (4_986_368 if kind == "llama" else CROSS) and \
        CROSS == 2_362_368
    assert count(lambda n: ".after_" in n) == adapters
    assert count(lambda n: n.startswith(("adapted", "ln_f")) and ".after_" not in n) == norms
    assert count(lambda n: n.startswith("types")) == (0 if kind == "llama" else 1536)
    assert count(lambda n: n.startswith("classify")) == heads[kind == "llama"]
    assert dvp.xattn[0].heads == (16 if kind == "llama" else 12)


# ---------------------------------------------------------------------------- files

def save(kind, folder, config=True):
    """A tiny model as transformers names its tensors, in a folder."""
    torch.manual_seed(0)
    lm = language_model(kind) if kind != "gpt2" else GPT2(GPT2Config(V, 32, 3, 4, 32))
    tensors = dict(lm.state_dict())
    if kind == "llama":
        back = {"wte": "embed_tokens", "h": "layers", "ln_1": "input_layernorm", "ln_f": "norm",
                "attn": "self_attn", "ln_2": "post_attention_layernorm"}
        tensors = {("" if k.startswith("lm_head") else "model.")
                   + ".".join(back.get(w, w) for w in k.split(".")): t for k, t in tensors.items()}
    if kind == "gpt2":
        tensors = {k: t.t().contiguous() if k.endswith(("c_attn.weight", "c_proj.weight",
                                                        "c_fc.weight")) else t
                   for k, t in tensors.items()}
    if kind == "bert":
        tensors = {k if k.startswith("cls.") else f"bert.{k}": t for k, t in tensors.items()}
    folder.mkdir(exist_ok=True)
    write(folder / "model.safetensors", {k: t.contiguous() for k, t in tensors.items()},
          {"format": "pt"})
    more = {"llama": {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
                      "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
            "bert": {"num_attention_heads": 4}, "gpt2": {"n_head": 4}, "t5": {}}[kind]
    (folder / "config.json").write_text(json.dumps({"model_type": kind} | more if config else more))
    return folder


@pytest.mark.parametrize("kind, cls", [("gpt2", GPT2), ("llama", LLaMA), ("bert", BERT),
                                       ("t5", T5)])
@pytest.mark.parametrize("config", [True, False])
def test_a_file_says_which_model_it_is(kind, cls, config, tmp_path):
    folder = save(kind, tmp_path / "lm", config)
    assert kind_of(folder) == kind and type(load_lm(folder, DVP)) is cls
    if kind in ("bert", "t5"):
        with pytest.raises(UserError, match=f"is a {cls.__name__}, and this method needs a GPT2 or "
                                            "LLaMA: use --method dvp"):
            load_lm(folder, ITuning)


def test_public_names_say_it_without_a_download(monkeypatch):
    monkeypatch.setattr("weights.kinds.locate", lambda name: 1 / 0)
    assert [kind_of(n) for n in ("gpt2", "distilgpt2", "smollm2", "bert-base-uncased", "t5-base")
            ] == ["gpt2", "gpt2", "llama", "bert", "t5"]


def test_bert_does_not_write():
    model = build("bert-all")
    with pytest.raises(UserError, match="BERT fills in words.*--readout head"):
        model.forward_text(torch.ones(1, 3, dtype=torch.int64), None,
                           TextState(Cache(3, 9), wanted=torch.tensor([0])))


@pytest.mark.parametrize("lm, dataset, want", [
    ("bert-base-uncased", "vqa2", dict(lr=1e-3, types=True, readout="head", soft=True)),
    ("t5-base", "snli_ve", dict(lr=3e-4, types=True)),
    ("smollm2", "gqa", dict(lr=5e-4, adapter=64, silu=True, weight_decay=0.2)),
    ("bert-base-uncased", "my/own", dict(types=True, readout="head"))])
def test_a_recipe_for_the_model(lm, dataset, want):
    config = train.Config(dataset=dataset, method="dvp", lm=lm)
    name, settings = find_recipe(config, RECIPES, {})
    assert want.items() <= settings.items() and " on " in name
