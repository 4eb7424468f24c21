"""Teams of test processes: one that fails does not keep the others waiting for it."""

import pytest
import torch
from finetune_trainer.parallel import Team

from tests.trainer.teams import in_team


def one_fails(team: Team) -> None:
    """The second process raises, and the first waits for it."""
    if team.rank == 1:
        raise LookupError("of the second")
    team.sum(torch.zeros(1))


def test_the_first_error_of_a_team_ends_it_at_once() -> None:
    with pytest.raises(LookupError, match="of the second"):
        in_team(2, one_fails)
