"""How fast a GPU is, reckoned from its name: a first figure for time and price, before anybody has measured. Pure."""

import re

PEAKS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 0.989e15,
    "H100": 0.989e15,
    "H800": 0.989e15,
    "A100": 0.312e15,
    "A800": 0.312e15,
    "L40S": 0.362e15,
    "L40": 0.181e15,
    "A40": 0.150e15,
    "A10": 0.125e15,
    "L4": 0.121e15,
}
"""Dense bf16 operations in a second, of the fastest form of each. Source: NVIDIA's data sheets."""

PRODUCT_SHARE = 0.8
"""Of the peak that large matrix products come to."""


def speed_of(gpu: str) -> float | None:
    """Operations per second in large matrix products of a GPU with this name; None for a name that says nothing.

    `gpu` is such as `NVIDIA-H100-80GB-HBM3` or `H100`.
    """
    words = re.split(r"[^A-Z0-9]+", gpu.upper())
    peak = next((PEAKS[word] for word in words if word in PEAKS), None)
    return None if peak is None else peak * PRODUCT_SHARE
