"""docs/states.md: every phase, condition, reason and class of failure, with what follows and what to do.

What the trainer's reasons are is read from its source, where each is spelled once, beside its class.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from finetune_api import failures
from finetune_api.failures import POLICIES, FailurePolicy, Next
from finetune_api.names import FailureClass
from finetune_api.reasons import GROUPS
from finetune_api.reference import NOTICE
from finetune_api.states import ARGO_HEALTH, CONDITIONS, KSTATUS, PHASES, VERDICT_CONDITIONS, VERDICT_TYPES

CAMEL_CASE = re.compile(r"(?:[A-Z][a-z0-9]+)+")

WHAT_FOLLOWS = {
    Next.FAIL: "Failed, for good",
    Next.RETRY: "tried again after a growing wait, up to `spec.retryLimit`",
    Next.RESTART: "started again at once, not counted",
    Next.SMALLER: "training again at once with less memory, not counted, up to `status.memoryRung` {}",
    Next.HOLD: "Suspended and Stalled; goes on when the limit is raised",
}


def states_page(trainer_sources: Iterable[Path]) -> str:
    """The whole page."""
    return "\n".join(
        [
            NOTICE,
            "# States, reasons, failures",
            "",
            "What `status` can say of a Finetune, what follows, and what to do.",
            *_section("Phases", ["`status.phase`", "what goes on", "what moves it on"], _phases()),
            *_section("Conditions", ["type", "what it says"], ([name, text] for name, text in CONDITIONS.items())),
            *_section("How a run stands", ["", *VERDICT_TYPES, "kstatus", "Argo CD"], _verdicts()),
            "",
            "Each of these conditions has the same reason and message. What is deleted is Terminating for kstatus,",
            "which Helm and Flux ask; Argo CD asks the health check of [the guide](guide/gitops.md).",
            "",
            "## Reasons",
            *_reasons(),
            *_section("Failures", ["`status.failure.class`", "exit code", "what follows", "remedy"], _failures()),
            *_section("Reasons of the trainer", ["class", "reasons"], _trainer_reasons(trainer_sources)),
            "",
            "The message says what is wrong and where, the remedy what to do. A pod that was taken away has",
            "Kubernetes's own reason: PreemptionByScheduler, DeletionByTaintManager, EvictionByEvictionAPI,",
            "DeletionByPodGC or TerminationByKubelet. So has one that its node did not let start, an Infrastructure",
            "failure, such as UnexpectedAdmissionError.",
            "",
        ]
    )


def _section(title: str, head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return ["", f"## {title}", "", *_table(head, rows)]


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [_line(head), "|" + "--|" * len(head), *map(_line, rows)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _phases() -> Iterator[list[str]]:
    for phase, facts in PHASES.items():
        yield [phase, facts.meaning, facts.moved_on_by]


def _verdicts() -> Iterator[list[str]]:
    for verdict, values in VERDICT_CONDITIONS.items():
        phases = [phase for phase, facts in PHASES.items() if verdict in facts.verdicts]
        yield [f"{verdict.value} ({', '.join(phases)})", *values, KSTATUS[verdict], ARGO_HEALTH[verdict]]


def _reasons() -> Iterator[str]:
    for title, group in GROUPS.items():
        rows = ([reason, facts.meaning, facts.way_out] for reason, facts in group.items())
        yield from ["", f"### {title}", "", *_table(["reason", "what it means", "what to do"], rows)]


def _failures() -> Iterator[list[str]]:
    for name, policy in POLICIES.items():
        yield [name, str(policy.exit_code or "–"), _what_follows(policy), policy.remedy]


def _what_follows(policy: FailurePolicy) -> str:
    return WHAT_FOLLOWS[policy.next].format(policy.last_rung)


def _trainer_reasons(sources: Iterable[Path]) -> Iterator[list[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in sources:
        for kind, reason in reasons_in(path.read_text()):
            found[kind].add(reason)
    for failure_class in FailureClass:
        if reasons := found[failure_class.name]:
            yield [failure_class, ", ".join(sorted(reasons))]


def reasons_in(source: str) -> Iterator[tuple[str, str]]:
    """Name of the class, and reason, of each failure that a module can raise.

    A call that has both names them; a function that is given the reason, and has the class, names its callers' too.
    """
    tree = ast.parse(source)
    classes = {
        node.name: kind
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and (kind := _class_in(call)) and not _words_in(call)
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = call.func.id if isinstance(call.func, ast.Name) else ""
        if kind := _class_in(call) or classes.get(called):
            yield from ((kind, word) for word in _words_in(call))


def _class_in(call: ast.Call) -> str | None:
    """The FailureClass among the arguments of a call."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    attributes = [node for node in given if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return next((a.attr for a in attributes if ast.unparse(a.value) == FailureClass.__name__), None)


def _words_in(call: ast.Call) -> list[str]:
    """The CamelCase words among the arguments of a call; those that operator and trainer share have names."""
    texts = [node.value for node in call.args if isinstance(node, ast.Constant)]
    texts += [vars(failures).get(node.id) for node in call.args if isinstance(node, ast.Name)]
    return [text for text in texts if isinstance(text, str) and CAMEL_CASE.fullmatch(text)]
