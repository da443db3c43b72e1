"""Finds a run's nodes and what each hosts, as it says and as its key proves."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fsl.deployment.cloud.enrolled import Enrolled, fingerprint_of
from fsl.deployment.cloud.member import Member, introduced, refuse_both
from fsl.deployment.cloud.questions import Questions
from fsl.deployment.cloud.terms import Terms
from fsl.errors import RunError, WireError
from fsl.messages.record_names import CONFIG, LINE, SETUP
from fsl.quoting import one_line
from fsl.wire.line.cloud_lines import CloudLines

log = logging.getLogger(__name__)
# Flower's own answers for a node that is gone: nobody has refused anything.
_REACHED_NOBODY = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)
_RETURN = 15.0  # seconds to wait for a node whose line was lost: Flower's messages take some
_AGAIN = 5.0  # seconds after which a node that was refused is asked again
_FRESH = 1.0  # seconds for which a look holds while all lines are open: a question to the SuperLink takes milliseconds
_LEFT = "it is not online at the SuperLink any more: it ended, or its key was unregistered"


class Members:
    """Knows who takes part in a run: asks nodes what they host, and looks before each round who is still there."""

    def __init__(
        self, setup: str, terms: Terms, first_use: Path | None = None, lines: CloudLines | None = None
    ) -> None:
        self.setup = setup
        self.terms = terms
        self.lines = lines
        self.enrolled = Enrolled(terms.table, first_use)
        self.enrolled.read()
        self.online: list[Member] = []  # at the last look
        self.out: dict[int, str] = {}  # who has lost its place since, and why
        self._known: dict[int, Member] = {}
        self._lined: set[int] = set()  # of those, who has had a line
        self._refused: dict[int, str] = {}
        self._again: dict[int, float] = {}  # when a refused node is asked again
        self._silent: set[int] = set()  # online, but they did not answer the last question in time
        self._activated: dict[int, str] = {}  # of nodes that were asked: when they had come online, by Flower
        self._questions = Questions(terms.query)
        self._missed = ""  # what the log said last of who is not there
        self._looked = self._whole = -_FRESH  # when it last asked who is online, and when everybody was

    def look(self, grid: Grid, devices: int, edges: int, first: bool, tops: int = 0) -> bool:
        """Ask new nodes what they host; returns False where no node has a role, so that each hosts whole cohorts.

        Before the first round it waits until nodes host every device, every edge and the servers above the
        first `tops` edges, or `terms.wait` seconds are over.
        """
        deadline = time.monotonic() + (self.terms.wait if first else 0)
        while True:
            self._update(grid)
            if {member.role for member in self.online} == {"any"}:
                return False
            hosted = {device for member in self.online for device in member.samples}
            serving = {member.edge for member in self.online}
            missing = [f"device {d}" for d in range(devices) if d not in hosted]
            missing += [f"edge {e}" for e in range(edges) if e not in serving]
            above = {member.top for member in self.online}
            missing += [f"the server above edge {e}" for e in range(tops) if e not in above]
            if not missing:
                self._missed, self._whole = "", self._looked
                return True
            if time.monotonic() >= deadline:
                self._miss(f"{', '.join(missing[:20])}{self._busy()}")
                if not hosted:
                    raise RunError(f"no node hosts a device of this run; {self._reasons()}")
                return True
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))

    def _miss(self, missing: str) -> None:
        """Log who is not there, once until that changes: rounds may follow each other twice a second."""
        if missing != self._missed:
            log.warning("not there: %s", missing)
        self._missed = missing

    def check(self, grid: Grid | None = None) -> None:
        """Look in the middle of a round who has lost its place, into `out`, and close these nodes' lines at once.

        Without `grid` only the table of members is read.
        """
        self.enrolled.read()
        ids: Collection[int] | None = None
        if grid is not None:
            try:
                ids = set(grid.get_node_ids())
            except Exception as error:  # an absent SuperLink is noticed by others, and by the next round
                log.debug("the SuperLink did not say who is online: %s", error)
        for member in self.online:
            if member.node in self.out:
                continue
            if ids is not None and member.node not in ids:
                self.out[member.node] = _LEFT
                self._leave(member)
            elif self._known.get(member.node) == member and not self._rightful(member):
                self.out[member.node] = self._refused[member.node]

    def forget(self, node: int) -> None:
        """Ask a node again before the next round, since it failed and may restart with another configuration."""
        self._known.pop(node, None)

    def label(self, node: int) -> str:
        """Returns the name by which its operator registered a node."""
        named = [member.label for member in self.online if member.node == node and member.label]
        return f"node {named[0] if named else node}"

    def _update(self, grid: Grid) -> None:
        """Look who is there, ask new nodes, and admit those that have answered.

        It waits for the answers of nodes that come for the first time, or come back; less long for those whose line was
        lost, since Flower counts a node that was killed as online for a minute; and not for those of nodes that were
        refused, or did not answer the last time.
        """
        if changed := self.enrolled.read():
            self._again.clear()
        if not changed and self._stands():
            self._lined = set(self._known)
            return
        self._looked = time.monotonic()
        ids = sorted(grid.get_node_ids())
        self._let_go(grid, set(ids))
        for member in list(self._known.values()):  # an operator may have given a number to another key
            self._rightful(member)
        returning = self._ask_for_lines()
        self._forgive_restarted(grid)
        now = time.monotonic()
        there = self._known.keys() | self._questions.nodes
        patience: dict[int, float] = {}
        for node in ids:
            if node not in there and now >= self._again.get(node, now):
                waits = 0.0 if node in self._refused or node in self._silent else self.terms.query
                patience[node] = min(waits, _RETURN) if node in returning else waits
        replies = self._ask(grid, patience)
        if missed := _unreached(replies):  # who is there may have come back since
            replies += self._ask(grid, dict.fromkeys(missed & set(grid.get_node_ids()), self.terms.query))
        found: list[Member] = []
        registered = _registered(grid) if replies else {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if _reached_nobody(reply):
                continue  # the next look asks it, if it is there
            try:
                if reply.has_error():
                    raise WireError(one_line(str(reply.error.reason), 1000))
                found.append(self._introduced(node, reply, registered.get(node, _UNKNOWN)))
            except WireError as error:
                self._refuse(node, error)
        self._admit(sorted(found, key=lambda member: member.node), ids)
        self.online = [self._known[node] for node in ids if node in self._known]
        self.out = {}

    def _stands(self) -> bool:
        """Whether the last look holds: it found everybody, a moment ago, and nobody's line has broken since."""
        if self.lines is None or time.monotonic() - self._whole >= _FRESH or self._questions.nodes:
            return False
        online = {member.node for member in self.online}
        return not self.out and online == self._known.keys() and online <= self.lines.open

    def _ask(self, grid: Grid, patience: Mapping[int, float]) -> list[Message]:
        """Ask nodes what they host; returns what has come of all questions, having waited for each so many seconds."""
        questions = [Message(self._question(node), node, MessageType.QUERY, group_id="0") for node in patience]
        if patience:
            registered = _registered(grid)
            self._activated |= {node: registered.get(node, _UNKNOWN).activated for node in patience}
        self._questions.ask(grid, questions, patience)
        replies = self._questions.answers(grid)
        self._silent |= {node for node, seconds in patience.items() if seconds > 0}
        self._silent -= {reply.metadata.src_node_id for reply in replies}
        return replies

    def _forgive_restarted(self, grid: Grid) -> None:
        """Ask nodes anew that restarted since they were asked: nobody answers what an ended process has taken."""
        if not (waiting := self._questions.nodes | self._silent):
            return
        now = _registered(grid)
        restarted = {node for node in waiting if node in now and now[node].activated != self._activated.get(node)}
        self._questions.forget(grid, restarted)
        self._silent -= restarted

    def _introduced(self, node: int, reply: Message, registered: "_Registered") -> Member:
        member = introduced(node, reply, registered.key, registered.label, self.terms.bind_keys)
        if member.names and self.terms.bind_keys:
            self.enrolled.refuse(member.names, member.registered)
        return member

    def _let_go(self, grid: Grid, ids: Collection[int]) -> None:
        """Forget nodes that have left."""
        for member in list(self._known.values()):
            if member.node not in ids:
                self._leave(member)
        gone = (self._refused.keys() | self._again.keys() | self._silent | self._questions.nodes) - set(ids)
        self._questions.forget(grid, gone)
        for node in gone:
            self._refused.pop(node, None)
            self._again.pop(node, None)
            self._silent.discard(node)
            self._activated.pop(node, None)

    def _leave(self, member: Member) -> None:
        log.warning("%s is out: %s", member, _LEFT)
        self._known.pop(member.node, None)
        self._again.clear()  # another may take its place
        self._close_line(member.node, _LEFT)

    def _close_line(self, node: int, reason: str) -> None:
        self._lined.discard(node)
        if self.lines is not None:
            self.lines.revoke(node, reason)

    def _ask_for_lines(self) -> set[int]:
        """Have members whose line was lost asked again, with a new offer; returns them."""
        if self.lines is None:
            return set()
        open = self.lines.open
        lost = self._lined - open
        for node in lost:
            self._known.pop(node, None)
        self._lined = {node for node in open if node in self._known}
        return lost

    def _question(self, node: int) -> RecordDict:
        """Ask what a node hosts, and offer it a line where it has none."""
        offer = {}
        if self.lines is not None and node not in self.lines.open:
            offer = {LINE: self.lines.offer(node).to_json()}
        return RecordDict({CONFIG: ConfigRecord({SETUP: self.setup, **offer})})

    def _admit(self, found: list[Member], online: list[int]) -> None:
        """Admit the nodes that answered; where several answer for a number that is nobody's yet, none gets it."""
        claimants: dict[str, list[Member]] = {}
        for member in found:
            for name in member.names:
                claimants.setdefault(name, []).append(member)
        for member in found:
            others = [other for other in self._known.values() if other.node in online and other.node != member.node]
            if self.terms.bind_keys:
                others += [other for name in member.names for other in claimants[name] if other is not member]
            try:
                for other in others:
                    refuse_both(member, other)
            except WireError as error:
                self._refuse(member.node, error)
                continue
            self._known[member.node] = member
            self._refused.pop(member.node, None)
            if self.lines is not None and member.line:
                self.lines.expect([member.node])
            if self.terms.bind_keys and (new := self.enrolled.note(member.names, member.registered)):
                where = self.enrolled.first_use or "this run's memory"
                log.info("%s: key %s, noted in %s", _some(new), fingerprint_of(member.registered), where)
            log.info("%s takes part: %s", member, _some(member.names) or "whole cohorts")

    def _rightful(self, member: Member) -> bool:
        """Returns whether a member's numbers are still its own; refuses it otherwise."""
        if not (self.terms.bind_keys and member.names):
            return True
        try:
            self.enrolled.refuse(member.names, member.registered)
        except WireError as error:
            self._known.pop(member.node, None)
            self._refuse(member.node, error)
            return False
        return True

    def _refuse(self, node: int, error: WireError) -> None:
        if self._refused.get(node) != str(error):
            log.warning("node %d takes no part: %s", node, error)
        self._refused[node] = str(error)
        self._again[node] = time.monotonic() + _AGAIN
        self._close_line(node, str(error))

    def _reasons(self) -> str:
        said = "; ".join(f"node {node}: {reason}" for node, reason in self._refused.items()) + self._busy()
        return said.removeprefix("; ") or 'start SuperNodes with role="device" in their node configuration'

    def _busy(self) -> str:
        """Returns a sentence on nodes that are online and do not answer; empty where there are none."""
        if not self._silent:
            return ""
        nodes = ", ".join(map(str, sorted(self._silent)[:20]))
        return (
            f"; {len(self._silent)} nodes are online and did not answer in time ({nodes}): they have just ended, which "
            "Flower sees a minute later, or are busy, most likely with another run (`flwr list` shows runs); wait for "
            "it, or restart these SuperNodes"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _reached_nobody(reply: Message) -> bool:
    return reply.has_error() and reply.error.code in _REACHED_NOBODY


def _unreached(replies: Sequence[Message]) -> set[int]:
    return {reply.metadata.src_node_id for reply in replies if _reached_nobody(reply)}


class _Registered(NamedTuple):
    """What Flower knows of a node."""

    key: bytes  # public, PEM
    label: str
    activated: str  # when it came online last


_UNKNOWN = _Registered(b"", "", "")


def _registered(grid: Grid) -> dict[int, _Registered]:
    """Returns what Flower knows of its nodes; empty where the Grid does not tell."""
    get_nodes = getattr(grid, "get_nodes", None)
    if get_nodes is None:
        return {}
    return {info.node_id: _Registered(info.public_key, info.name, info.last_activated_at) for info in get_nodes()}
