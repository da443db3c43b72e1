"""An owner's limit where devices do steps again: it is looked at before they do."""

from functools import partial

import pytest
from fsl.strategies import FedFly

from fsl.deployment.node.own_ledger import Limit
from fsl.errors import RunError
from fsl.privacy.ledger import read_devices
from fsl.wire.options import Patience
from tests.helpers.moving import ALL, wired
from tests.helpers.runs import DP, run

pytestmark = pytest.mark.slow


def test_a_move_that_begins_the_round_again_is_refused_beyond_the_limit(encrypted, tmp_path):
    """The round alone is within the limit, and what would be done again is not."""
    options = {"devices": 4, "edges": 3, "rounds": 1, "mobility": ALL, "privacy": DP}
    free = partial(wired, tmp_path / "free", **encrypted)
    still = run(FedFly("migrate"), backend=free(), **options).metrics[-1]["epsilon_model"]
    quick, limit = Patience(join=5, straggler=5, answer=10), Limit(1.0001 * still, "model")
    nodes = tmp_path / "nodes"
    with pytest.raises(RunError, match=rf"max-epsilon={limit.epsilon:g} against 'model': with this round device \d"):
        run(FedFly("restart"), backend=wired(nodes, limit=limit, patience=quick, **encrypted), **options)
    told = [one for path in nodes.glob("devices-*/privacy/*.json") for one in read_devices(path).values()]
    assert len(told) == 4
    assert {epsilons["model"] for _, epsilons in told} == {still}
