"""What a run prints while it trains."""
import sys
import time

from helper.util.progress import clock


class Progress:
    """A line an epoch, and between them, where epochs are long, one every `print_freq` steps.

    On a terminal that line is overwritten; elsewhere it appears at most every 15 seconds.
    """

    PAUSE = 15

    def __init__(self, phase, first_epoch: int, steps: int, print_freq: int):
        self.name, self.epochs, self.steps, self.print_freq = phase.name, phase.epochs, steps, print_freq
        self.first_epoch = first_epoch
        self.started = self.spoke = time.perf_counter()
        self.live = sys.stdout.isatty()

    def _left(self, epoch, step):
        done = (epoch - self.first_epoch) * self.steps + step
        left = (self.epochs - epoch + 1) * self.steps - step
        return clock((time.perf_counter() - self.started) / done * left)

    def step(self, epoch, step, meters):
        if step % self.print_freq or step == self.steps:
            return
        if not self.live and time.perf_counter() - self.spoke < self.PAUSE:
            return
        self.spoke = time.perf_counter()
        line = (f"{self.name} {epoch}/{self.epochs}  step {step}/{self.steps}  loss {meters.loss():.4f}  "
                f"{self._left(epoch, step)} left")
        print(f"\r{line}\033[K" if self.live else line, end="" if self.live else "\n", flush=True)

    def epoch(self, epoch, averages, tested, best, seconds, speed):
        self.spoke = time.perf_counter()
        parts = [f"{self.name} {epoch:>{len(str(self.epochs))}}/{self.epochs}", f"loss {averages.loss:.4f}"]
        if len(averages.losses) > 1:
            parts[-1] += " (" + ", ".join(f"{name} {value:.4f}" for name, value in averages.losses.items()) + ")"
        if tested:
            parts += [f"train {averages.top1:.2f}", f"test {tested.top1:.2f}", f"best {best['top1']:.2f}"]
        parts += [f"{seconds:.1f} s", f"{speed:,.0f} images/s", f"{self._left(epoch, self.steps)} left"]
        print(("\r\033[K" if self.live else "") + "  ".join(parts), flush=True)
