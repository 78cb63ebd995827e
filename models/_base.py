"""What every network of this repository returns, and how it is called."""
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from helper.util.errors import UserError


class ModelError(UserError):
    """A network that is not available, or that cannot take these images; the message says what to do."""


class Outputs(NamedTuple):
    """The named outputs of a network for a batch of B images.

    A source that does not hold a field (a cache of logits, say) leaves it empty, and nobody reads it; `cam` and
    `strong` are computed only when asked for.

    logits: (B, classes)
    pooled: (B, width), the vector that the classifier reads
    stages: the feature maps of the stages, each (B, channels, height, width), without the stem
    preacts: the same maps before the last ReLU of their stage (see each family's docstring)
    stem: (B, channels, height, width), the map that the first stage reads
    last: (B, channels, height, width), the map whose mean over the places is `pooled`
    cam: (B, classes, height, width), the classifier's weight, without its bias, applied at each place of `last`
    strong: (B, classes), the logits of the strongly augmented second view of the same images (Batch.strong)
    """

    logits: Tensor = None  # type: ignore[assignment]
    pooled: Tensor = None  # type: ignore[assignment]
    stages: tuple[Tensor, ...] = ()
    preacts: tuple[Tensor, ...] = ()
    stem: Tensor = None  # type: ignore[assignment]
    last: Tensor = None  # type: ignore[assignment]
    cam: Tensor = None  # type: ignore[assignment]
    strong: Tensor = None  # type: ignore[assignment]

    def holds(self, field: str) -> bool:
        """Whether that field is not empty."""
        value = getattr(self, field)
        return value is not None and len(value) > 0


class Classifier(nn.Module):
    """A network whose last layer, the attribute that `head_name` names, maps the pooled vector to logits.

    A family implements `outputs`; everything else calls the network itself, so that hooks
    and wrappers (DistributedDataParallel, torch.compile) see every forward pass.

    name: the network's name in `model_dict`, for messages and records
    after_stages: the names of the modules between the last stage and the mean over the places, the published "feature
        modules" being all before them
    """

    head_name = "fc"
    after_stages: tuple[str, ...] = ()

    def __init__(self, name: str = ""):
        super().__init__()
        self.name = name

    def outputs(self, x: Tensor) -> Outputs:
        """All named outputs for images x: (B, 3, height, width)."""
        raise NotImplementedError(f"{type(self).__name__} does not implement outputs")

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False, named: bool = False, cam: bool = False):
        """The logits; with `named`, the Outputs, with `cam` where asked; with `is_feat`, the published pair.

        The published pair is (features, logits), features the list [stem, stages..., pooled];
        with `preact` the stages are those before their last ReLU.
        """
        out = self.outputs(x)
        if named:
            return out._replace(cam=self._cam(out)) if cam else out
        if is_feat:
            return [out.stem, *(out.preacts if preact else out.stages), out.pooled], out.logits
        return out.logits

    def finish(self, stem: Tensor, stages: Sequence[Tensor], preacts: Sequence[Tensor], last: Tensor) -> Outputs:
        """The Outputs of these maps: `last` averaged over the places, and what the classifier makes of that."""
        pooled = self.pool(last)
        return Outputs(getattr(self, self.head_name)(pooled), pooled, tuple(stages), tuple(preacts), stem, last)

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c), the mean over the map, whatever its size.

        A window as large as the map adds up in the same order as the published fixed windows, so that
        the result is theirs to the last bit at 32×32; adaptive pooling and `mean` differ in rounding.
        """
        return F.avg_pool2d(x, x.shape[2:]).flatten(1)

    def _cam(self, out):
        classifier = self.classifier_layer()
        if out.last is None or classifier is None:
            return None
        return F.conv2d(out.last, classifier.weight[:, :, None, None])

    def classifier_layer(self) -> nn.Linear | None:
        """The linear layer that maps the pooled vector to the logits; None where there is none."""
        head = getattr(self, self.head_name)
        return head if isinstance(head, nn.Linear) else head[-1]

    def feature_parameters(self):
        """The parameters of the layers up to the last stage, which a method's first stage trains; all where there is no
        classifier_layer."""
        after = [self.classifier_layer(), *map(self.get_submodule, self.after_stages)]
        rest = {id(p) for module in after if module is not None for p in module.parameters()}
        return [p for p in self.parameters() if id(p) not in rest]
