"""Ends of a run that are not faults of this code: one line, a non-zero exit, no traceback."""
import contextlib
import os
import signal
import sys
from collections.abc import Callable

from helper.util import distributed, start


class UserError(ValueError):
    """Input that cannot be worked with; the message says what is wrong, then what to do.

    same_everywhere: whether every process of a machine fails in the same way, so that one line is enough
    """

    same_everywhere = True


class UsageError(UserError):
    """A command that cannot be carried out."""


class RunError(RuntimeError):
    """A run that cannot continue; the message says why and what is left."""


class Interrupted(BaseException):
    """The run was asked to stop by a signal."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def guarded(main: Callable[[], object]) -> None:
    """Run a script's `main`: exit 2 for a bad command, 1 for a run that failed, 128 + n for signal n."""
    start.loaded()
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a log that is not UTF-8 shows escapes instead of ending the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
        distributed.destroy()
    except UserError as error:
        _exit(2, error, once=error.same_everywhere)
    except RunError as error:
        _exit(1, error)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; what Python would still flush at its end has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _exit(1, f"{error.filename or 'input/output'}: {error.strerror or error}; fix that, and the same command "
                 "continues from what was saved before")
    except KeyboardInterrupt:
        _exit(130, "stopped by SIGINT before the first epoch")
    except Interrupted as stop:
        _exit(128 + stop.signum, f"stopped by {signal.Signals(stop.signum).name}; the same command continues from the "
                                 "last finished epoch", once=True)
    except RuntimeError as error:
        message = _in_one_line(error)
        if message is None:
            raise
        _exit(1, message)


def _in_one_line(error):
    """What to say of an error of PyTorch that is not a fault of this code; None for the others."""
    # By name: torch is imported by those who can raise it, and not by every user of this file.
    if type(error).__name__ == "OutOfMemoryError":
        return ("the GPU's memory is full: give a smaller --batch_size, --cuda_graph off, or --teacher_cache off; "
                "the same command continues from the last finished epoch")
    if "can't allocate memory" in str(error):
        return "there is not enough memory: give a smaller --batch_size or --image_size"
    if distributed.world_size() > 1 and "onnection" in str(error):
        return "another process of this run has ended, see its message"
    return None


def _exit(code, message, once=False):
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if distributed.local_rank() == 0 or not once:
        number = f"process {distributed.rank()}: " if distributed.rank() > 0 else ""
        # On a terminal the line may hold a progress bar.
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        print(f"{clear}error: {number}{printable(message)}", file=sys.stderr, flush=True)
    sys.exit(code)


def printable(text: object) -> str:
    """The text in one line, control characters and bytes that are no text escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
                   for c in " ".join(str(text).split()))
