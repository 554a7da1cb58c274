"""The thin place where image, language model and method meet: loss, generation, checkpoints.

  img (B,3,H,W)        idx (R,T)            R = B * k: k rows of text share an image,
       |                   |                the captions of one image in training,
  [ CLIP-ViT ]         [ wte+wpe ]          its beams in generation
       | feats (B,N,D)     | (R,T,C)
    (look)          +------+-------+
       | ctx        |    (block)   |  x L
       +----------> |  around one  |
       |            | frozen layer |
       |            +------+-------+
       +-------------->  (head)
                           | logits (R,T,V)
                        (loss)

[frozen], (a method's hook). A method is one nn.Module with these four hooks, most of them left at
their default, which is plain GPT-2. model.py calls them; gpt2.py and clip_vit.py never hear of them.
TextState i*k .. i*k + k-1 belong to image i; ctx stays per image and is never copied k times.

B images, R rows of text, T tokens, N image tokens, D ViT width, C GPT-2 width, L layers, V vocabulary

Next: ituning.py
"""

import difflib
import importlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from clip_vit import Attention, CLIPViT
from data.batches import pad
from data.tasks import condition
from gpt2 import GPT2, Cache, draw
from lib.cli import UserError
from lib.files import repo_path
from weights.reading import fingerprint, metadata, read
from weights.safetensors import write


@dataclass
class TextState:
    """Where these rows of text stand; given to a method's block and head."""

    cache: object = None  # gpt2.Cache with the keys and values read so far, or None
    pos: int = 0  # text tokens already in the cache; GPT-2's positions count text tokens only
    condition_len: object = None  # (R,) length of each row's text condition (prompt or question), no padding; of captioners 1
    wanted: object = None  # flat positions in R * T whose logits are wanted; None: all


class Method(nn.Module):
    """The hooks with their defaults: a GPT-2 that ignores the image. Subclass it, override some.

    The frozen models are passed in, never stored: so the state_dict is exactly what is trained.
    """

    needs_image = True  # False: items without an image are read as text alone, look(None) and ctx None
    answers = ()  # the classes of a method that chooses an answer; empty: it writes, as GPT-2 does
    record_attention = None  # set to a list: receives (layer, attention weights (R, nh, T, N)) on every pass
    n_prompt = 0  # prompt tokens that block puts in front of the text, at most: the cache leaves room

    def layers(self, gpt2):
        """How many layers the cache must have: more than GPT-2's own for a stack in head."""
        return len(gpt2.h)

    def encode_image(self, feats):
        """Once per image, feats (B, N, D): whatever the layers need later."""
        return feats

    def block(self, l, block, x, ctx, state):
        """Layer l of the language model, x (R, T, C) -> (R, T, C). May lengthen x, only at state.pos = 0."""
        return block(x, state.cache, l)

    def logits(self, lm, x, ctx, state):
        """The last states -> logits of text positions: (R, T, V), or (n, V) for n wanted positions.

        A method that lengthened x cuts its own tokens off first.
        """
        return lm.head(select(x, state))

    def loss(self, logits, targets):
        """Mean cross-entropy in nats; targets of -1 do not count. Of a method with answers: float
        targets (R, A), how right each answer is; a row of -1 does not count."""
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1)


def select(x, state):
    """x (R, T, C) at the positions in state.wanted only (n, C): no logits are made for the others."""
    return x if state.wanted is None else x.flatten(0, 1)[state.wanted]


# Where the built-in methods are: module and class. The config dataclass is the class's own `Config`, else the module's.
METHODS = {
    "ituning": ("ituning", "ITuning"),
    "vanilla": ("ituning", "Vanilla"),
    "vcgpt": ("ituning", "VCGPT"),
    "prefix": ("prompts", "Prefix"),
    "dvp": ("prompts", "DVP"),
}


def find_method(name):
    """The class of a method and its config dataclass.

    A name not in the table is a module of your own: `--method mymethod` takes mymethod.Method and
    mymethod.Config from mymethod.py, found where Python looks for modules, first of all here.
    """
    module, cls = METHODS.get(name, (name, "Method"))
    if name not in METHODS and importlib.util.find_spec(name) is None:
        near = difflib.get_close_matches(name, METHODS, n=1)
        raise UserError(f"there is no method {name}" + (f"; did you mean {near[0]}?" if near else "")
                        + f" Known: {', '.join(METHODS)}, or your own file {name}.py with a class Method")
    module = importlib.import_module(module)
    if not hasattr(module, cls):
        raise UserError(f"{name}.py has no class {cls}: see Method in model.py for what it must be")
    cls = getattr(module, cls)
    return cls, getattr(cls, "Config", getattr(module, "Config", Empty))


@dataclass
class Empty:
    """The config of a method without switches."""


class SeeGPT(nn.Module):
    """A frozen GPT-2, a frozen CLIP ViT and a trained method between them.

    train_lm and train_vision thaw the one or the other; they are then trained and saved too.
    """

    def __init__(self, vit, gpt2, method, train_lm=False, train_vision=False):
        super().__init__()
        self.vit, self.lm, self.method = vit, gpt2, method
        self.frozen = [m for m, on in ((vit, train_vision), (gpt2, train_lm)) if not on]
        vit.requires_grad_(train_vision)
        gpt2.requires_grad_(train_lm)
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
        """{full name: parameter} of everything that learns, and so of all that a checkpoint holds."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def cast_frozen(self, dtype):
        """Holds the matrices of the frozen layers in dtype ("bfloat16" or torch.bfloat16); returns self.

        For use under torch.autocast with that dtype, which otherwise rounds the same matrices again
        on every pass: half the memory, and the same results bit for bit. Embeddings and norms, which
        autocast leaves alone, stay float32, and so does everything that is trained.
        """
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        for model in self.frozen:
            for module in model.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d, Attention)):
                    for p in module.parameters(recurse=False):
                        p.data = p.data.to(dtype)
        return self

    def image_features(self, images):
        """Images (B, 3, H, W) -> feats (B, N, D). Feats computed before pass through, and so does None."""
        if images is None or images.dim() == 3:
            return images
        if self.vit in self.frozen:
            with torch.no_grad():
                return self.vit(images)
        return self.vit(images)

    def forward(self, images, idx, targets=None, cond=None, all_logits=False):
        """images (B, 3, H, W) or feats (B, N, D); idx, targets (R, T) with R = B * k -> logits, loss.

        Without targets: logits (R, T, V) and None. With targets (-1: not scored) logits are None,
        since they are made only where they are scored; all_logits=True makes and returns all. A
        method with answers has float targets (R, A) and always returns its logits (R, A).
        """
        pick, all_logits = None, all_logits or bool(self.method.answers)
        if targets is not None and not all_logits:
            pick = (targets.flatten() != -1).nonzero().squeeze(1)
        ctx = self.method.encode_image(self.image_features(images))
        logits = self.forward_text(idx, ctx, TextState(condition_len=cond, wanted=pick))
        if targets is None:
            return logits, None
        loss = self.method.loss(logits, targets if pick is None else targets.flatten()[pick])
        return (logits if all_logits else None), loss

    def forward_text(self, idx, ctx, state):
        """The rows of text, new tokens only if there is a cache, -> logits as the method's head makes them."""
        x = self.lm.embed(idx, state.pos)
        for l, block in enumerate(self.lm.h):
            x = self.method.block(l, block, x, ctx, state)
        return self.method.logits(self.lm, x, ctx, state)

    # ------------------------------------------------------------------------ generation

    @torch.no_grad()
    def generate(self, images, prompt="", beam=5, max_new_tokens=30, length_penalty=0.0, early_stopping=False,
                 temperature=0.0, top_k=0, top_p=1.0, with_ids=False):
        """One caption per image, without the prompt; prompt is one text or one per image.

        Beam search (see beam); beam 1 is greedy. temperature above 0 samples instead (see sample).
        Prompts of unequal length run in groups of equal length, because GPT-2 here has no padding
        mask. with_ids: (caption, its token ids) per image.
        """
        enc, feats = self.lm.tokenizer, self.image_features(images)
        prompts = [prompt] * len(feats) if isinstance(prompt, str) else prompt
        texts = [None] * len(prompts)
        for group, idx in self.by_length(prompts):
            of = None if feats is None else feats[group]
            if temperature > 0:
                out = self.sample(of, idx, max_new_tokens, temperature, top_k, top_p)
            else:
                out, _ = self.beam(of, idx, beam, max_new_tokens, length_penalty, early_stopping)
            for i, tokens in zip(group, out):
                tokens = [t for t in tokens if t != enc.eot_token]
                texts[i] = (enc.decode(tokens).strip(), tokens)
        return texts if with_ids else [text for text, _ in texts]

    def answer(self, images, questions, top=5):
        """[(answer, probability), ...] per question, best first; images (B, ...), one a question, or None.

        For methods that choose among answers. UserError for one that writes: ask it with generate. A
        model trained on hypotheses takes these as questions.
        """
        return self.choose(images, [condition({self.run_info.get("task", "question"): q}) for q in questions], top)

    @torch.no_grad()
    def choose(self, images, prompts, top=1):
        """As answer, of conditions as they are."""
        if not self.method.answers:
            raise UserError("this model writes its answers, so they have no probabilities: generate(images, prompt)")
        idx, cond = pad(prompts, self.lm.tokenizer, self.lm.wte.weight.device)
        p = self.method.probabilities(self.forward_text(idx, self.method.encode_image(self.image_features(images)), TextState(condition_len=cond)))
        best, which = p.topk(min(top, p.shape[1]))
        return [[(self.method.answers[a], value) for value, a in zip(*row)] for row in zip(best.tolist(), which.tolist())]

    def by_length(self, prompts):
        """Groups of prompts of equal length: (their numbers, ids (n, T) that begin with end-of-text)."""
        enc = self.lm.tokenizer
        ids = [[enc.eot_token, *enc.encode_ordinary(p)] for p in prompts]
        for length in sorted({len(i) for i in ids}):
            group = [i for i in range(len(ids)) if len(ids[i]) == length]
            yield group, torch.tensor([ids[i] for i in group], device=self.lm.wte.weight.device)

    def condition_lengths(self, cond):
        """Lengths (R,) of what is given of each text -> of its condition: for who learnt captions, as in training, that is
        the first token alone, whatever the prompt."""
        return torch.ones_like(cond) if self.run_info.get("task") == "captions" else cond

    def start(self, images, idx, max_new_tokens):
        """Reads the prompts (B, T) -> ctx, cache, cond (B,), and logits (B, V) for the first new token."""
        B, T = idx.shape
        if self.method.answers:
            raise UserError("this model chooses among answers, so it writes no text: ask it questions")
        if T + max_new_tokens > self.lm.config.n_positions:
            raise UserError(f"prompt and caption need {T + max_new_tokens} positions, this GPT-2 has "
                            f"{self.lm.config.n_positions}: ask for fewer new tokens")
        ctx = self.method.encode_image(self.image_features(images))
        cache = Cache(self.method.layers(self.lm), T + max_new_tokens + self.method.n_prompt)
        cond = self.condition_lengths(torch.full((B,), T, device=idx.device))
        last = torch.arange(1, B + 1, device=idx.device) * T - 1
        return ctx, cache, cond, self.forward_text(idx, ctx, TextState(cache, 0, cond, last))

    @torch.no_grad()
    def sample(self, images, idx, max_new_tokens=30, temperature=1.0, top_k=0, top_p=1.0):
        """Texts drawn at random (gpt2.draw) from ids (B, T), one row an image -> new ids (list per image)."""
        B, T = idx.shape
        eot = self.lm.config.vocab_size - 1
        ctx, cache, cond, logits = self.start(images, idx, max_new_tokens)
        out, done = [[] for _ in range(B)], torch.zeros(B, dtype=torch.bool, device=idx.device)
        for step in range(max_new_tokens):
            new = draw(logits.float(), temperature, top_k, top_p)
            for ids, token, over in zip(out, new.tolist(), done.tolist()):
                ids += [] if over else [token]  # a row that has ended is frozen and goes on as filler
            done |= new == eot
            if done.all() or step == max_new_tokens - 1:
                return out
            state = TextState(cache, T + step, cond, torch.arange(B, device=idx.device))
            logits = self.forward_text(new[:, None], ctx, state)

    @torch.no_grad()
    def beam(self, images, idx, beam=5, max_new_tokens=30, length_penalty=0.0, early_stopping=False):
        """Beam search from ids (B, T), one row an image -> new ids (list per image), scores (B,).

        A text's score is its summed log-probability / (number of new tokens ** length_penalty), the
        end token included in both. An image is done when it has `beam` finished texts and the best
        unfinished one, as long as it is now, scores less than the worst of them (with a penalty
        above 0 a guess, since it might still gain by growing); early_stopping: as soon as it has
        `beam` finished texts. Its prompt runs once and is then repeated for the beams. Same texts
        and scores as transformers' beam search.
        """
        B, T = idx.shape
        eot = self.lm.config.vocab_size - 1
        ctx, cache, cond, logits = self.start(images, idx, max_new_tokens)  # logits (B, V)
        cache.repeat(beam)
        cond = cond.repeat_interleave(beam)
        running = [[(0.0, [])] for _ in range(B)]  # (summed log-probability, new ids) per image, best first
        done = [[] for _ in range(B)]  # (score, new ids), best first
        over = [False] * B
        for step in range(max_new_tokens):
            logp = logits.float().log_softmax(-1)
            best, tok = logp.topk(min(2 * beam, logp.shape[-1]))  # 2 * beam: up to `beam` of them may be EOT
            best, tok = best.tolist(), tok.tolist()
            parents, tokens = [], []
            for b in range(B):
                if over[b]:  # frozen: its rows go on as filler, so that the others' rows keep their places
                    parents += range(b * beam, (b + 1) * beam)
                    tokens += [eot] * beam
                    continue
                row = b * beam if step else b
                options = sorted(((s + p, i, t) for i, (s, _) in enumerate(running[b])
                                  for p, t in zip(best[row + i], tok[row + i])), key=lambda o: -o[0])[:2 * beam]
                alive = []
                for rank, (s, i, t) in enumerate(options):
                    ids = running[b][i][1] + [t]
                    if t == eot or step == max_new_tokens - 1:
                        if rank < beam:
                            done[b].append((s / len(ids) ** length_penalty, ids))
                    elif len(alive) < beam:
                        alive.append((s, ids, row + i if step else b * beam + i))
                done[b] = sorted(done[b], key=lambda d: -d[0])[:beam]
                alive += [(-float("inf"), [eot], b * beam)] * (beam - len(alive))  # tiny vocabularies only
                running[b] = [(s, ids) for s, ids, _ in alive]
                parents += [p for _, _, p in alive]
                tokens += [ids[-1] for _, ids, _ in alive]
                hope = running[b][0][0] / (step + 1) ** length_penalty
                over[b] = len(done[b]) == beam and (early_stopping or done[b][-1][0] >= hope)
            if all(over) or step == max_new_tokens - 1:
                break
            cache.reorder(parents)
            new = torch.tensor(tokens, device=idx.device)[:, None]
            state = TextState(cache, T + step, cond, torch.arange(B * beam, device=idx.device))
            logits = self.forward_text(new, ctx, state)  # (B * beam, V)
        return [d[0][1] for d in done], torch.tensor([d[0][0] for d in done])

    # ------------------------------------------------------------------------ checkpoints

    def save(self, path, **notes):
        """Writes every trained parameter and nothing else; notes and origin go into the metadata."""
        tensors = {n: p.detach().cpu().contiguous() for n, p in self.trained().items()}
        write(Path(path), tensors, {"format": "pt", "seegpt": json.dumps({**self.run_info, **notes})})

    @classmethod
    def load(cls, path, device="cpu", gpt2=None, clip=None):
        """From a run's folder (its best.safetensors, else last.safetensors) or one such file.

        The frozen models are loaded by the names they had in training, or from gpt2 and clip, and
        refused where their hash differs: an adapter means nothing on top of other weights.
        """
        path, origin = checkpoint_file(path), read_run_info(path)
        vit = CLIPViT.from_pretrained(clip or repo_path(origin["clip"]["name"]))
        lm = GPT2.from_pretrained(gpt2 or repo_path(origin["gpt2"]["name"]))
        tensors = read(path)
        kept = {"gpt2": lm if not origin["train_lm"] else None, "clip": vit if not origin["train_vision"] else None}
        for name, model in kept.items():
            if model is not None and fingerprint(model) != origin[name]["sha256"]:
                raise UserError(f"{path} was trained on other {name} weights than {origin[name]['name']} holds "
                                f"now; give those it was trained on with --{name} PATH")
        method, config = find_method(origin["method"])
        model = cls(vit, lm, method(config(**origin["config"]), lm, vit), origin["train_lm"], origin["train_vision"])
        model.run_info = origin
        model.restore(tensors, path)
        return model.to(device).eval()

    def restore(self, tensors, path):
        """Puts a checkpoint's tensors into the trained parameters; every name and shape must agree."""
        ours = self.trained()
        wrong = sorted(set(ours) ^ set(tensors)) or [n for n in ours if ours[n].shape != tensors[n].shape]
        if wrong:
            raise UserError(f"{path} does not fit this model: {', '.join(wrong[:5])} "
                            "(missing, unknown or of another shape); was the method's code or config changed?")
        with torch.no_grad():
            for n, p in ours.items():
                p.copy_(tensors[n])


# ---------------------------------------------------------------------------- what is asked


def check_context(gpt2, texts, more):
    """UserError for a text that leaves less than so many positions: at the start, not when its turn comes."""
    for text in texts:
        if 1 + len(text.encode()) + more <= gpt2.config.n_positions:  # a token is a byte at least
            continue
        if (n := 1 + len(gpt2.tokenizer.encode_ordinary(text))) + more > gpt2.config.n_positions:
            raise UserError(f"{text[:40]!r}... has {n} tokens, with {more} more for the answer too many for the "
                            f"{gpt2.config.n_positions} positions of this GPT-2: shorten it or leave it out")


def checkpoint_file(path):
    """The weight file meant by a run's folder or by the file's own path."""
    path = Path(path)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).exists():
                return path / name
    if path.is_file():
        return path
    raise UserError(f"{path}: no checkpoint here (best.safetensors or last.safetensors); "
                    "train.py writes one to out/NAME")


def read_run_info(path):
    """How a checkpoint was made: method, config, names and hashes of the frozen files (see train.py)."""
    path = checkpoint_file(path)
    note = metadata(path).get("seegpt")
    if note is None:
        raise UserError(f"{path}: not a checkpoint of train.py (its metadata has no entry seegpt)")
    return json.loads(note)


