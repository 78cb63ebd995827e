"""What the losses on logits share: distributions in log space, in float32 whatever comes in."""
import torch
from torch import Tensor

# Finite float32 logits may lie so far apart that a log-probability overflows to -inf, and 0 * inf is
# NaN. At this floor a probability is 0 all the same, and sums of such terms stay finite.
LOG_FLOOR = -1e30

# A row whose deviation is below this part of its largest entry is constant but for float32's rounding.
RESOLUTION = 1e-6


def log_softmax(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last dimension, float32, finite for finite logits."""
    return torch.log_softmax(logits.float() / temperature, dim=-1).clamp(min=LOG_FLOOR)


def log_softmax_without(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """The same over the classes other than the label, renormalised; the label's own entry is LOG_FLOOR.

    logits: (B, C) with C >= 2; labels: (B,) int64
    """
    others = logits.float().scatter(1, labels[:, None], -torch.inf)
    return log_softmax(others, temperature)


def log_softmax_over(logits: Tensor, keep: Tensor, temperature: float = 1.0) -> Tensor:
    """The same over the classes that `keep`, (B, C) bool, says, renormalised; the others' entries are LOG_FLOOR.

    Each row keeps one class or more.
    """
    return log_softmax(logits.float().masked_fill(~keep, -torch.inf), temperature)


def log_binary(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """(B, 2): log-probability of the target, and of all other classes together."""
    log_p = log_softmax(logits, temperature)
    others = log_p.scatter(1, target[:, None], -torch.inf).logsumexp(1)
    return torch.stack([log_p.gather(1, target[:, None]).squeeze(1), others], dim=1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension, of log-probabilities as log_softmax gives them."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def standardise(x: Tensor) -> Tensor:
    """The z-score over the last dimension, with n - 1 in the deviation, float32, finite for finite x.

    A constant row has no scale: it becomes 0, with the gradient of x - mean. Single entries are such rows.
    """
    x = x.float()
    # The z-score does not depend on the scale: without the division the squares of large entries overflow.
    peak = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-12)
    x = x / peak
    x = x - x.mean(-1, keepdim=True)
    deviation = x.norm(dim=-1, keepdim=True) / max(x.shape[-1] - 1, 1) ** 0.5
    return x / torch.where(deviation > RESOLUTION, deviation, 1 / peak)
