"""Generation, batches, checkpoints: what model.py promises for any method (here I-Tuning)."""

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch

import ituning
from lib.cli import UserError
from clip_vit import CLIPViT
from gpt2 import GPT2
from model import SeeGPT, find_method
from weights.reading import fingerprint
from test_methods import V, build

EOT = V - 1
SHAPES = Path(__file__).resolve().parent.parent / "data" / "shapes"


def slow_greedy(model, image, prompt, n):
    """The likeliest token, again and again, without cache or batch."""
    ids = list(prompt)
    for _ in range(n):
        logits, _ = model(image[None], torch.tensor([ids]))
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == EOT:
            break
    return ids[len(prompt):]


def slow_beam(model, image, prompt, beam, n, penalty):
    """Beam search in plain Python: whole texts, no cache, every continuation of every text scored."""
    alive, done = [(0.0, [])], []
    for step in range(n):
        options = []
        for score, ids in alive:
            logp = model(image[None], torch.tensor([prompt + ids]))[0][0, -1].log_softmax(0)
            options += [(score + logp[t].item(), ids + [t]) for t in range(V)]
        options = sorted(options, key=lambda o: -o[0])[:2 * beam]
        alive = []
        for rank, (score, ids) in enumerate(options):
            if ids[-1] == EOT or step == n - 1:
                if rank < beam:
                    done.append((score / len(ids) ** penalty, ids))
            elif len(alive) < beam:
                alive.append((score, ids))
        done = sorted(done, key=lambda d: -d[0])[:beam]
        if not alive or len(done) == beam and done[-1][0] >= alive[0][0] / (step + 1) ** penalty:
            break
    return done[0]


@pytest.fixture(scope="module")
def model():
    model = build("ituning").eval()
    with torch.no_grad():  # so that texts end now and then
        model.lm.wte.weight[EOT] *= 2
    return model


def test_greedy_equals_naive_generation_token_by_token(model):
    torch.manual_seed(5)
    images = torch.randn(12, 3, 16, 16)
    idx = torch.full((12, 1), EOT)
    out, _ = model.beam(images, idx, beam=1, max_new_tokens=9)
    slow = [slow_greedy(model, image, [EOT], 9) for image in images]
    assert out == slow
    assert len({len(x) for x in out}) > 1  # some ended early, some did not


@pytest.mark.parametrize("beam, penalty", [(2, 0.0), (3, 1.0), (5, 2.0)])
def test_cached_batched_beam_search_equals_a_plain_one(model, beam, penalty):
    torch.manual_seed(6)
    images = torch.randn(6, 3, 16, 16)
    prompt = [EOT, 4, 9]
    out, scores = model.beam(images, torch.tensor([prompt] * 6), beam, 7, penalty)
    for image, ids, score in zip(images, out, scores):
        slow_score, slow_ids = slow_beam(model, image, prompt, beam, 7, penalty)
        assert ids == slow_ids and math.isclose(score, slow_score, abs_tol=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_batch_gives_what_its_images_give_alone(model, beam):
    torch.manual_seed(7)
    images = torch.randn(9, 3, 16, 16)
    idx = torch.full((9, 1), EOT)
    together, _ = model.beam(images, idx, beam, 8)
    alone = [model.beam(images[i:i + 1], idx[:1], beam, 8)[0][0] for i in range(9)]
    assert together == alone


def test_64_images_in_a_batch_get_the_captions_they_get_alone(model):
    """As texts, through the tokenizer: by beam search, and with early stopping and a penalty."""
    class Letters:  # one token a letter
        eot_token = EOT
        encode_ordinary = staticmethod(lambda text: [ord(c) - 97 for c in text])
        decode = staticmethod(lambda ids: "".join(chr(97 + i) for i in ids))

    model.lm.tokenizer = Letters()
    torch.manual_seed(8)
    images = torch.randn(64, 3, 16, 16)
    for how in (dict(beam=1), dict(beam=5), dict(beam=3, length_penalty=1.0, early_stopping=True)):
        how |= dict(prompt=["ab", "c"] * 32, max_new_tokens=8)
        together = model.generate(images, **how)
        alone = [model.generate(image[None], **how | {"prompt": prompt})[0]
                 for image, prompt in zip(images, how["prompt"])]
        assert together == alone and len(set(together)) > 30


def test_early_stopping_ends_with_the_first_finished_texts(model):
    """Without it the search goes on while an unfinished text scores more: never worse, now and then better."""
    torch.manual_seed(9)
    images, idx = torch.randn(40, 3, 16, 16), torch.full((40, 1), EOT)
    _, patient = model.beam(images, idx, 3, 9, length_penalty=1.0)
    _, hasty = model.beam(images, idx, 3, 9, length_penalty=1.0, early_stopping=True)
    assert (patient >= hasty - 1e-6).all() and (patient > hasty + 1e-4).any()


def test_sampling_freezes_a_row_at_its_end_and_follows_temperature(model):
    torch.manual_seed(10)
    images, idx = torch.randn(50, 3, 16, 16), torch.full((50, 1), EOT)
    greedy, _ = model.beam(images, idx, 1, 9)
    assert model.sample(images, idx, 9, temperature=1e-6) == greedy == model.sample(images, idx, 9, top_k=1)
    drawn = model.sample(images, idx, 9, temperature=2.0)
    assert drawn != greedy and len({len(ids) for ids in drawn}) > 3
    for ids in drawn:
        assert EOT not in ids[:-1] and (len(ids) == 9 or ids[-1] == EOT)


def test_frozen_weights_held_in_bfloat16_give_what_autocast_gives(model):
    """Bit for bit, and only matrices of frozen layers change their type."""
    model = build("ituning").eval()
    torch.manual_seed(11)
    images, idx = torch.randn(4, 3, 16, 16), torch.randint(0, V, (4, 6))
    with torch.autocast("cpu", torch.bfloat16):
        before = model(images, idx)[0]
        after = model.cast_frozen("bfloat16")(images, idx)[0]
    assert torch.equal(before, after)
    held = {n for n, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert "gpt2.h.0.attn.c_attn.weight" in held and "vit.transformer.resblocks.1.attn.in_proj_weight" in held
    assert not any(n.startswith("method.") or "ln" in n or "embedding" in n or "wpe" in n for n in held)


def test_too_long_a_generation_is_refused(model):
    with pytest.raises(UserError, match="positions"):
        model.beam(torch.randn(1, 3, 16, 16), torch.tensor([[EOT]]), 1, 99)


# ---------------------------------------------------------------------------- checkpoints

def run_folder(tmp_path, **change):
    """Backbones in the public layout and a trained run on them, as train.py leaves it."""
    gpt2_dir, clip_dir = tmp_path / "tiny-gpt2", tmp_path / "tiny-clip"
    for folder in (gpt2_dir, clip_dir):
        shutil.copytree(SHAPES / folder.name, folder)
    gpt2, vit = GPT2.from_pretrained(gpt2_dir), CLIPViT.from_pretrained(clip_dir)
    config = ituning.Config(first_layer=1)
    model = SeeGPT(vit, gpt2, ituning.ITuning(config, gpt2, vit)).eval()
    with torch.no_grad():
        for p in model.trained().values():
            p.add_(0.1 * torch.randn_like(p))
    model.run_info = {"method": "ituning", "config": dataclasses.asdict(config), "dataset": "x",
                    "train_lm": False, "train_vision": False,
                    "gpt2": {"name": str(gpt2_dir), "sha256": fingerprint(gpt2)},
                    "clip": {"name": str(clip_dir), "sha256": fingerprint(vit)}} | change
    model.save(tmp_path / "run" / "last.safetensors")
    return model, gpt2_dir, clip_dir


def test_a_run_folder_is_all_that_load_needs(tmp_path):
    model, _, _ = run_folder(tmp_path)
    loaded = SeeGPT.load(tmp_path / "run")
    images = torch.randn(2, 3, model.vit.image_size, model.vit.image_size)
    idx = torch.randint(0, 50, (2, 4))
    assert torch.equal(loaded(images, idx)[0], model(images, idx)[0])
    assert loaded.generate(images, beam=2, max_new_tokens=5) == model.generate(images, beam=2, max_new_tokens=5)


def test_other_frozen_weights_are_refused(tmp_path):
    """An adapter means nothing on top of other weights: one changed number is enough."""
    from weights.reading import read
    from weights.safetensors import write
    _, gpt2_dir, _ = run_folder(tmp_path)
    tensors = read(gpt2_dir)
    next(iter(tensors.values())).view(-1)[0] += 1
    write(gpt2_dir / "model.safetensors", tensors)
    with pytest.raises(UserError, match="other gpt2 weights"):
        SeeGPT.load(tmp_path / "run")


def test_a_folder_without_a_checkpoint_and_a_foreign_file_are_refused(tmp_path):
    _, gpt2_dir, _ = run_folder(tmp_path)
    with pytest.raises(UserError, match="no checkpoint here"):
        SeeGPT.load(tmp_path)
    with pytest.raises(UserError, match="not a checkpoint of train.py"):
        SeeGPT.load(gpt2_dir / "model.safetensors")


def test_a_typo_in_the_method_is_answered_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean ituning"):
        find_method("itunning")


def test_a_method_of_ones_own_is_found_by_its_file_name(tmp_path, monkeypatch):
    (tmp_path / "mymethod.py").write_text("from model import Method as Base\nclass Method(Base):\n    extra = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    cls, config = find_method("mymethod")
    assert cls.extra == 2 and dataclasses.fields(config) == ()
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="no class Method"):
        find_method("empty")
