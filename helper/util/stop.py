"""Being asked to stop: by SIGTERM, or by SIGINT, which Ctrl-C sends."""
import signal
import time
from collections.abc import Callable


class StopRequest:
    """Listens for SIGTERM and SIGINT from here on.

    again: called with the number of a further signal, once the first is a second old. Until then signals are one
    request: one that a process gets at its parent's end comes once for each of the parent's threads.
    """

    ONE_REQUEST = 1.0

    def __init__(self, again: Callable[[int], object] = lambda signum: None):
        self.again = again
        self.signum: int | None = None  # of the first signal
        self.came_at = 0.0
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum, frame):
        if self.signum is None:
            self.signum, self.came_at = signum, time.monotonic()
        elif time.monotonic() - self.came_at > self.ONE_REQUEST:
            self.again(signum)


def end_at_once(signum: int) -> None:
    """End this process as one that does not listen for the signal."""
    signal.signal(signum, signal.SIG_DFL)
    signal.raise_signal(signum)
