"""Types of command-line values: each refuses what cannot be meant, in argparse's own way."""
import argparse
import math

# Counts fit any tensor's size; squares and products of numbers fit float32.
MOST, LARGEST = 2**32 - 1, 1e15


def _number(convert, kind, holds):
    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f"'{text}' is not {kind}")
        if value > (MOST if convert is int else LARGEST) or 0 < value < 1 / LARGEST:
            raise argparse.ArgumentTypeError(f"'{text}' is too {'large' if value > 1 else 'small'} a number")
        return value

    return parse


positive_int = _number(int, "an integer of 1 or more", lambda v: v >= 1)
nonnegative_int = _number(int, "an integer of 0 or more", lambda v: v >= 0)
positive_float = _number(float, "a number above 0", lambda v: 0 < v < math.inf)
nonnegative_float = _number(float, "a number of 0 or more", lambda v: 0 <= v < math.inf)
up_to_one = _number(float, "a number above 0 and up to 1", lambda v: 0 < v <= 1)
unit_float = _number(float, "a number from 0 to below 1", lambda v: 0 <= v < 1)


def _increasing(kind, example, least):
    def parse(text):
        try:
            numbers = [int(part) for part in text.split(",")] if text.strip() else []
        except ValueError:
            numbers = [0]
        if len(numbers) < least or any(n < 1 for n in numbers) or numbers != sorted(set(numbers)):
            raise argparse.ArgumentTypeError(f"'{text}' is not a list of increasing {kind}, such as {example}")
        return numbers

    return parse


# '1,2,4' -> [1, 2, 4]; without epochs an empty text.
epoch_list = _increasing("epochs", "150,180,210", least=0)
size_list = _increasing("sizes", "1,2,4", least=1)


def trial_name(text: str) -> str:
    """A trial's name: it ends the name of the run's folder."""
    if not text or text in (".", "..") or any(c in "/\\\0" or not c.isprintable() for c in text) or len(text) > 80:
        raise argparse.ArgumentTypeError(f"'{text}' cannot end a folder's name: use letters and digits, such as 1")
    return text
