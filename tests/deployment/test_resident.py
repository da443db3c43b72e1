"""A SuperNode has one resident process, whatever bundle a message came with, and it ends as it should."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flwr.app import RecordDict

from fsl.deployment.node import asking, claim
from fsl.deployment.node.asking import ask, socket_path
from fsl.deployment.node.claim import Owner
from fsl.deployment.processes import started_at, wait_until
from fsl.errors import RunError
from tests.helpers.places import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def supernode(monkeypatch):
    """Stands for SuperNodes: each call is a process that residents end with; nothing of them outlives the test."""
    started, residents = [], []

    def begin() -> Owner:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        started.append(process)
        return Owner(process.pid, started_at(process.pid))

    def start(path, folder, owner, code):
        words = [str(path), str(folder), code, str(owner.pid), str(owner.start)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        residents.append(
            subprocess.Popen([sys.executable, "-m", "tests.helpers.lodger", *words], cwd=ROOT, env=environment)
        )
        return residents[-1]

    monkeypatch.setattr(asking, "_start", start)
    begin.residents = residents
    begin.end = lambda: (started[-1].kill(), started[-1].wait())
    yield begin
    for process in (*started, *residents):
        process.kill()
        process.communicate()


def pid_of(answer: RecordDict) -> int:
    return int(answer.config_records["c"]["pid"])


def asked(state: Path, owner: Owner, kind: str = "query", run: int = 1) -> int:
    return pid_of(ask(kind, 3, run, RecordDict(), {"state": str(state)}, owner))


def later(call, *arguments, **named):
    """Call in a thread; `thread.told` is then what came of it."""

    def work():
        try:
            thread.told = call(*arguments, **named)
        except RunError as error:
            thread.told = error

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_an_edit_of_the_code_ends_the_old_process_before_a_new_one_answers(supernode, tmp_path, monkeypatch):
    owner = supernode()
    old = asked(tmp_path, owner)
    assert asked(tmp_path, owner, run=2) == old
    monkeypatch.setattr(asking, "code_in_use", lambda: "an edit, or another bundle's folder")
    new = asked(tmp_path, owner)
    assert new != old
    assert asked(tmp_path, owner) == new
    assert [process.poll() for process in supernode.residents] == [0, None]
    assert (tmp_path / "closed").exists()  # ports and connections, before the process ended


@pytest.mark.parametrize("cause", ["run", "code"])
def test_what_is_worked_on_ends_with_a_reason_when_something_newer_comes(supernode, tmp_path, monkeypatch, cause):
    owner = supernode()
    old = later(asked, tmp_path, owner, "long", run=1)
    assert wait_until((tmp_path / "at work").exists, 30)
    if cause == "code":
        monkeypatch.setattr(asking, "code_in_use", lambda: "new")
    asked(tmp_path, owner, run=2 if cause == "run" else 1)
    old.join(30)
    why = "run 2 has begun" if cause == "run" else "the code has changed"
    assert str(old.told) == f"RunError: the node gave up this message: {why}"
    assert [process.poll() for process in supernode.residents] == [0, None]


def test_a_message_of_the_same_run_waits_for_the_one_before(supernode, tmp_path):
    owner = supernode()
    first = later(asked, tmp_path, owner, "long")
    assert wait_until((tmp_path / "at work").exists, 30)
    second = later(asked, tmp_path, owner)
    (tmp_path / "go on").touch()
    first.join(30)
    second.join(30)
    assert first.told == second.told
    assert len(supernode.residents) == 1


def test_two_supernodes_do_not_share_a_state_folder(supernode, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "HANDOVER", 0.5)
    first = asked(tmp_path, supernode())
    with pytest.raises(RunError, match=rf"state={tmp_path}: another SuperNode's process \({first}\) works on it; give"):
        asked(tmp_path, supernode())
    assert asked(tmp_path / "other", supernode()) != first


def test_a_claim_is_refused_also_where_the_other_cannot_be_asked(supernode, tmp_path):
    # As where two services have temporary folders of their own.
    first = asked(tmp_path, supernode())
    with pytest.raises(BlockingIOError):
        claim.claim(tmp_path, 0.2)
    assert str(first) in claim.occupied(tmp_path)


def test_the_next_supernode_of_a_state_folder_is_answered_once_the_first_has_ended(supernode, tmp_path):
    old = asked(tmp_path, supernode())
    supernode.end()
    assert asked(tmp_path, supernode()) != old


def test_a_process_that_was_killed_leaves_nothing_that_holds_up_the_next(supernode, tmp_path):
    owner = supernode()
    killed = asked(tmp_path, owner)
    os.kill(killed, signal.SIGKILL)
    supernode.residents[0].wait(10)
    assert socket_path(tmp_path).exists()
    assert asked(tmp_path, owner) != killed
    with pytest.raises(RunError, match="the node's process died"):
        asked(tmp_path, owner, "crash")
    assert asked(tmp_path, owner) != killed
    with pytest.raises(RunError, match="ValueError: two lines"):
        asked(tmp_path, owner, "fail")


def test_a_process_ends_with_its_supernode_also_where_another_process_has_its_pid(supernode, tmp_path):
    owner = supernode()
    asked(tmp_path, owner)
    supernode.end()
    assert supernode.residents[0].wait(30) == 0
    stranger = Owner(os.getpid(), started_at(os.getpid()) - 1)
    assert not stranger.is_alive()
    assert Owner.parent().is_alive()


def test_an_owner_that_proc_hides_is_alive_until_it_ends(monkeypatch):
    """As /proc does with hidepid (systemd's ProtectProc=) to Flower's executor, which is closed to debuggers."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        monkeypatch.setattr("fsl.deployment.node.claim.started_at", lambda pid: None)
        monkeypatch.setattr(os, "getppid", lambda: process.pid)
        owner = Owner.parent()
        assert owner.is_alive()
    finally:
        process.kill()
        process.wait()
    assert not owner.is_alive()
    assert not Owner(1, 0).is_alive() or os.geteuid() == 0  # another user's process has got the number


def test_the_fingerprint_of_the_code_follows_an_edit(monkeypatch, tmp_path):
    (tmp_path / "fsl").mkdir()
    module = tmp_path / "fsl" / "__init__.py"
    module.write_text("a = 1\n")
    monkeypatch.setattr(claim, "HOME", tmp_path / "fsl")
    before = claim.code_in_use()
    assert claim.code_in_use() == before
    module.write_text("a = 10\n")
    assert claim.code_in_use() != before


def test_the_process_of_a_message_imports_no_torch():
    """Flower starts one for each message, and on a small machine that alone would take longer than a round."""
    asked = "import sys, fsl.deployment.node.asking, fsl.simulations.flower_app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], timeout=60).returncode == 0
