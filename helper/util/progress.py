"""Progress of whatever takes long: a bar on a terminal, now and then a line in a log."""
import sys

from tqdm import tqdm

# Seconds between the lines in a log.
PAUSE = 15
_IN_A_LOG = "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt}{unit}, {remaining} left{postfix}"


def clock(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class _Lines(tqdm):
    """Lines instead of a bar that is overwritten, and none at the end."""

    def display(self, msg=None, pos=None):
        if msg is None:
            print(self, file=self.fp, flush=True)


def progress(what: str, total: int | None, initial: int = 0, unit: str = "", unit_scale: bool = False,
             file=None) -> tqdm:
    """How far `total` items are (None: unknown), with the time left: `with progress(...) as bar: bar.update(n)`.

    On a terminal a bar that vanishes at its end; elsewhere a line every PAUSE seconds, nothing of what is shorter.
    Without a title nothing is shown.

    initial: how many are done already; unit_scale: whether counts are shown as 1.2k or 3.4M
    file: where to, by default standard output
    """
    file = file or sys.stdout
    live = file.isatty()
    pause = {"mininterval": 0.2} if live else {
        "mininterval": PAUSE, "maxinterval": PAUSE, "miniters": 1, "delay": PAUSE, "bar_format": _IN_A_LOG}
    return (tqdm if live else _Lines)(total=total, initial=initial, desc=what, unit=unit, unit_scale=unit_scale,
                                      file=file, leave=False, dynamic_ncols=live, disable=not what, **pause)
