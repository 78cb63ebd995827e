"""The learning rate of an epoch."""
from collections.abc import Callable


def schedule(options) -> Callable[[int], float]:
    """epoch (the first is 1) -> learning rate, for the resolved options of a run; a pure function.

    It is multiplied by --lr_decay_rate after each of --lr_decay_epochs: with 150, epoch 151 is the first
    at the smaller one. With a --warm_up of W > 1 epochs, epoch e < W runs at --learning_rate * e / W; from
    epoch W on at the full learning rate (the published code stays at --learning_rate * (W - 1) / W).
    """
    o = options

    def rate(epoch):
        if epoch < o.warm_up:
            return o.learning_rate * epoch / o.warm_up
        return o.learning_rate * o.lr_decay_rate ** sum(epoch > e for e in o.lr_decay_epochs)

    return rate
