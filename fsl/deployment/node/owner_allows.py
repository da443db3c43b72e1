"""Refuses work that is not for this node's role, or not for the devices and the edge that its owner gave it.

A node answers three kinds of messages. QUERY says what it hosts: ids, n_k, an edge's address, public keys. TRAIN, with
a part in the round, releases what the plan's privacy accounts for. EVALUATE tells exact scores of its devices' private
fronts on its test data. It refuses anything else, and anybody else, before it computes.
"""

from collections import Counter
from collections.abc import Iterable

from fsl.deployment.node.node_settings import NodeSettings
from fsl.errors import ConfigError, TrustError
from fsl.messages.node_part import NodePart
from fsl.messages.round_plan import EvaluatePlan, RoundPlan

KINDS = ("query", "train", "evaluate")


def refuse_kind(kind: str) -> None:
    """Raise TrustError for a kind of message that no node answers."""
    if kind not in KINDS:
        raise TrustError(f"a message of kind {kind[:40]!r}: this node answers {', '.join(KINDS)}")


def refuse_no_part(settings: NodeSettings) -> None:
    """Raise TrustError where a message without a part asks a node with a role to train whole cohorts."""
    if settings.role != "any":
        raise TrustError(
            f"role={settings.role!r}: a plan came without a part, which asks this node to train whole cohorts in its "
            "own process; only a node without a role does that. Cloud and node must run the same version of fsl"
        )


def refuse_part(settings: NodeSettings, plan: RoundPlan, part: NodePart, devices: int) -> None:
    """Raise TrustError for a part that is not this node's, or does not fit its plan; `devices`: the run's number."""
    if settings.role == "any":
        raise TrustError("a part in a round came to a node without a role; give it role, and what it hosts")
    if plan.trainer is not None and part.alone:
        raise TrustError("a plan with an edge trainer asks a device to train without an edge")
    if plan.trainer is None and (part.tickets or part.edges or part.tops):
        raise TrustError("a plan without an edge trainer asks for training at an edge")
    _refuse_foreign(settings, [task.device for task in part.own], devices)
    if len(part.edges) > 1:
        raise ConfigError("a node hosts one edge at most")
    _refuse_tops(settings, plan, part)
    for edge in part.edges:
        if not settings.hosts_edge or edge.cohort.edge != settings.edge:
            hosts = f"edge {settings.edge}" if settings.hosts_edge else "no edge"
            raise TrustError(f"a part is of edge {edge.cohort.edge}, and this node hosts {hosts}")
        served = [*(task.device for task in edge.cohort.devices), *(visitor.task.device for visitor in edge.visitors)]
        _refuse_twice(served)


def _refuse_tops(settings: NodeSettings, plan: RoundPlan, part: NodePart) -> None:
    if len(part.tops) > 1:
        raise ConfigError("a node hosts one server above an edge at most")
    if part.tops and not plan.hops:
        raise TrustError("a plan without a third segment at the cloud asks for a server above an edge")
    for top in part.tops:
        if not settings.hosts_top or top.cohort.edge != settings.edge:
            hosts = f"the server above edge {settings.edge}" if settings.hosts_top else "no such server"
            raise TrustError(f"a part is of the server above edge {top.cohort.edge}, and this node hosts {hosts}")
        _refuse_twice(task.device for task in top.cohort.devices)
    for edge in part.edges:
        if plan.hops != (edge.up is not None):
            raise TrustError(
                f"a part of edge {edge.cohort.edge} names {'no ' if plan.hops else 'a '}server above it, and its plan "
                f"has {'a' if plan.hops else 'no'} third segment at the cloud"
            )
        if edge.up is not None and {device for device, _ in edge.up.tokens} != {t.device for t in edge.cohort.devices}:
            raise TrustError(f"a part of edge {edge.cohort.edge} has other tokens for the server above it than devices")


def refuse_evaluation(settings: NodeSettings, plan: EvaluatePlan, devices: int) -> None:
    """Raise TrustError for devices of other nodes; ConfigError where the owner's limit allows no exact scores.

    A node without a role evaluates any device.
    """
    if settings.role == "any":
        return
    _refuse_foreign(settings, [task.device for task in plan.devices], devices)
    if settings.limit is not None:
        raise ConfigError(
            f"node configuration: max-epsilon={settings.limit.epsilon:g}: scores of private fronts are exact and in no "
            "account, so this node evaluates nothing; the run goes on without its scores"
        )


def _refuse_foreign(settings: NodeSettings, asked: Iterable[int], devices: int) -> None:
    asked = list(asked)
    hosted = set(settings.devices) if settings.hosts_devices else set()
    if foreign := sorted(set(asked) - hosted):
        said = ", ".join(map(str, sorted(hosted))) or "none"
        raise TrustError(f"a message is for device {foreign[0]}, and this node hosts {said}")
    if beyond := [device for device in asked if device >= devices]:
        raise TrustError(f"a message is for device {min(beyond)}, and its run has {devices} devices, from 0 on")
    _refuse_twice(asked)


def _refuse_twice(devices: Iterable[int]) -> None:
    if twice := [device for device, times in Counter(devices).items() if times > 1]:
        raise TrustError(f"a part names device {twice[0]} twice")
