"""The data parts load without torch: what is wrong with rows is told before anything heavy is read."""

import subprocess
import sys

import pytest

LIGHT = """
answers card chat chat_template columnar corpus credentials data_files data_report datasets division effective errors
fetch folders formats hub log model_config pairs prepare prepared problems publish quiet reader report row_types rows
split report_page store survey template text_stream texts token_file tokens vocabulary
web commands errands gate held_out scores launch __main__
"""


@pytest.mark.parametrize("heavy", ["torch", "transformers"])
def test_no_data_part_imports_it(heavy: str) -> None:
    modules = ", ".join(f"finetune_trainer.{name}" for name in LIGHT.split())
    code = f"import sys, {modules}; sys.exit(1 if {heavy!r} in sys.modules else 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
