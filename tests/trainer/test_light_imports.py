"""The data parts load without torch: what is wrong with rows is told before anything heavy is read."""

import subprocess
import sys

import pytest

LIGHT = """
credentials corpus data_report datasets effective errors fetch hub model_config pairs prepare prepared report rows split
store survey template tokens vocabulary __main__ answers commands gate held_out log publish card quiet scores
"""


@pytest.mark.parametrize("heavy", ["torch", "transformers"])
def test_no_data_part_imports_it(heavy: str) -> None:
    modules = ", ".join(f"finetune_trainer.{name}" for name in LIGHT.split())
    code = f"import sys, {modules}; sys.exit(1 if {heavy!r} in sys.modules else 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
