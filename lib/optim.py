"""Learning rates over the steps, and what AdamW is told of each parameter."""

import torch

from lib.cli import UserError


def schedule(optimizer, step, warmup, steps):
    """Sets the learning rates of a step: linearly up to each group's peak, then linearly down to 0
    (as SmallCap)."""
    warmup = min(warmup, steps // 5)  # a short run on a small folder should not end in its warm-up
    part = (step + 1) / (warmup + 1) if step < warmup else (steps - step) / max(1, steps - warmup)
    for group in optimizer.param_groups:
        group["lr"] = part * group["peak"]


def parameter_groups(params, peak, weight_decay):
    """Parameter groups of AdamW with their peak learning rate; weight decay on matrices only."""
    params = list(params)
    decayed = [p for p in params if weight_decay and p.dim() >= 2]
    others = [p for p in params if not weight_decay or p.dim() < 2]
    return [{"params": kept, "lr": peak, "peak": peak, "weight_decay": decay}
            for decay, kept in ((weight_decay, decayed), (0.0, others)) if kept]


def make_optimizer(trained, config, device):
    """AdamW over {full name: parameter}; tuned backbones have a peak learning rate of their own."""
    method = [p for name, p in trained.items() if name.startswith("method.")]
    others = [p for name, p in trained.items() if not name.startswith("method.")]
    return torch.optim.AdamW(parameter_groups(method, config.lr, config.weight_decay)
                             + parameter_groups(others, config.backbone_lr, config.weight_decay),
                             betas=(0.9, config.beta2), fused=device.type == "cuda")


def check_reached(model, optimizer):
    """After a step: UserError if the gradient has left out a parameter of the method."""
    # AdamW keeps averages of what has had a gradient. None at all: float16 skipped its first step.
    left = [name for name, p in model.trained().items()
            if name.startswith("method.") and optimizer.state and p not in optimizer.state]
    if left:
        raise UserError(f"no gradient reaches {', '.join(left[:3])}{' ...' * (len(left) > 3)}: use "
                        "it in the method's hooks, do not detach what it gives, or leave it out")
