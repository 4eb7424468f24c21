"""`generate` and `evaluate` on the command line: try an artifact out, on a laptop as in a pod."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TextIO

from finetune_api.metrics import METRICS, Metric
from finetune_api.names import FailureClass
from finetune_api.run import SecretFolder, StorageAccess

from finetune_trainer.errors import RunError
from finetune_trainer.log import Log

if TYPE_CHECKING:
    from finetune_trainer.speaker import Speaker

COMMANDS = ("generate", "evaluate")

MOST = 2**32 - 1
"""Largest number that the commands take, as of `hyperparameters.seed`."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The arguments of both."""
    speak = commands.add_parser("generate", help="continue texts, or the prompts of a dataset, with an artifact")
    speak.add_argument("texts", nargs="*", metavar="TEXT", help="whole prompts; without any, one a line from stdin")
    speak.add_argument("--dataset", metavar="FILE", help="continue the prompts of its rows instead")
    speak.add_argument("--max-new-tokens", type=_whole(1), metavar="N", help="most tokens (default: as in the run)")
    speak.add_argument("--seed", type=_whole(0), metavar="N", help="of sampling (default: the run's)")
    judge = commands.add_parser("evaluate", help="measure an artifact on the rows of a dataset")
    judge.add_argument("--dataset", metavar="FILE", required=True, help="rows with their references")
    judge.add_argument("--metrics", metavar="NAME,…", help=f"of {', '.join(Metric)} (default: the run's)")
    judge.add_argument("--rows", type=_whole(0), metavar="N", help="rows to generate, 0 = all (default: as in the run)")
    for command in (speak, judge):
        command.add_argument("--artifact", required=True, metavar="URI", help="s3:// or file:// URI, or a folder")
        command.add_argument("--as", dest="like", metavar="NAME", help="read the file as this dataset of the run")
        command.add_argument("--json", action="store_true", help="print JSON")
        command.add_argument("--cpu", action="store_true", help="leave a GPU alone")
        command.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
        command.add_argument("--endpoint", default="", metavar="URL", help="of an S3-compatible server")
        command.add_argument("--region", default="", metavar="NAME", help="of S3")
        command.add_argument("--credentials", metavar="FOLDER", help="files AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY")
        command.add_argument("--hub-credentials", metavar="FOLDER", help="file HF_TOKEN, for a gated base")


def run_command(parsed: argparse.Namespace, log: Log, stdin: TextIO | None = None) -> None:
    """Run one of COMMANDS and print what it found. Raises RunError; a wrong call before anything is loaded."""
    if parsed.command == "generate":
        texts = _texts(parsed, stdin or sys.stdin)
        with _speaker(parsed, log) as speaker:
            _print_answers(parsed, speaker, texts)
    else:
        metrics = _metrics(parsed.metrics)
        with _speaker(parsed, log) as speaker:
            _print_numbers(parsed, speaker, metrics)


def _texts(parsed: argparse.Namespace, stdin: TextIO) -> list[str]:
    """The prompts given as arguments or lines; none for a dataset."""
    texts: list[str] = parsed.texts
    if not texts and parsed.dataset is None and not stdin.isatty():
        texts = stdin.read().splitlines()
    if bool(texts) != (parsed.dataset is not None):
        return texts
    what = "both texts and --dataset" if texts else "neither texts nor --dataset"
    remedy = "Give texts as arguments or on stdin, or a dataset with --dataset."
    raise RunError(FailureClass.INVALID_CONFIG, "PromptsInvalid", f"generate was given {what}", remedy)


def _metrics(names: str | None) -> list[Metric] | None:
    """The metrics of a list with commas. Raises RunError (InvalidConfig, MetricUnknown)."""
    try:
        return None if names is None else [Metric(name.strip()) for name in names.split(",")]
    except ValueError as error:
        message = f"--metrics {names}: {error}"
        raise RunError(
            FailureClass.INVALID_CONFIG, "MetricUnknown", message, f"Choose of {', '.join(Metric)}."
        ) from error


@contextmanager
def _speaker(parsed: argparse.Namespace, log: Log) -> Iterator["Speaker"]:
    """The artifact, loaded; its files are gone afterwards. Imports torch."""
    import torch

    from finetune_trainer.compute import compute_for
    from finetune_trainer.restore import Reach
    from finetune_trainer.speaker import load_speaker

    storage = StorageAccess(endpoint=parsed.endpoint, region=parsed.region, credentials=_keys(parsed.credentials))
    compute = compute_for(int(torch.cuda.is_available() and not parsed.cpu), None)
    with TemporaryDirectory(prefix="finetune-") as scratch:
        reach = Reach(storage, _keys(parsed.hub_credentials), Path(scratch), parsed.trust_remote_code)
        yield load_speaker(parsed.artifact, reach, compute, log)


def _keys(folder: str | None) -> SecretFolder | None:
    return None if folder is None else SecretFolder(directory=folder, source=f"folder {folder}")


def _print_answers(parsed: argparse.Namespace, speaker: "Speaker", texts: list[str]) -> None:
    """One text as it is, several in their order; of a dataset in JSON with prompt and reference."""
    settings = speaker.restored.spec.training.generation
    generation = settings.model_copy(update={"max_new_tokens": parsed.max_new_tokens or settings.max_new_tokens})
    if parsed.dataset is None:
        answers = speaker.answer(texts, generation, parsed.seed)
        shown: object = answers[0] if len(parsed.texts) == 1 else answers
    else:
        references = speaker.prompts(parsed.dataset, parsed.like).references
        answers = speaker.continued([reference.prompt_ids for reference in references], generation, parsed.seed)
        shown = [
            {"row": reference.row, "prompt": reference.prompt, "reference": reference.completion, "text": answer}
            for reference, answer in zip(references, answers, strict=True)
        ]
    print(json.dumps(shown, ensure_ascii=False) if parsed.json else "\n".join(answers))


def _print_numbers(parsed: argparse.Namespace, speaker: "Speaker", metrics: list[Metric] | None) -> None:
    settings = speaker.restored.spec.training.evaluation
    rows = settings.rows if parsed.rows is None else parsed.rows
    evaluation = settings.model_copy(update={"metrics": metrics or settings.metrics, "rows": rows})
    found = speaker.measure(parsed.dataset, parsed.like, evaluation)
    values = {metric: float(f"{value:.6g}") for metric, value in found.values.items()}
    if parsed.json:
        numbers = {"rows": found.rows, "generatedRows": found.generated_rows, "emptyRows": found.empty_rows}
        print(json.dumps(numbers | values))
        return
    for metric, value in values.items():
        print(f"{METRICS[metric].words:16} {value:.4g}")
    left_out = f"; {found.empty_rows} more without a reference" if found.empty_rows else ""
    print(f"{found.rows} rows; {found.generated_rows} of them generated{left_out}")


def _whole(least: int) -> Callable[[str], int]:
    """Reads a whole number from `least` to the largest seed."""

    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= MOST:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} to {MOST}")
        return int(text)

    return number
