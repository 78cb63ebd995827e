"""What the losses on logits share: distributions in log space, in float32 whatever comes in."""
import torch
from torch import Tensor

# Finite float32 logits may lie so far apart that a log-probability overflows to -inf, and 0 * inf is
# NaN. At this floor a probability is 0 all the same, and sums of such terms stay finite.
LOG_FLOOR = -1e30


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last dimension, float32, finite for finite logits."""
    return torch.log_softmax(logits.float() / temperature, dim=-1).clamp(min=LOG_FLOOR)


def log_softmax_without(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """The same over the classes other than the label, renormalised; the label's own entry is LOG_FLOOR.

    logits: (B, C) with C >= 2; labels: (B,) int64
    """
    others = logits.float().scatter(1, labels[:, None], -torch.inf)
    return log_softmax(others, temperature)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension, of log-probabilities as log_softmax gives them."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
