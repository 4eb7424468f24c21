"""The page of states has everything that a status can say."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from finetune_api.failures import POLICIES
from finetune_api.names import ConditionType, FailureClass, Phase
from finetune_api.reasons import REASONS, Reason
from finetune_api.states import ARGO_HEALTH, CONDITIONS, KSTATUS, PHASES, VERDICT_CONDITIONS, Verdict
from finetune_api.states_page import reasons_in, states_page

TABLES: dict[str, tuple[type[Enum], Mapping[Any, object]]] = {
    "phases": (Phase, PHASES),
    "conditions": (ConditionType, CONDITIONS),
    "reasons": (Reason, REASONS),
    "classes of failure": (FailureClass, POLICIES),
    "verdicts": (Verdict, VERDICT_CONDITIONS),
    "words of kstatus": (Verdict, KSTATUS),
    "words of Argo CD": (Verdict, ARGO_HEALTH),
}


@pytest.mark.parametrize("table", TABLES)
def test_every_member_has_its_row(table: str) -> None:
    members, rows = TABLES[table]
    assert set(rows) == set(members)


def test_every_verdict_belongs_to_a_phase() -> None:
    assert {verdict for facts in PHASES.values() for verdict in facts.verdicts} == set(Verdict)


SOURCE = """
def refused(reason, message):
    return RunError(FailureClass.INVALID_DATA, reason, message)

def trouble():
    raise RunError(FailureClass.INVALID_CONFIG, "ModelNotFound", "There is none")
    raise refused("AddressForbidden", "it is not public")
    raise Other("NotOurs", "Sentence.")
    return RunError(FailureClass.INFRASTRUCTURE, PEER_LOST, f"gone")
"""


def test_the_trainers_reasons_are_read_from_its_source_whoever_says_them() -> None:
    assert set(reasons_in(SOURCE)) == {
        ("INVALID_CONFIG", "ModelNotFound"),
        ("INVALID_DATA", "AddressForbidden"),
        ("INFRASTRUCTURE", "PeerLost"),
    }


def test_the_page_names_every_reason(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(SOURCE)
    page = states_page([source])
    assert [word for word in (*Phase, *ConditionType, *Reason, *FailureClass, "PeerLost") if word not in page] == []
