"""Prepare's memory does not grow with the data."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.streamed import WORDS

ROW_WORDS = 60

KEPT_BYTES_A_ROW = 64
"""Room for what is kept of each row: a digest, a part, an offset, and that the arrays grow in steps."""

NOISE_BYTES = 7 * 1024 * 1024
"""What an allocator holds back, from one run to the next."""


def write_rows(path: Path, rows: int) -> Path:
    """Rows that are all different: each begins with its number, in words."""
    tail = " ".join(WORDS[n % len(WORDS)] for n in range(ROW_WORDS))
    with path.open("w") as file:
        for number in range(rows):
            head = " ".join(WORDS[int(digit)] for digit in str(number))
            file.write(
                f'{{"prompt": "{head} {tail}", "completion": "{tail[: 5 + 6 * (number % ROW_WORDS)].strip()}"}}\n'
            )
    return path


def growth(tmp_path: Path, rows: int) -> tuple[int, int, int]:
    """Bytes of a file of so many rows, its tokens, and by how many bytes the memory grew while it was read."""
    path = write_rows(tmp_path / f"{rows}.jsonl", rows)
    command = [sys.executable, "-m", "tests.trainer.streamed", str(path), str(tmp_path / f"{rows}")]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    tokens, grown = map(int, found.split())
    return path.stat().st_size, tokens, grown


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak memory")
def test_twice_the_rows_need_no_more_memory(tmp_path: Path) -> None:
    rows = 25_000
    first_size, first_tokens, first_growth = growth(tmp_path, rows)
    size, tokens, grown = growth(tmp_path, 2 * rows)
    allowed = NOISE_BYTES + KEPT_BYTES_A_ROW * rows
    # An id and a flag are 5 bytes. Whoever kept rows or tokens would need several times of what is allowed.
    assert size - first_size + 5 * (tokens - first_tokens) > 4 * allowed
    assert grown - first_growth < allowed
