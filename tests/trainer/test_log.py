"""The log: one line per event for people or programs, and on a terminal a bar that lines are never mixed with."""

import io
import json

from finetune_trainer.log import ERASED, Log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_lines_are_one_object_each_with_numbers_by_name() -> None:
    stream = Terminal()
    log = Log(as_json=True, stream=stream)
    log.bar(1, 2)
    log.say("step 1/2\nnext", loss=0.5, rate=None)
    assert [json.loads(line) | {"time": ""} for line in stream.getvalue().splitlines()] == [
        {"time": "", "level": "info", "message": "step 1/2 next", "loss": 0.5}
    ]


def test_a_terminal_shows_a_bar_that_a_line_takes_the_place_of() -> None:
    stream = Terminal()
    log = Log(stream=stream)
    log.bar(1, 2, "3 s left")
    log.say("half done")
    log.bar(2, 2)
    before, line, after = stream.getvalue().split(ERASED)[1:]
    assert before == "█" * 15 + "░" * 15 + " 1/2 3 s left"
    assert line.endswith("half done\n")
    assert after == "█" * 30 + " 2/2 "


def test_the_bar_is_drawn_seldom_but_at_the_end_always() -> None:
    stream = Terminal()
    log = Log(stream=stream)
    for step in range(1, 1001):
        log.bar(step, 1000)
    assert stream.getvalue().count(ERASED) < 20
    assert stream.getvalue().endswith("1000/1000 ")


def test_without_a_terminal_there_is_no_bar() -> None:
    stream = io.StringIO()
    Log(stream=stream).bar(1, 2)
    assert stream.getvalue() == ""
