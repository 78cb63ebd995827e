"""The distillation-oriented trainer, an optimizer that weights the momentum of two losses differently.

Zhao, Cui, Song and Liang, "DOT: A Distillation-Oriented Trainer", ICCV 2023: SGD with two momentum buffers, of the
loss on the labels and of all others, from the two gradients of one forward pass.
"""
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class DOT(torch.optim.Optimizer):
    """SGD whose labels' momentum is m - delta and whose distillation's is m + delta; weight decay goes to the labels'.

    A parameter that only one of the losses reaches has momentum m, and weight decay; where that loss is the
    distillation's, its first step has no decay, as published.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float, weight_decay: float, delta: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "delta": delta})

    def backward(self, task: Tensor, distillation: Tensor) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Both losses' gradients, for `step`: scalars of one forward pass; a gradient or None for each parameter."""
        parameters = self.param_groups[0]["params"]
        kd = torch.autograd.grad(distillation, parameters, retain_graph=True, allow_unused=True)
        return list(torch.autograd.grad(task, parameters, allow_unused=True)), list(kd)

    @torch.no_grad()
    def step(self, task: Sequence[Tensor | None], distillation: Sequence[Tensor | None]) -> None:  # type: ignore[override]
        """One step; a gradient or None for each parameter, in their order."""
        group = self.param_groups[0]
        for p, of_task, of_kd in zip(group["params"], task, distillation, strict=True):
            if of_task is not None or of_kd is not None:
                self._update(p, of_task, of_kd, group)

    def _update(self, p, of_task, of_kd, group):
        state, decay = self.state[p], group["weight_decay"]
        delta = group["delta"] if of_task is not None and of_kd is not None else 0.0
        if of_task is not None:
            of_task = of_task.add(p, alpha=decay)
        elif "kd" in state:
            of_kd = of_kd.add(p, alpha=decay)
        velocity = 0.0
        for name, gradient, sign in (("task", of_task, -1), ("kd", of_kd, 1)):
            if gradient is None:
                continue
            if name not in state:
                state[name] = torch.clone(gradient)
            else:
                state[name].mul_(group["momentum"] + sign * delta).add_(gradient)
            velocity = state[name] + velocity
        # Not alpha: a captured step's learning rate is a tensor.
        p.sub_(group["lr"] * velocity)
