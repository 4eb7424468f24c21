"""Keeping libraries quiet: the log is ours, and their advice is about Python code that a user does not see."""

import logging
import warnings

KNOWN = {
    # int8 products round their input to fp16, says bitsandbytes once per layer.
    "bitsandbytes.autograd._functions": "inputs will be cast from",
    # It would fetch a kernel from the hub if it could, which is nothing we want.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}
"""What each logger says that is no news; everything else it says is heard."""


def quiet_libraries() -> None:
    """Drop Python's warnings, and the log lines of KNOWN."""
    warnings.simplefilter("ignore")
    for name, text in KNOWN.items():
        logging.getLogger(name).addFilter(_without(text))


def _without(text: str) -> logging.Filter:
    class Without(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return text not in str(record.msg)

    return Without()
