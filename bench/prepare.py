"""Preparing rows: our prepare against `datasets.map` and TRL's own preparation, on the rows of GSM8K.

    python -m bench.prepare [ROWS] [REPEATS]

From a JSON Lines file to ids and flags on the disk, with the same template, tokenizer and end token. Each try is a
process of its own, so that it has a peak of memory of its own; imports, the tokenizer and TRL's model are not counted.
Ours reads the file twice, finds what is wrong with rows, and checks that every row decodes to its own text. TRL runs as
it does by default, and once more with one process per core. They take turns, and the median counts. Both must learn the
same number of tokens within a percent, since TRL tokenises prompt and completion jointly.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune_api.run import RunSpec

from bench.clock import Clock
from bench.machine import machine
from bench.record import RESULTS, machine_words
from bench.workload import GSM8K, STORIES

ROWS = 20_000
REPEATS = 3
TARGET = 2.0
SAME_TOKENS = 0.01
"""Largest relative difference of the learned tokens."""

QUIET_SHARE = 0.1
"""Other programs may take this share of the processor; above it the figure says more about them."""

MASKED = -100
"""TRL's label of a token that is not learned."""

OURS, TRL, TRL_ALL_CORES = "finetune_trainer", "datasets.map + TRL", "datasets.map + TRL, every core"

QUESTION, ANSWER = "Question: {question}\nAnswer: ", "{answer}"


@dataclass(frozen=True)
class Try:
    """One preparation."""

    who: str
    seconds: float
    rows: int
    learned: int
    """Tokens that are learned."""
    grown_bytes: int
    """By how much the peak of memory rose meanwhile; of the first process alone where there are several."""
    others_share: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


class Meter(Clock):
    """A clock that also tells by how much the memory's peak rose."""

    grown_bytes = 0

    def start(self) -> None:
        self._peak = peak_bytes()
        super().start()

    def stop(self) -> None:
        super().stop()
        self.grown_bytes = peak_bytes() - self._peak


def prepare_ours(file: Path, folder: Path) -> Try:
    """What the prepare stage does between the model's tokenizer and its files."""
    from finetune_trainer.corpus import Corpus
    from finetune_trainer.datasets import fetch_dataset
    from finetune_trainer.division import divide
    from finetune_trainer.problems import Problems
    from finetune_trainer.split import Part
    from finetune_trainer.survey import survey
    from finetune_trainer.token_file import write_token_file
    from finetune_trainer.tokens import RowTokenizer
    from finetune_trainer.vocabulary import load_tokenizer

    spec, tokenizer, meter = run_spec(file, folder), RowTokenizer(*load_tokenizer(STORIES)), Meter()
    training = spec.training
    meter.start()
    found = survey(fetch_dataset(training.datasets[0], spec, folder), training, Problems())
    [parts] = divide([found], training)
    with closing(Corpus(tokenizer, training, 1_000_000, folder / "out")) as corpus:
        corpus.add(found, parts)
    write_token_file(folder / "tokens", {part.name.lower(): writer for part, writer in corpus.parts.items()})
    meter.stop()
    train = corpus.parts[Part.TRAIN]
    return Try(OURS, meter.seconds, len(train), train.supervised, meter.grown_bytes, meter.others_share)


def prepare_theirs(file: Path, folder: Path, who: str = TRL, processes: int | None = None) -> Try:
    """The rows through `datasets`, then TRL's own preparation; its trainer is made for nothing else."""
    from datasets import Dataset, disable_progress_bars, load_dataset
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    meter = Meter()
    arguments = SFTConfig(
        output_dir=str(folder), max_length=None, dataset_num_proc=processes, bf16=False, use_cpu=True, report_to="none"
    )
    model, tokenizer = (
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(STORIES)),
        AutoTokenizer.from_pretrained(STORIES),
    )

    class Preparing(SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *given: object, **named: object) -> Dataset:
            found = super()._prepare_dataset(*given, **named)
            meter.stop()
            return found

    meter.start()
    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder))
    rows = rows.map(rendered, remove_columns=rows.column_names, num_proc=processes)
    trainer = Preparing(model=model, processing_class=tokenizer, train_dataset=rows, args=arguments)
    learned = sum(label != MASKED for labels in trainer.train_dataset["labels"] for label in labels)
    return Try(who, meter.seconds, len(rows), learned, meter.grown_bytes, meter.others_share)


def rendered(row: dict[str, str]) -> dict[str, str]:
    """What our template makes of a row."""
    return {"prompt": QUESTION.format(**row), "completion": row["answer"]}


TRIES: dict[str, Callable[[Path, Path], Try]] = {
    OURS: prepare_ours,
    TRL: prepare_theirs,
    TRL_ALL_CORES: lambda file, folder: prepare_theirs(file, folder, TRL_ALL_CORES, os.cpu_count()),
}


def run_spec(file: Path, folder: Path) -> RunSpec:
    """A run over the file, of which only the data is looked at."""
    training = {
        "model": {"uri": f"file://{STORIES}"},
        "datasets": [{"name": "gsm8k", "uri": f"file://{file}"}],
        "promptTemplate": QUESTION.replace("{", "<<").replace("}", ">>"),
        "completionTemplate": ANSWER.replace("{", "<<").replace("}", ">>"),
        "output": {"uri": "s3://unused/models"},
    }
    identity = {"namespace": "bench", "name": "prepare", "uid": "bench"}
    return RunSpec.model_validate({"identity": identity, "training": training, "outputUri": f"file://{folder}"})


def peak_bytes() -> int:
    """Most memory this process has ever had. Source: proc(5), VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def in_fresh_process(who: str, file: Path) -> Try:
    """One try, in a process and a folder of its own."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.prepare", "--one", who, str(file), folder]
        environment = os.environ | {"HF_HOME": folder, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{who} failed.")
    return Try(**json.loads(done.stdout.splitlines()[-1]))


def median(tries: list[Try], who: str) -> Try:
    """The try of median time."""
    found = sorted((one for one in tries if one.who == who), key=lambda one: one.seconds)
    return found[(len(found) - 1) // 2]


def problems(tries: list[Try]) -> list[str]:
    """Why the figures are not to be trusted, if they are not."""
    found, learned = [], [one.learned for one in tries]
    if max(learned) / min(learned) - 1 > SAME_TOKENS:
        found.append(f"The learned tokens differ by more than {SAME_TOKENS:.0%}: {sorted(set(learned))}.")
    # With several processes the others are its own.
    busy = max(one.others_share for one in tries if one.who != TRL_ALL_CORES)
    if busy > QUIET_SHARE:
        found.append(f"Other programs took up to {busy:.0%} of the processor: measure again when it is quiet.")
    return found


def _others(one: Try) -> str:
    return "its own" if one.who == TRL_ALL_CORES else f"{one.others_share:.0%}"


def page(tries: list[Try], facts: dict[str, object]) -> str:
    """The result as a page."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "datasets", "trl", "transformers"))
    lines = [
        "# Rows prepared per second",
        "",
        f"{facts['cpu']}, {facts['cores']} cores. {versions}.",
        f"{tries[0].rows:,} rows of GSM8K, with the tokenizer of stories260k.",
        f"Median of {len(tries) // len(TRIES)} tries, taking turns. Made by `make bench-prepare`.",
        "",
        "| who | rows/s | seconds | memory grown, MiB | learned tokens | others' share |",
        "|--|--|--|--|--|--|",
    ]
    for who in TRIES:
        one = median(tries, who)
        cells = [f"{one.rows_per_second:,.0f}", f"{one.seconds:.2f}", f"{one.grown_bytes / 2**20:,.0f}"]
        lines.append(f"| {' | '.join([who, *cells, f'{one.learned:,}', _others(one)])} |")
    return "\n".join([*lines, ""])


def main(rows: int, repeats: int) -> int:
    """Run everything, write the table, print the ratio last; 1 where the figures are not to be trusted."""
    if not (STORIES.is_dir() and GSM8K.is_file()):
        print(f"The tokenizer and rows of this benchmark are not in {STORIES.parents[1].name}/.", file=sys.stderr)
        return 2
    tries: list[Try] = []
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        lines = GSM8K.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(islice(cycle(lines), rows)), encoding="utf-8")
        for _ in range(repeats):
            for who in TRIES:
                one = in_fresh_process(who, file)
                told = f"{one.grown_bytes / 2**20:6,.0f} MiB grown, others took {one.others_share:.0%} of the processor"
                print(f"{who:<32} {one.rows_per_second:8,.0f} rows/s, {told}", flush=True)
                tries.append(one)
    facts = machine()
    ratio = median(tries, TRL).seconds / median(tries, OURS).seconds
    path = RESULTS / f"prepare-{machine_words(facts)}.json"
    record = {"machine": facts, "ratio": round(ratio, 3), "tries": [asdict(one) for one in tries]}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(tries, facts), encoding="utf-8")
    for problem in problems(tries):
        print(problem, file=sys.stderr)
    print(f"{ratio:.2f} x")
    return 1 if problems(tries) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(asdict(TRIES[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4])))))
    else:
        sys.exit(main(*[int(text) for text in sys.argv[1:3]] + [ROWS, REPEATS][len(sys.argv) - 1 :]))
