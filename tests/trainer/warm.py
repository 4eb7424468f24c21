"""The trainer's commands in forks of a process that has imported torch and its kin, and nothing else.

One that begins anew needs five seconds of processor time for these, and every run that publishes begins one.
"""

import multiprocessing
import os
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "transformers", "peft"])


def run_warm(*arguments: str) -> "CompletedProcess[str]":
    """A command, as `run_fresh` runs it; what it prints is not kept."""
    with TemporaryDirectory() as folder:
        log = os.path.join(folder, "stderr")
        process = CONTEXT.Process(target=_command, args=(arguments, log))
        process.start()
        process.join()
        assert process.exitcode is not None
        with open(log) as stderr:
            return CompletedProcess(arguments, process.exitcode, "", stderr.read())


def _command(arguments: tuple[str, ...], log: str) -> None:
    from finetune_trainer.__main__ import main

    with open(log, "w") as stderr, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
    raise SystemExit(main(list(arguments)))
