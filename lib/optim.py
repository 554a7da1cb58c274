"""Learning rates over the steps, and what AdamW is told of each parameter."""


def schedule(optimizer, step, warmup, steps):
    """Sets the learning rates of a step: linearly up to each group's peak, then linearly down to 0 (as SmallCap)."""
    warmup = min(warmup, steps // 5)  # a short run on a small folder should not end in its warm-up
    part = (step + 1) / (warmup + 1) if step < warmup else (steps - step) / max(1, steps - warmup)
    for group in optimizer.param_groups:
        group["lr"] = part * group["peak"]


def parameter_groups(params, peak, weight_decay):
    """Parameter groups of AdamW with their peak learning rate; weight decay on matrices only."""
    groups = ((weight_decay, [p for p in params if p.dim() >= 2]), (0.0, [p for p in params if p.dim() < 2]))
    return [{"params": kept, "lr": peak, "peak": peak, "weight_decay": decay} for decay, kept in groups if kept]
