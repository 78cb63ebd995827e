"""What a run shows while it trains: a bar for each epoch on a terminal, and a line when the epoch is done."""
import time

from tqdm import tqdm

from helper.util.progress import clock, progress


class Display:
    """The progress of one phase.

    first: its first epoch here; steps: of an epoch; print_freq: steps between the losses that are shown
    """

    def __init__(self, name: str, first: int, epochs: int, steps: int, print_freq: int):
        self.name, self.first, self.epochs, self.steps, self.print_freq = name, first, epochs, steps, print_freq
        self.started = time.perf_counter()
        self.bar: tqdm | None = None

    def step(self, epoch: int, number: int, meters) -> None:
        """Show that a step is done, and every `print_freq` steps the average loss so far."""
        if self.bar is None:
            self.bar = progress(f"{self.name} {epoch}/{self.epochs}", self.steps, unit=" steps")
        if number % self.print_freq == 0 and number < self.steps:
            self.bar.set_postfix_str(f"loss {meters.loss():.4f}", refresh=False)
        self.bar.update()

    def epoch(self, epoch: int, averages, tested, best: dict, seconds: float) -> None:
        """A line on a finished epoch; with a single term its loss is called so."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        losses = averages.losses if len(averages.losses) > 1 else {"loss": averages.loss}
        parts = [f"{self.name} {epoch:>{len(str(self.epochs))}}/{self.epochs}",
                 *(f"{name} {value:.3g}" for name, value in losses.items())]
        if tested:
            parts += [f"train {averages.top1:.2f}", f"test {tested.top1:.2f}", f"best {best['top1']:.2f}"]
        left = (time.perf_counter() - self.started) / (epoch - self.first + 1) * (self.epochs - epoch)
        parts += [f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s", f"{clock(left)} left"]
        print("  ".join(parts), flush=True)
