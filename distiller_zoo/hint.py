"""FitNets: hints for thin deep networks.

Romero, Ballas, Kahou, Chassang, Gatta and Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015.
MSE(regressor(f_s), f_t) of one feature map, equation 3; trained here beside the other terms.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method, MethodError
from distiller_zoo._layers import OTHERS, ConvRegressor
from helper.util.arguments import nonnegative_int

__all__ = ["HintLoss"]


class HintLoss(nn.Module):
    """The mean squared difference of two feature maps of one shape."""

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Both (B, channels, height, width); a scalar."""
        return F.mse_loss(f_s, f_t)


class Hint(Method):
    name = "hint"
    paper = "Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015"
    formula = "b · MSE(regressor(f_s), f_t) of one feature map"
    flags = (Flag("--hint_layer", 2, nonnegative_int, "which map: 0 the stem, then the stages", (0, 1, 2, 3, 4)),)
    reads = frozenset({"stem", "stages"})
    beta = 100.0

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight, self.layer = options.beta, options.hint_layer
        maps = [self._maps(setup.student), self._maps(setup.teacher)]
        for network, own in zip((setup.student_name, setup.teacher_name), maps, strict=True):
            if self.layer >= len(own):
                raise MethodError(f"--hint_layer {self.layer}: {network} has maps 0 to {len(own) - 1} "
                                  f"({setup.teacher_name} teaches {setup.student_name}): give a smaller one")
        try:
            self.regressor = ConvRegressor(maps[0][self.layer].shape, maps[1][self.layer].shape, relu=True)
        except ValueError as error:
            raise MethodError(f"hint cannot pair map {self.layer} of {setup.student_name} and {setup.teacher_name} "
                              f"({error}): give another --hint_layer; {OTHERS}") from None
        self.loss = HintLoss()

    @staticmethod
    def _maps(outputs):
        return (outputs.stem, *outputs.stages)

    def forward(self, student, teacher, batch):
        f_s, f_t = self._maps(student)[self.layer], self._maps(teacher)[self.layer]
        return self.weight * self.loss(self.regressor(f_s), f_t)
