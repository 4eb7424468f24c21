"""`report.html`: one file that asks for nothing, shows what the run found, and runs nothing that somebody wrote."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from finetune_api.findings import Comparison, EvaluationStatus
from finetune_trainer.charts import Line, line_chart, nice_ticks, number, thinned
from finetune_trainer.data_report import LengthBin
from finetune_trainer.report_page import Run, report_page

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<svg onload=alert(3)>"
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """What a page is made of; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def a_page_run(text: str = "words", **fields: Any) -> Run:
    log = [
        {"step": step, "trainingLoss": 3 / step, "learningRate": 1e-4, "gradNorm": 1.0}
        | ({"validationLoss": 3.2 / step} if step % 5 == 0 else {})
        for step in range(1, 21)
    ]
    sample = {"dataset": "faq", "row": 1, "prompt": text, "reference": text, "base": text, "tuned": text}
    run: dict[str, Any] = {
        "name": "story",
        "description": text,
        "facts": [("Base model", text)],
        "settings": {"epochs": 1.0, "optimizer": text},
        "evaluation": EvaluationStatus(rows=4, generated_rows=3, perplexity=Comparison(base=31.2, tuned=4.1)),
        "log": log,
        "lengths": [LengthBin(from_tokens=1, to_tokens=10, rows=5), LengthBin(from_tokens=11, to_tokens=20, rows=9)],
        "samples": [sample],
    }
    return Run(**(run | fields))


def test_what_others_wrote_is_text_and_never_markup() -> None:
    page = Page(report_page(a_page_run(HOSTILE)))
    assert {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "link", "base", "form"} == set()
    assert [name for _, attributes in page.tags for name in attributes if name.startswith("on")] == []
    assert page.text.count(HOSTILE) == 7, "description, fact, setting, prompt, reference and both answers"


def test_the_page_asks_for_nothing() -> None:
    text = report_page(a_page_run())
    attributes = [name for _, found in Page(text).tags for name in found]
    assert {"src", "href", "action", "srcset", "data"} & set(attributes) == set()
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_scores_curves_lengths_and_answers_are_shown() -> None:
    page = Page(report_page(a_page_run()))
    shown = " ".join(page.text)
    for words in ("31.2", "4.1", "training loss", "dev loss", "Length of train rows", "Reference", "Tuned"):
        assert words in shown, words
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert sum(tag == "polyline" for tag, _ in page.tags) == 4, "two losses, rate and norm"
    assert ("strong", {"class": "better"}) in page.tags


def test_a_run_without_rows_to_show_leaves_the_sections_out() -> None:
    empty = a_page_run(evaluation=EvaluationStatus(), log=[], lengths=[], samples=[])
    page = Page(report_page(empty))
    assert {"svg", "article"} & {tag for tag, _ in page.tags} == set()


def test_ticks_are_round_and_enclose_the_values() -> None:
    for low, high in [(0.0, 3.7), (1.2, 1.3), (-5.0, 12345.0), (2.0, 2.0), (0.0, 0.0), (1e-7, 9e-7)]:
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low <= high <= ticks[-1]
        assert 2 <= len(ticks) <= 8


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    points = [(float(step), 1.0) for step in range(10_001)]
    kept = thinned(points)
    assert len(kept) == 400
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert len(line_chart([Line("loss", "first", points)], "step", "Loss")) < 100_000


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0.000123456, 31.2, 12345.0, 0.5)] == ["1.235e-4", "31.2", "12,345", "0.5"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_renders_it_and_runs_no_foreign_script(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_page(a_page_run(HOSTILE + "<script>document.title='taken'</script>")), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "<title>story</title>" in dom
    assert dom.count("<svg") == 4
