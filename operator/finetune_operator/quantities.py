"""Kubernetes quantities as numbers. Pure."""

from math import ceil

SUFFIXES = {
    "m": 1e-3,
    **{letter: 1000.0 ** (n + 1) for n, letter in enumerate("kMGTPE")},
    **{f"{letter}i": 1024.0 ** (n + 1) for n, letter in enumerate("KMGTPE")},
}
"""What the suffix of a quantity stands for. Source: Kubernetes, "Quantity"."""


def bytes_of(quantity: str) -> int:
    """Bytes of a quantity such as `32Gi`, `1.5G`, `2e9` or `1000`, rounded up."""
    suffix = quantity.lstrip("0123456789.")
    if suffix in SUFFIXES:
        return ceil(float(quantity.removesuffix(suffix)) * SUFFIXES[suffix])
    return ceil(float(quantity))
