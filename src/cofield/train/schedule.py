"""The learning rate over a run."""

import math


def one_cycle(progress: float, warmup: float) -> float:
    """The share of the highest rate after a share `progress` of the steps: up along a cosine, then down to nothing."""
    if progress < warmup:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / warmup)) / 2
    rest = min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))
    return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * rest)) / 2
