"""Counted randomness: every draw is seeded by what it is for, never by what was drawn before.

A draw's keys are, by convention, (run seed, epoch, frame token, purpose, camera ...). Nothing needs
saving, resuming is exact, and neither the batch nor the number of processes changes what a frame sees.
"""

import hashlib

import torch

Key = int | str


def counted_seed(*keys: Key) -> int:
    """A 63-bit seed that is the same for the same keys on every machine."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*keys: Key) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(counted_seed(*keys))
