"""`python -m finetune_operator --settings FILE`: run the operator until it is told to stop."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import kopf

from finetune_operator.handlers import register
from finetune_operator.settings import SettingsError, load_settings

LOST = 3
"""Exit code of an operator whose Lease another one may hold."""


def main(arguments: list[str]) -> int:
    """Read the settings and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="finetune_operator", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="YAML file, rendered by the chart")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings(options.settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    kopf.configure(log_format=kopf.LogFormat.JSON if settings.log_format == "json" else kopf.LogFormat.FULL)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # Else one line for every event of every object.
    lost = asyncio.Event()
    kopf.run(
        registry=register(settings, leave=lost.set),
        stop_flag=lost,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        standalone=True,
        memo=kopf.Memo(),
    )
    return LOST if lost.is_set() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
