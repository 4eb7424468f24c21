"""Memory of prepare on a file larger than memory: gigabytes of JSON Lines through the whole command.

    python -m bench.large [GIGABYTES] [FOLDER]

Rows of about 2 kB, all different, made of GSM8K's; a byte-level BPE tokenizer of 8,192 tokens, trained on the same;
`python -m finetune_trainer prepare` in a process of its own, as in a pod, with everything that it imports and checks.
Prints the process's largest resident set, which the bar of 1 GiB is about, and its time. Needs FOLDER with four times
the space. What it made is removed.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bench.machine import machine
from bench.record import RESULTS, machine_words
from bench.workload import GSM8K, STORIES

GIGABYTE = 10**9
TARGET_BYTES = 2**30
ROW_PARTS = 4
"""Rows of GSM8K in one of ours."""

VOCABULARY, LENGTH = 8192, 4096
END = "</s>"


def rows(texts: list[tuple[str, str]]) -> Iterator[bytes]:
    """JSON Lines without end, no two alike."""
    for number in count():
        some = [texts[(number * ROW_PARTS + part * part) % len(texts)] for part in range(ROW_PARTS)]
        prompt = "\n".join(question for question, _ in some)
        yield json.dumps(
            {"prompt": f"{number}. {prompt}", "completion": "\n".join(answer for _, answer in some)}
        ).encode()


def write_rows(path: Path, size: int) -> int:
    """Write rows until the file has `size` bytes, and tell how many."""
    texts = [(row["question"], row["answer"]) for row in map(json.loads, GSM8K.read_text("utf-8").splitlines())]
    written = lines = 0
    with path.open("wb", buffering=2**20) as file:
        for row in rows(texts):
            written += file.write(row + b"\n")
            lines += 1
            if written >= size:
                return lines
    raise AssertionError("rows have no end")


def write_model(folder: Path) -> Path:
    """stories260k's shape for longer rows, with a tokenizer like those of larger models; its weights are not read."""
    copytree(STORIES, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH})
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train([str(GSM8K)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def run_file(folder: Path, data: Path) -> Path:
    """The order to prepare the file."""
    training = {
        "model": {"uri": f"file://{write_model(folder / 'model')}"},
        "datasets": [{"name": "large", "uri": f"file://{data}"}],
        "hyperparameters": {"maxSeqLength": LENGTH},
        "output": {"uri": "s3://unused/models"},
    }
    order = {
        "identity": {"namespace": "bench", "name": "large", "uid": "bench"},
        "training": training,
        "outputUri": f"file://{folder / 'out'}",
        "scratchDirectory": str(folder / "scratch"),
    }
    path = folder / "run.json"
    path.write_text(json.dumps(order))
    return path


def main(gigabytes: float, where: Path | None) -> int:
    """Write, prepare, print; 1 where prepare failed or took more than a GiB."""
    with TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        data = folder / "large.jsonl"
        lines = write_rows(data, int(gigabytes * GIGABYTE))
        order = run_file(folder, data)
        began = time.monotonic()
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "finetune_trainer", "prepare", "--run", str(order)], check=False, env=environment
        )
        seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    if done.returncode:
        return done.returncode
    facts = machine()
    record = {"machine": facts, "gigabytes": gigabytes, "rows": lines, "seconds": round(seconds), "peakBytes": peak}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"large-{machine_words(facts)}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{gigabytes:g} GB, {lines:,} rows: {seconds:,.0f} s, at most {peak / 2**20:,.0f} MiB resident")
    return 0 if peak <= TARGET_BYTES else 1


if __name__ == "__main__":
    asked = sys.argv[1:]
    sys.exit(main(float(asked[0]) if asked else 10, Path(asked[1]) if asked[1:] else None))
