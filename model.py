"""The thin place where image, language model and method meet: loss, generation, checkpoints.

  img (B,3,H,W)          idx (R,T)          R = B * k: k rows of text share an image,
       |                     |              the captions of one image in training,
  [ CLIP-ViT ]           [ wte+wpe ]        its beams in generation
       | feats (B,N,D)       | (R,T,C)
  (encode_image)      +------+-------+
       | ctx          |   (block)    |  x L
       +------------> |  around one  |
       |              | frozen layer |
       |              +------+-------+
       +----------------> (logits)
                             | (R,T,V)
                          (loss)

[frozen], (a method's hook). A method is one nn.Module with these four hooks, most of them left at
their default, which is plain GPT-2. Rows i*k .. i*k + k-1 belong to image i; ctx stays per image
and is never copied k times.

B images, R rows of text, T tokens, N image tokens, D ViT width, C width and L layers of the
language model, V vocabulary, A answers to choose from

Next: ituning.py
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from clip_vit import CLIPViT
from data.batches import count_targets, pad, text_ids
from data.tasks import condition
from gpt2 import Cache
from lib.cli import UserError
from lib.decoding import Beams, Draws, sample_token
from lib.devices import cast_matrices, to_device
from lib.files import repo_path
from lib.settings import find_method, method_config
from plm import load_lm
from weights.checkpoints import checkpoint_file, no_larger_than, read_run_info, restore
from weights.reading import fingerprint, read
from weights.safetensors import write


@dataclass
class TextState:
    """Where these rows of text stand; given to a method's block and logits."""

    cache: object = None  # gpt2.Cache with the keys and values read so far, or None
    pos: int = 0  # text tokens already in the cache: the position of the first new one
    condition_len: object = None  # (R,) given tokens of each row: eot and question; captions: 1
    wanted: object = None  # flat positions in R * T whose logits are wanted; None: all
    summary: object = None  # (R, 1, C) of a model with an encoder: its text in one state


def select(x, state):
    """x (R, T, C) at the wanted positions only (n, C): no logits are made for the others."""
    return x if state.wanted is None else x.flatten(0, 1)[state.wanted]


class Method(nn.Module):
    """The hooks with their defaults: a GPT-2 that ignores the image. Subclass it, override some.

    The constructor gets (config, lm, vit). The frozen models are passed in, never stored: so the
    state_dict is exactly what is trained. All that a method may define stands here.
    """

    @dataclass
    class Config:
        """The method's settings, made by lib.cli.opt: they become flags of train.py."""

        def __getattr__(self, name):
            raise UserError(f"the method needs a class Config inside, with a field {name}")

    lms = "gpt2", "llama"  # kinds of language models that it fits (weights/kinds.py)
    needs_image = True  # False: items without an image are read as text alone, with ctx None
    answers = ()  # the classes of a method that chooses an answer; empty: it writes text
    soft_answers = False  # several answers may be right, each with a probability of its own
    record_attention = None  # set to a list: receives (layer, weights (R, nh, T, N)) on every pass
    n_prompt = 0  # tokens that block puts in front of the text, at most: the cache leaves room

    @classmethod
    def fit_dataset(cls, config, facts, settings):
        """Before training: fills in what the data decides, or refuses it (UserError). facts: those
        of data.batches.load_entries; settings: train.Config."""

    search = None  # --search: a classmethod (config, train.Run) -> config, as found by trial

    def cache_layers(self, lm):
        """How many layers the cache must have: more than the LM's for a stack in logits."""
        return len(lm.h)

    def encode_image(self, feats):
        """Once per image, feats (B, N, D) -> ctx: whatever the layers need later."""
        return feats

    def block(self, l, layer, x, ctx, state):
        """Layer l of the language model, x (R, T, C) -> (R, T, C). May lengthen x at pos 0."""
        return layer(x, state.cache, l)

    def logits(self, lm, x, ctx, state):
        """The last states -> (R, T, V), (n, V) of the wanted positions, or (R, A) of the answers.
        A method that lengthened x cuts its own tokens off first."""
        return lm.head(select(x, state))

    def loss(self, logits, targets):
        """Mean cross-entropy in nats over targets other than -1. With answers: targets (R, A) say
        how right each is; a row of -1 does not count, an answer outside the classes adds 0."""
        if not self.answers:
            return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1)
        kept, right = targets[:, :1] >= 0, targets.clamp(min=0)  # of rows of -1 all are 0
        if self.soft_answers:  # summed over the answers: each of them is a question of its own
            total = F.binary_cross_entropy_with_logits(logits, right, kept.float(), reduction="sum")
        else:
            total = F.cross_entropy(logits, right, reduction="sum")
        return total / kept.sum()

    def probabilities(self, logits):
        """Logits (R, A) -> probability of each answer: of being right (soft), or the right one."""
        return logits.sigmoid() if self.soft_answers else logits.softmax(-1)


class SeeGPT(nn.Module):
    """A frozen language model, a frozen CLIP ViT and a trained method between them.

    train_lm and train_vision thaw the one or the other; they are then trained and saved too.
    """

    def __init__(self, vit, lm, method, train_lm=False, train_vision=False):
        super().__init__()
        self.vit, self.lm, self.method = vit, lm, method
        self.frozen = [m for m, on in ((vit, train_vision), (lm, train_lm)) if not on]
        vit.requires_grad_(train_vision)
        lm.requires_grad_(train_lm)
        if train_vision:  # these two serve only the text-image space, which no loss here reads
            vit.ln_post.requires_grad_(False)
            if vit.proj is not None:
                vit.proj.requires_grad_(False)
        self.run_info = {}  # how it was made; filled by train.py, stored in every checkpoint

    def train(self, mode=True):
        """Frozen parts stay in eval mode, whatever the rest does."""
        super().train(mode)
        for m in self.frozen:
            m.eval()
        return self

    def trained(self):
        """{full name: parameter} of all that learns, and so of all that a checkpoint holds."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def cast_frozen(self, dtype):
        """Holds the frozen matrices in dtype, for autocast (lib/devices.py); returns self."""
        cast_matrices(self.frozen, dtype)
        return self

    def image_features(self, images):
        """Images (B, 3, H, W) -> feats (B, N, D). Feats made before pass through, so does None."""
        if images is None and self.method.needs_image:
            raise UserError("this method needs an image, and there is none: pass images or feats")
        if images is None or images.dim() == 3:
            return images
        with torch.no_grad() if self.vit in self.frozen else nullcontext():
            return self.vit(images)

    def forward(self, images, idx, targets=None, condition_len=None, wanted=None):
        """images or feats of B images; idx, targets (R, T) with R = B * k -> logits, loss.

        Without targets: logits (R, T, V) and None. With targets (-1: not scored) logits are made
        only where they are scored, (n, V); wanted has these flat positions, if they are known. A
        method with answers has targets and logits (R, A).
        """
        if targets is not None and wanted is None and not self.method.answers:
            wanted = (targets.flatten() != -1).nonzero().squeeze(1)
        ctx = self.method.encode_image(self.image_features(images))
        logits = self.forward_text(idx, ctx, TextState(condition_len=condition_len, wanted=wanted))
        if targets is None:
            return logits, None
        targets = targets if wanted is None else targets.flatten()[wanted]
        return logits, self.method.loss(logits, targets)

    def forward_text(self, idx, ctx, state):
        """Rows of text (R, T), only the new tokens if there is a cache -> the method's logits."""
        x = self.lm.start(idx, state, self.method.block)
        for l, layer in enumerate(self.lm.h):
            x = self.method.block(l, layer, x, ctx, state)
        return self.method.logits(self.lm, x, ctx, state)

    # ------------------------------------------------------------------------ generation

    def group_by_length(self, prompts):
        """Groups of prompts of equal length: (their indices, ids (n, T), as of text_ids).
        GPT-2 here has no padding mask, so only equals run together."""
        ids = [text_ids(self.lm.tokenizer, p) for p in prompts]
        for length in sorted({len(i) for i in ids}):
            group = [i for i in range(len(ids)) if len(ids[i]) == length]
            yield group, torch.tensor([ids[i] for i in group], device=self.lm.wte.weight.device)

    def condition_lengths(self, lengths):
        """Lengths (R,) of what is given of each text -> of its condition: for a captioner the first
        token alone, whatever the prompt, as in training."""
        return torch.ones_like(lengths) if self.run_info.get("task") == "captions" else lengths

    @torch.no_grad()
    def generate(self, images, prompt="", beam=5, max_new_tokens=30, length_penalty=0.0,
                 temperature=0.0, top_k=0, top_p=1.0, with_ids=False):
        """One caption per image (None: no image), without the prompt, one text or one per image.

        Beam search; beam 1 is greedy. temperature above 0 draws instead (lib/decoding.py).
        with_ids: (caption, its token ids) per image. UserError for a method with answers.
        """
        feats, eot = self.image_features(images), self.lm.eot
        pick = lambda logits: sample_token(logits, temperature, top_k, top_p)
        n = 1 if feats is None else len(feats)
        prompts = [prompt] * n if isinstance(prompt, str) else prompt
        texts = [None] * len(prompts)
        for group, idx in self.group_by_length(prompts):
            search = (Draws(len(group), pick, eot) if temperature > 0 else
                      Beams(len(group), beam, max_new_tokens, length_penalty, eot))
            self.decode(None if feats is None else feats[group], idx, search, max_new_tokens)
            for i, ids in zip(group, search.texts):
                ids = ids[:ids.index(eot)] if eot in ids else ids  # what follows eot is filler
                texts[i] = (self.lm.tokenizer.decode(ids).strip(), ids)
        return texts if with_ids else [text for text, _ in texts]

    @torch.no_grad()
    def decode(self, feats, idx, search, max_new_tokens):
        """Continues ids (B, T), one row an image, with what the search picks (lib/decoding.py).
        The prompt runs once per image and is then repeated for its rows."""
        (B, T), most = idx.shape, self.lm.config.n_positions
        if self.method.answers:
            raise UserError("this model chooses among answers, it writes no text: ask it questions")
        if T + max_new_tokens > most:
            raise UserError(f"{T + max_new_tokens} positions needed, {most} there: shorten it")
        ctx = self.method.encode_image(feats)
        cache = Cache(self.method.cache_layers(self.lm), T + max_new_tokens + self.method.n_prompt)
        condition_len = self.condition_lengths(torch.full((B,), T, device=idx.device))
        last = torch.arange(1, B + 1, device=idx.device) * T - 1
        state = TextState(cache, 0, condition_len, last)
        logits, cache = self.forward_text(idx, ctx, state), state.cache  # (B, V)
        cache.repeat(search.rows)
        condition_len = condition_len.repeat_interleave(search.rows)
        every = torch.arange(B * search.rows, device=idx.device)
        for pos in range(T, T + max_new_tokens):
            # pitfall: padding at the end of a vocabulary has logits, too.
            parents, tokens = search.extend(logits.float()[:, :self.lm.tokenizer.n_vocab])
            if search.over or pos == T + max_new_tokens - 1:
                return
            cache.reorder(parents)
            new = torch.tensor(tokens, device=idx.device)[:, None]
            logits = self.forward_text(new, ctx, TextState(cache, pos, condition_len, every))

    def answer(self, images, questions, top=5):
        """[(answer, probability), ...] per question (a model of hypotheses: per hypothesis), best
        first; images (B, ...), one a question, or None. UserError for a method that writes."""
        task = self.run_info.get("task", "question")
        return self.choose(images, [condition({task: q}) for q in questions], top)

    @torch.no_grad()
    def choose(self, images, conditions, top=1):
        """As answer, for whole conditions (data/tasks.py)."""
        if not self.method.answers:
            raise UserError("this model writes its answers: generate(images, prompt)")
        idx, condition_len = pad(conditions, self.lm.tokenizer, self.lm.wte.weight.device)
        logits, _ = self(images, idx, condition_len=condition_len)
        p, which = self.method.probabilities(logits).topk(min(top, logits.shape[1]))
        return [[(self.method.answers[a], value) for value, a in zip(*row)]
                for row in zip(p.tolist(), which.tolist())]

    # ------------------------------------------------------------------------ checkpoints

    def save(self, path, **notes):
        """Writes every trained parameter and nothing else; notes and run_info are its metadata."""
        tensors = {n: p.detach().cpu().contiguous() for n, p in self.trained().items()}
        write(path, tensors, {"format": "pt", "seegpt": json.dumps({**self.run_info, **notes})})

    @classmethod
    def load(cls, path, device="cpu", lm=None, clip=None):
        """From a run's folder (its best.safetensors, else last.safetensors) or one such file.

        The frozen models are loaded by the names they had in training, or from lm and clip, and
        refused where their hash differs: an adapter means nothing on top of other weights.
        """
        path, info = checkpoint_file(path), read_run_info(path)
        lm = load_lm(lm or repo_path(info["lm"]["name"]), find_method(info["method"]))
        vit = CLIPViT.from_pretrained(clip or repo_path(info["clip"]["name"]))
        for name, model, flag in (("lm", lm, "train_lm"), ("clip", vit, "train_vision")):
            if not info[flag] and fingerprint(model) != info[name]["sha256"]:
                raise UserError(f"{path} was trained on other {name} weights than "
                                f"{info[name]['name']} holds now; give those with --{name} PATH")
        config = method_config(info, path)
        with no_larger_than(path):
            method = find_method(info["method"])(config, lm, vit)
        model = cls(vit, lm, method, info["train_lm"], info["train_vision"])
        model.run_info = info
        model.restore(read(path), path)
        return model.to(device).eval()

    def restore(self, tensors, path):
        """Puts a checkpoint's tensors into the trained parameters; names and shapes must agree."""
        restore(self.trained(), tensors, path)


# ---------------------------------------------------------------------------- training

def training_step(forward, batch, optimizer, grad_clip, scaler=None, autocast=None, processes=None):
    """One optimiser step: forward, backward, step -> summed loss and targets of this process, norm.

    forward(*micro) -> logits, mean loss: the model, perhaps compiled. batch: micro-batches (data/
    batches.py), whose losses are weighted by their numbers of targets, over all processes: so the
    gradient is that of one big batch, however it is cut. norm: of the gradient, before clipping.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    counts = [int(count_targets(micro.targets)) for micro in batch]
    total = processes.sum([sum(counts)])[0] if processes else sum(counts)
    summed = 0
    for micro, count in zip(batch, counts):
        with autocast or nullcontext():
            loss = forward(*to_device(micro, params[0].device))[1]
        if not loss.requires_grad:
            raise UserError("no gradient reaches what is trained: does the method detach it?")
        scaler.scale(loss * count / total).backward()
        summed += loss.detach() * count
    if processes:
        processes.sum_gradients(params)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(params, grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return summed, sum(counts), norm
