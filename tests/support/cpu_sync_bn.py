"""Batch norm over the whole batch of several processes on the CPU, by plain operations."""
import torch
import torch.distributed as dist
from torch import Tensor, nn

from helper.util import distributed


def convert_sync_batchnorm(module: nn.Module, device: torch.device) -> None:
    """In the place of build.convert_sync_batchnorm."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            synchronised = PlainSyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine,
                                              child.track_running_stats)
            if child.affine:
                synchronised.weight, synchronised.bias = child.weight, child.bias
            synchronised._buffers = child._buffers
            setattr(module, name, synchronised.train(child.training))
        else:
            convert_sync_batchnorm(child, device)


class PlainSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose mean and variance are those of all processes' rows; input (B, channels, ...)."""

    def _check_input_dim(self, input):
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        others = [0, *range(2, x.dim())]

        def by_channel(values):
            return values.view(1, -1, *[1] * (x.dim() - 2))

        n = distributed.all_reduce_sum(torch.tensor(x.numel() / x.shape[1], dtype=torch.float64)).item()
        mean = _Sum.apply(x.sum(others)) / n
        centred = x - by_channel(mean)
        variance = _Sum.apply(centred.square().sum(others)) / n
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * n / max(n - 1, 1), momentum)
        out = centred * by_channel((variance + self.eps).rsqrt())
        if self.affine:
            out = out * by_channel(self.weight) + by_channel(self.bias)
        return out.to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the processes; each process's loss depends on all summands, so the gradient is a sum too."""

    @staticmethod
    def forward(ctx, values):
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad
