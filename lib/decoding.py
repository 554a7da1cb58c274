"""How the next tokens are picked: the likeliest one, at random, or by beam search. No model here.

model.decode gives logits (R, V) to extend, which says which row each new row continues and with
which token, until over.
"""

import math

import torch


def sample_token(logits, temperature, top_k=0, top_p=1.0):
    """Next token ids (B,) from logits (B, V). Temperature 0 or nearly: the likeliest, no dice.

    top_k: only among so many; 0: all. top_p (Holtzman et al. 2020): only among the fewest tokens
    whose probabilities sum to at least so much. Both: first top_k, then top_p.
    """
    if temperature < 1e-6:  # what a division by it tends to, before it overflows
        return logits.argmax(-1)
    logits, ids = (logits / temperature).sort(-1, descending=True)
    if top_k:
        logits[:, top_k:] = -math.inf
    p = logits.softmax(-1)
    before = p.cumsum(-1) - p  # what the likelier ones sum to
    p[:, 1:][before[:, 1:] >= top_p] = 0  # the likeliest always stays
    return ids.gather(1, torch.multinomial(p, 1)).squeeze(1)


class Draws:
    """One text an image: pick(logits (B, V)) -> tokens (B,), at random or the likeliest ones."""

    rows = 1  # rows of text an image

    def __init__(self, images, pick, eot):
        self.pick, self.eot, self.texts = pick, eot, [[] for _ in range(images)]

    def extend(self, logits):
        tokens = self.pick(logits).tolist()  # a row that has ended goes on as filler
        for text, token in zip(self.texts, tokens):
            text.append(token)
        return range(len(tokens)), tokens

    @property
    def over(self):
        return all(self.eot in text for text in self.texts)


class Beams:
    """Beam search, for all images at once. Same texts and scores as transformers' beam search."""

    def __init__(self, images, beam, max_new_tokens, length_penalty, eot):
        self.rows, self.images = beam, [Beam(beam, max_new_tokens, length_penalty, eot)
                                        for _ in range(images)]

    def extend(self, logits):
        logp = logits.log_softmax(-1)
        # 2 * beam: up to `beam` of them may be the end. A prompt has one row, not beam.
        best, ids = logp.topk(min(2 * self.rows, logp.shape[-1]))
        best, ids = (x.unflatten(0, (len(self.images), -1)).tolist() for x in (best, ids))
        parents, tokens = [], []
        for i, image in enumerate(self.images):
            continued, new = image.extend(best[i], ids[i])
            parents += [i * self.rows + row for row in continued]
            tokens += new
        return parents, tokens

    @property
    def over(self):
        return all(image.over for image in self.images)

    @property
    def texts(self):
        return [image.done[0][1] for image in self.images]

    @property
    def scores(self):
        return torch.tensor([image.done[0][0] for image in self.images])


class Beam:
    """The beams of one image, scored by their sums of log-probabilities.

    A finished text's score is divided by its length in tokens ** length_penalty, the end token
    included in both. The search is over when there are `beam` finished texts and the best
    unfinished one, as long as it is now, scores less than the worst of them (with a penalty above
    0 a guess, since it might still gain by growing).
    """

    def __init__(self, beam, max_new_tokens, length_penalty, eot):
        self.beam, self.max_new_tokens, self.eot = beam, max_new_tokens, eot
        self.length_penalty = length_penalty
        self.running, self.done = [(0.0, [])], []  # (score, new ids), best first
        self.length, self.over = 0, False

    def extend(self, logp, tokens):
        """One more token: for each running text its likeliest ones and their log-probabilities ->
        which text each new one continues, and its last token; `beam` of each."""
        if self.over:  # frozen: goes on as filler, so that other images' rows keep their places
            return list(range(self.beam)), [self.eot] * self.beam
        self.length += 1
        options = sorted(((score + p, i, t) for i, (score, _) in enumerate(self.running)
                          for p, t in zip(logp[i], tokens[i])), key=lambda o: -o[0])
        alive = []
        for rank, (score, i, t) in enumerate(options[:2 * self.beam]):
            ids = self.running[i][1] + [t]
            if t == self.eot or self.length == self.max_new_tokens:
                if rank < self.beam:
                    self.done.append((score / len(ids) ** self.length_penalty, ids))
            elif len(alive) < self.beam:
                alive.append((score, ids, i))
        self.done = sorted(self.done, key=lambda d: -d[0])[:self.beam]
        alive += [(-float("inf"), [self.eot], 0)] * (self.beam - len(alive))  # tiny vocabularies
        self.running = [(score, ids) for score, ids, _ in alive]
        hope = self.running[0][0] / self.length ** self.length_penalty
        self.over = len(self.done) == self.beam and self.done[-1][0] >= hope
        return [i for _, _, i in alive], [ids[-1] for _, ids, _ in alive]
