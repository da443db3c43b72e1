"""Parties of vertical split learning train on rows of the same people, in the same order, or learn nonsense."""

from collections.abc import Iterable

from fsl.deployment.cloud.member import Member
from fsl.errors import RunError


def refuse_other_people(members: Iterable[Member]) -> None:
    """Raise RunError where two nodes hold rows of other people, or hold out others for tests, or one does not say."""
    members = list(members)
    holding = [member for member in members if member.people]
    for other in holding[1:]:
        if other.people != (first := holding[0]).people:
            raise RunError(
                f"{first} and {other} hold rows of other people, or hold out others for tests; align the parties' "
                "files first (fsl-align), and give all nodes one test_share"
            )
    silent = next((member for member in members if member.samples and not member.people), None)
    if holding and silent is not None:
        raise RunError(
            f"{silent} does not say whose rows it holds, and {holding[0]} does; let its loader return the task of "
            "an fsl.data.VerticalData, which has a digest of the ids"
        )
