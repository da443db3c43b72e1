"""An edge's journal: sessions that come together go to the disk together, and what failed may come again."""

import os
import threading
from dataclasses import replace

import pytest

from fsl.deployment.processes import wait_until
from fsl.wire.edge import journal
from fsl.wire.edge.journal import Journal
from fsl.wire.tokens import Claims

CLAIMS = Claims("a run", 3, 0, (0,), 5, 10, 17, b"f" * 32)
DEVICES = 6


def lines(path) -> list[str]:
    return [line.split("\t")[1] for line in path.read_text().splitlines()]


def test_sessions_that_come_while_one_is_written_share_a_sync(tmp_path, monkeypatch):
    path, synced, at_disk, go_on = tmp_path / "journal", [], threading.Event(), threading.Event()

    def fsync(descriptor):
        synced.append(descriptor)
        at_disk.set()
        assert go_on.wait(20)

    monkeypatch.setattr(journal.os, "fsync", fsync)
    book, admitted = Journal(path), []
    threads = [
        threading.Thread(target=lambda device=device: admitted.append(book.enter(replace(CLAIMS, device=device))))
        for device in range(DEVICES)
    ]
    threads[0].start()
    assert at_disk.wait(20)
    for thread in threads[1:]:
        thread.start()
    assert wait_until(lambda: len(book._batch.lines) == DEVICES - 1, 20, 0.01)
    assert not admitted  # nobody before its line is safe
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert admitted == [True] * DEVICES
    assert len(synced) == 2
    assert sorted(lines(path)) == [str(device) for device in range(DEVICES)]
    again = Journal(path)
    assert not any(again.enter(replace(CLAIMS, device=device)) for device in range(DEVICES))


def test_a_session_that_cannot_be_written_may_come_again(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    book = Journal(path)
    assert book.enter(CLAIMS)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            book.enter(replace(CLAIMS, device=1))
    assert lines(path) == ["0"]
    assert book.enter(replace(CLAIMS, device=1))
    assert lines(path) == ["0", "1"]
    assert not Journal(path).enter(replace(CLAIMS, device=1))


def test_a_new_run_begins_the_file_anew(tmp_path):
    path = tmp_path / "journal"
    book = Journal(path)
    assert book.enter(CLAIMS)
    assert book.enter(replace(CLAIMS, run="another", device=4))
    assert lines(path) == ["4"]
    assert os.stat(path).st_mode & 0o077 == 0
    assert not Journal(path).enter(replace(CLAIMS, run="another", device=4))
    assert Journal(path).enter(CLAIMS)  # another run's cloud has another key
