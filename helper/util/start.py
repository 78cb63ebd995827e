"""Imported first by everything that people run: says which packages are missing, and that PyTorch is being loaded."""
import importlib.util
import sys
import threading

# Seconds after which loading is worth a word.
PATIENCE = 0.4
_NEEDED = ("torch", "torchvision", "numpy", "tqdm", "jinja2", "pooch", "tensorboard_logger")

_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    print(f"error: {', '.join(_missing)} cannot be imported: install with `python -m pip install -r requirements.txt`, "
          "or make .venv with `sh scripts/quickstart.sh` and use .venv/bin/python", file=sys.stderr)
    sys.exit(2)


def _say():
    print("loading PyTorch ...", end="", file=sys.stderr, flush=True)


_timer = threading.Timer(PATIENCE, _say)
_timer.daemon = True
if sys.stderr.isatty() and "torch" not in sys.modules:
    _timer.start()


def loaded() -> None:
    """Take back what was said; called when everything is imported."""
    _timer.cancel()
    if _timer.finished.is_set() and sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
