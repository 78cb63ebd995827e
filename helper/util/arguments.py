"""Types of command-line values: each refuses what cannot be meant, in argparse's own way."""
import argparse
import math


def _number(convert, kind, holds):
    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f"'{text}' is not {kind}")
        return value

    return parse


positive_int = _number(int, "an integer of 1 or more", lambda v: v >= 1)
nonnegative_int = _number(int, "an integer of 0 or more", lambda v: v >= 0)
positive_float = _number(float, "a number above 0", lambda v: 0 < v < math.inf)
nonnegative_float = _number(float, "a number of 0 or more", lambda v: 0 <= v < math.inf)
up_to_one = _number(float, "a number above 0 and up to 1", lambda v: 0 < v <= 1)
unit_float = _number(float, "a number from 0 to below 1", lambda v: 0 <= v < 1)


def epoch_list(text: str) -> list[int]:
    """'150,180,210' -> [150, 180, 210]; an empty text is an empty list."""
    try:
        epochs = [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        epochs = [0]
    if any(e < 1 for e in epochs) or epochs != sorted(set(epochs)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of increasing epochs, such as 150,180,210")
    return epochs


def size_list(text: str) -> list[int]:
    """'1,2,4' -> [1, 2, 4]."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if any(size < 1 for size in sizes) or sizes != sorted(set(sizes)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of increasing sizes, such as 1,2,4")
    return sizes


def trial_name(text: str) -> str:
    """A trial's name: it ends the name of the run's folder."""
    if not text or text in (".", "..") or any(c in "/\\\0" or not c.isprintable() for c in text) or len(text) > 80:
        raise argparse.ArgumentTypeError(f"'{text}' cannot end a folder's name: use letters and digits, such as 1")
    return text
