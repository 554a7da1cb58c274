"""Rows of text as data/batches.py lays them out for GPT-2, laid out anew for BERT and T5.

    GPT-2, LLaMA   first  condition ...  answer ...
    BERT           [CLS]  condition ...  [SEP]     and a mask; it writes no answer
    T5             condition ...  </s>             and a mask; its decoder: <pad>  answer ...

R rows, T tokens of a row, S of the longest condition with its end
"""

import torch
import torch.nn.functional as F


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
