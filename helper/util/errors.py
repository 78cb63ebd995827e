"""Ends of a run that are not faults of this code: one line, a non-zero exit, no traceback."""
import signal
import sys

from dataset import DataError
from distiller_zoo import MethodError
from helper.util import distributed
from models import CheckpointError, ModelError


class UsageError(ValueError):
    """A command that cannot be carried out; the message says what is wrong and how to mend it."""


class RunError(RuntimeError):
    """A run that cannot go on; the message says why and what is left."""


class Interrupted(BaseException):
    """The run was asked to stop by a signal."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def guarded(main) -> None:
    """Run a script's `main`: exit 2 for a bad command, 1 for a run that failed, 128 + n for signal n."""
    try:
        main()
        distributed.destroy()
    except (UsageError, DataError, MethodError, ModelError, CheckpointError) as error:
        _leave(2, error, alike=not isinstance(error, DataError))
    except RunError as error:
        _leave(1, error)
    except RuntimeError as error:
        if distributed.world_size() == 1 or "onnection" not in str(error):
            raise
        _leave(1, "another process of this run has ended, see what it says")
    except OSError as error:
        _leave(1, f"{error.filename or 'input/output'}: {error.strerror or error}; mend that, and the same command "
                  "goes on from what was saved before")
    except KeyboardInterrupt:
        _leave(130, "stopped by SIGINT before the first epoch")
    except Interrupted as stop:
        name = signal.Signals(stop.signum).name
        _leave(128 + stop.signum, f"stopped by {name}; the same command goes on from the last finished epoch",
               alike=True)


def _leave(code, message, alike=False):
    sys.stdout.flush()
    # Of what is so for all processes of a machine alike, one speaks.
    if distributed.local_rank() == 0 or not alike:
        number = f"process {distributed.rank()}: " if distributed.rank() > 0 else ""
        print(f"error: {number}{' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(code)
