"""One Ray for all runs of a process: who starts it, who leaves it alone."""

from types import SimpleNamespace

import pytest

from fsl.flower import ray_session
from fsl.flower.ray_session import RaySession


@pytest.fixture
def calls(monkeypatch):
    """What is done with a Ray that stands for the real one, of which this process has none at first."""
    done: list[str] = []
    state = SimpleNamespace(up=False, driver="of the program's own")

    def start(address):
        done.append(f"open {address}")
        state.up, state.driver = True, f"driver {len(done)}"

    def shutdown():
        done.append("shutdown")
        state.up = False

    monkeypatch.setattr(RaySession, "_driver", None)
    monkeypatch.setattr(RaySession, "_address", None)
    monkeypatch.setattr(ray_session, "_start_or_join", start)
    context = SimpleNamespace(get_worker_id=lambda: state.driver)
    stand_in = SimpleNamespace(
        is_initialized=lambda: state.up, shutdown=shutdown, get_runtime_context=lambda: context, state=state
    )
    monkeypatch.setattr(ray_session, "ray", stand_in)
    return done


def test_runs_of_one_process_share_the_ray_of_the_first_one(calls):
    for _ in range(3):
        RaySession.open(None)
    assert calls == ["open None"]


def test_a_run_at_another_address_leaves_the_ray_of_the_runs_before(calls):
    for address in (None, "auto", "auto"):
        RaySession.open(address)
    assert calls == ["open None", "shutdown", "open auto"]


def test_a_ray_that_the_program_itself_has_opened_is_used_as_it_is(calls):
    ray_session.ray.state.up = True
    RaySession.open("auto")
    assert calls == []
