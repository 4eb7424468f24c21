"""Reads and tokenises a file as prepare does, without the model check, and prints by how much its memory grew.

    python -m tests.trainer.streamed FILE FOLDER

A process of its own, since only a fresh one has a peak of its own. The check is left out as it imports torch, whose
own peak would hide what is measured.
"""

import sys
from contextlib import closing
from pathlib import Path

from finetune_api.resource import TrainingSpec
from finetune_api.sources import Dataset, Format
from finetune_trainer.corpus import Corpus
from finetune_trainer.data_files import DataFile, DataSource
from finetune_trainer.division import divide
from finetune_trainer.problems import Problems
from finetune_trainer.survey import survey
from finetune_trainer.token_file import write_token_file
from finetune_trainer.tokens import RowTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WORDS = [f"word{number}" for number in range(10)]


def a_word_tokenizer() -> Tokenizer:
    """One id per word and per blank; the letter is for the probes of sentinels."""
    vocabulary = {text: number for number, text in enumerate(["<unk>", "<eos>", " ", "a", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True, normalized=False)])
    return tokenizer


def peak_bytes() -> int:
    """Most memory this process has ever had, in bytes. Source: proc(5), VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def stream(path: Path, folder: Path) -> int:
    """Train and dev tokens of the file, written below `folder`."""
    dataset = {"name": "faq", "uri": f"file://{path}"}
    training = TrainingSpec.model_validate(
        {
            "model": {"uri": "s3://models/m"},
            "datasets": [dataset],
            "output": {"uri": "s3://out/x"},
            "split": {"trainPercentage": 80, "devPercentage": 20},
        }
    )
    source = DataSource(Dataset.model_validate(dataset), (DataFile(path, dataset["uri"], Format.JSONL, ""),))
    found = survey(source, training, Problems())
    [parts] = divide([found], training)
    with closing(Corpus(RowTokenizer(a_word_tokenizer(), 1), training, 4096, folder)) as corpus:
        corpus.add(found, parts)
    write_token_file(folder / "tokens", {part.name.lower(): writer for part, writer in corpus.parts.items()})
    return sum(writer.tokens for writer in corpus.parts.values())


if __name__ == "__main__":
    before = peak_bytes()
    tokens = stream(Path(sys.argv[1]), Path(sys.argv[2]))
    print(tokens, peak_bytes() - before)
