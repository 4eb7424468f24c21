"""`tokens.safetensors`: what we write is read by the library of that name, and by us without copying it."""

from pathlib import Path

import numpy as np
import pytest
from finetune_trainer.token_file import PartWriter, read_token_file, write_token_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

ROWS = st.lists(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=5), max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(train=ROWS, dev=ROWS)
def test_rows_are_read_back_as_they_were_written_also_by_the_library(
    tmp_path: Path, train: list[list[tuple[int, bool]]], dev: list[list[tuple[int, bool]]]
) -> None:
    parts = {"train": PartWriter(tmp_path, "train"), "dev": PartWriter(tmp_path, "dev")}
    for name, rows in (("train", train), ("dev", dev)):
        for row in rows:
            parts[name].add(np.array([one for one, _ in row], np.int32), np.array([flag for _, flag in row]))
        parts[name].close()
    write_token_file(tmp_path / "tokens", parts)
    ours, theirs = read_token_file(tmp_path / "tokens"), load_file(tmp_path / "tokens")
    assert {name: array.tolist() for name, array in ours.items()} == {n: a.tolist() for n, a in theirs.items()}
    assert ours["train.ids"].tolist() == [one for row in train for one, _ in row]
    assert ours["dev.supervised"].tolist() == [flag for row in dev for _, flag in row]
    assert np.diff(ours["train.offsets"]).tolist() == [len(row) for row in train]
    assert parts["train"].supervised == sum(flag for row in train for _, flag in row)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(b"nonsense, and not a header")
    with pytest.raises(ValueError):
        read_token_file(tmp_path / "tokens")
