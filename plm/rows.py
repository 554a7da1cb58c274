"""Rows of text as data/batches.py lays them out for GPT-2, laid out anew for BERT and T5: what
model.py calls as lm.start(idx, state, run).

    GPT-2, LLaMA   first  condition ...  answer ...
    BERT           [CLS]  condition ...  [SEP]     and a mask; it writes no answer
    T5             condition ...  </s>             and a mask; its decoder: <pad>  answer ...

R rows, T tokens of a row, S of the longest condition with its end
"""

import torch
import torch.nn.functional as F

from lib.cli import UserError
from weights.t5_layout import EOS, PAD


def lengths(idx, condition_len):
    """The tokens of each row's condition, the first included: (R,); None: the first alone."""
    return idx.new_ones(len(idx)) if condition_len is None else condition_len


def end_conditions(idx, condition_len, end):
    """idx (R, T) with the id end behind each condition: (R, T + 1), and the mask of what counts."""
    n = lengths(idx, condition_len)[:, None]
    place = torch.arange(idx.shape[1] + 1, device=idx.device)
    return F.pad(idx, (0, 1)).masked_fill(place == n, end), place <= n


def split_rows(idx, condition_len, wanted, first, end):
    """Rows (R, T) -> the conditions without the first token, with their end: ids (R, S) and mask;
    what stands behind them, with the id first in front (R, T'); wanted, flat positions in R * T, as
    those in R * T'."""
    T, n = idx.shape[1], lengths(idx, condition_len)
    ended, mask = end_conditions(idx, n, end)
    S, left = int(n.max()), T - int(n.min()) + 1
    places = torch.arange(left, device=idx.device) + n[:, None] - 1
    behind = idx.gather(1, places.clamp(max=T - 1))[:, 1:]
    if wanted is not None:
        rows = wanted // T
        wanted = rows * left + wanted % T - (n[rows] - 1)
    return ended[:, 1:S + 1], mask[:, 1:S + 1], F.pad(behind, (1, 0), value=first), wanted


def start_bert(bert, idx, state, run):
    """Rows (R, T), which begin with [CLS] -> x (R, T + 1, C): each condition gets its [SEP],
    and the layers a mask for what is behind. [CLS] stands for all of the text."""
    if state.wanted is not None:
        raise UserError("BERT fills in words, it writes no text: choose among answers, "
                        "--readout head")
    idx, state.cache = end_conditions(idx, state.condition_len, bert.eot)
    state.condition_len = None
    return bert.embed(idx)


def start_t5(t5, idx, state, run):
    """Rows (R, T) -> x (R, T', C) of what the decoder reads. The encoder reads the conditions, its
    layers by their places from the end: run(l - n, layer, x, None, state)."""
    def run_here(l, layer, x, reading):
        state.cache = reading
        return run(l - len(t5.reader), layer, x, None, state)

    if state.pos:
        return t5.embed(idx)
    text, mask, idx, state.wanted = split_rows(idx, state.condition_len, state.wanted, PAD, EOS)
    state.cache = t5.read(text, mask, state.cache.max_len if state.cache else 0, run_here)
    seen = mask[..., None]
    state.summary = (state.cache.states * seen).sum(1, True) / seen.sum(1, True)  # the mean
    state.condition_len = None
    return t5.embed(idx)
