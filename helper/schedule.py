"""The learning rate of an epoch."""
from collections.abc import Callable


def learning_rate_at(epoch: int, base: float, decay_epochs: list[int], decay_rate: float, warmup: int = 0) -> float:
    """The learning rate of `epoch` (the first is 1), a pure function.

    It is multiplied by `decay_rate` after each of `decay_epochs`: with 150, epoch 151 is the first
    at the smaller one. With a warm-up of W > 1 epochs, epoch e < W runs at base * e / W; from
    epoch W on at the full learning rate (the published code stays at base * (W - 1) / W).
    """
    if epoch < warmup:
        return base * epoch / warmup
    return base * decay_rate ** sum(epoch > e for e in decay_epochs)


def schedule(options) -> Callable[[int], float]:
    """epoch -> learning rate, for the resolved options of a run."""
    o = options
    return lambda epoch: learning_rate_at(epoch, o.learning_rate, o.lr_decay_epochs, o.lr_decay_rate, o.warm_up)
