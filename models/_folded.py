"""A network that is never trained, made faster: batch norms folded into the convolutions before them."""
import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models._base import Classifier


@torch.no_grad()
def folded(network: Classifier, images: Tensor) -> Classifier:
    """A copy in evaluation mode whose outputs are the same within rounding: a convolution does the work of the batch
    norm after it, where nothing else reads the map between them.

    images: (B, 3, height, width), of which a forward pass shows which layer reads what
    """
    network = copy.deepcopy(network).eval()
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    # A hook may read the map between the two, or change it.
    plain = [module for module in network.modules() if type(module) in (nn.Conv2d, nn.BatchNorm2d)
             and not (module._forward_hooks or module._forward_pre_hooks)]
    hooks = [module.register_forward_hook(lambda module, inputs, result: calls.append((module, inputs[0], result)))
             for module in plain]
    with _Reads() as reads:
        outputs = network(images, named=True)
    for hook in hooks:
        hook.remove()
    taken = reads.times + Counter(id(x) for x in tree_leaves(tuple(outputs)))
    made = {id(result): module for module, _, result in calls if isinstance(module, nn.Conv2d)}
    once = {module for module, times in Counter(module for module, *_ in calls).items() if times == 1}
    for norm, read, _ in calls:
        convolution = made.get(id(read))
        if not isinstance(norm, nn.BatchNorm2d) or convolution is None:
            continue
        if taken[id(read)] == 1 and {norm, convolution} <= once:
            fused = fuse_conv_bn_eval(convolution, norm)
            convolution.weight, convolution.bias = fused.weight, fused.bias
            for name in [name for name, module in network.named_modules(remove_duplicate=False) if module is norm]:
                network.set_submodule(name, nn.Identity())
    return network


class _Reads(TorchDispatchMode):
    """Counts how many operators read each tensor, by its id; all are kept, so that no two have the same."""

    def __init__(self):
        super().__init__()
        self.times: Counter = Counter()
        self.kept: list = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        self.times.update(id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        self.kept.append((args, kwargs, result))
        return result
