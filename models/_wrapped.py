"""Networks of other libraries behind this repository's interface, their features taken by forward hooks."""
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models._base import Classifier, ModelError, Outputs

# The images of the one forward pass that finds the stages: 1/32 of this is still a map.
PROBE_SIZE = 64
STAGES = 4


class Wrapped(Classifier):
    """A network of another library.

    pooled: what the last linear layer reads (before a dropout right in front of it)
    stages: the last map of each size among `candidates`, of the four smallest sizes
    stem: the map that the first candidate of the first stage's size reads
    preacts: the stages before their last ReLU, where a ReLU ends every stage
    A field that cannot be found stays empty; methods that read it refuse the network.

    The state dict has the other library's own names, so that weights go both ways. In-place layers are made
    ordinary ones (the same values), for they would overwrite what is kept.

    name: the network's full name, such as 'torchvision:resnet18'
    network: images (B, 3, height, width) -> logits (B, num_classes)
    head: the name in `network` of the linear layer that gives the logits; None if there is no such layer
    candidates: names in `network` of modules whose results may be stages, in the order of the forward pass
    """

    def __init__(self, name: str, network: nn.Module, num_classes: int, head: str | None, candidates: list[str]):
        super().__init__(name)
        for module in network.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        self.network, self.num_classes, self.head = network, num_classes, head
        self.seen: dict[str, Any] = {}
        self.sizes: set[torch.Size] = set()
        self.register_state_dict_post_hook(_take_off)
        self.register_load_state_dict_pre_hook(_put_on)
        self.layout = find_layout(network, candidates)
        if head is not None:
            _before_dropout(network, head).register_forward_pre_hook(partial(self._keep_input, "pooled"))
        if self.layout.stages:
            network.get_submodule(self.layout.after_stem).register_forward_pre_hook(partial(self._keep_input, "stem"))
        for stage in self.layout.stages:
            network.get_submodule(stage).register_forward_hook(partial(self._keep_result, stage))
        for relu in self.layout.relus:
            network.get_submodule(relu).register_forward_pre_hook(partial(self._keep_input, relu))

    def outputs(self, x: Tensor) -> Outputs:
        self.seen = {}
        try:
            logits = self.network(x)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError) as error:
            if x.shape[2:] in self.sizes:
                raise
            height, width = x.shape[2:]
            raise ModelError(f"{self.name} does not take images of {height}×{width} pixels ({error}): "
                             "choose another network") from None
        self.sizes.add(x.shape[2:])
        seen, self.seen = self.seen, {}
        return Outputs(
            logits=logits,
            pooled=seen.get("pooled"),  # type: ignore[arg-type]  # a field that is not offered stays None
            stages=tuple(seen[stage] for stage in self.layout.stages),
            preacts=tuple(seen[relu] for relu in self.layout.relus),
            stem=seen.get("stem"),  # type: ignore[arg-type]
        )

    def classifier_layer(self):
        return self.network.get_submodule(self.head) if self.head is not None else None

    # Bound methods, not closures: a copy of the network has hooks of its own.
    def _keep_input(self, key, module, inputs):
        self.seen[key] = inputs[0]

    def _keep_result(self, key, module, inputs, result):
        self.seen[key] = result


class Layout(NamedTuple):
    """Names of modules.

    after_stem: the first candidate of the first stage's size
    stages: those whose results are the stages
    relus: the ReLU that ends each stage; empty unless every stage has one
    """

    after_stem: str = ""
    stages: tuple[str, ...] = ()
    relus: tuple[str, ...] = ()


@torch.no_grad()
def find_layout(network: nn.Module, candidates: list[str]) -> Layout:
    """See Wrapped; by one pass of a small black image in evaluation mode.

    Empty where the network does not take it (those of a fixed size), and where a candidate's result is no map of
    channels first.
    """
    results, relus, training = {}, {}, network.training
    hooks = [network.get_submodule(name).register_forward_hook(
        lambda module, inputs, result, name=name: results.update({name: result})) for name in candidates]
    hooks += [module.register_forward_hook(
        lambda module, inputs, result, name=name: relus.update({name: result}))
        for name, module in network.named_modules() if isinstance(module, nn.ReLU)]
    try:
        network.eval()(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
    except Exception:  # networks of a fixed size raise what their layers happen to
        return Layout()
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    # By size, in the order of the pass.
    first: dict[int, str] = {}
    last: dict[int, str] = {}
    for name, result in results.items():
        # The image is square: a map that is not has its channels last.
        if not isinstance(result, Tensor) or result.ndim != 4 or result.shape[2] != result.shape[3]:
            return Layout()
        first.setdefault(result.shape[2], name)
        last[result.shape[2]] = name
    sizes = list(last)[-STAGES:]
    if not sizes:
        return Layout()
    stages = tuple(last[size] for size in sizes)
    ends = [relu for stage in stages for relu in relus if relus[relu] is results[stage]]
    return Layout(first[sizes[0]], stages, tuple(ends) if len(ends) == len(stages) else ())


def _before_dropout(network, head):
    """The module that first reads the pooled vector: the head, or the dropout right before it in a Sequential."""
    parent, _, own = head.rpartition(".")
    if own.isdigit() and int(own) > 0:
        before = network.get_submodule(parent)[int(own) - 1]
        if isinstance(before, nn.Dropout):
            return before
    return network.get_submodule(head)


PREFIX = "network."


def _take_off(module, state_dict, prefix, local_metadata):
    for key in [key for key in state_dict if key.startswith(prefix + PREFIX)]:
        state_dict[prefix + key.removeprefix(prefix + PREFIX)] = state_dict.pop(key)


def _put_on(module, state_dict, prefix, *_):
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + PREFIX + key.removeprefix(prefix)] = state_dict.pop(key)
