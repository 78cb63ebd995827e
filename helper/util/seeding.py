"""Seeds of independent random streams."""
import hashlib


def derive_seed(seed: int, trial: str, *purpose) -> int:
    """A 63-bit seed, a pure function of the run's (seed, trial) and of what the numbers are for.

    Hashing keeps the streams of neighbouring seeds, trials and epochs unrelated.
    """
    text = repr((int(seed), str(trial), *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
