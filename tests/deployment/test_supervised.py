"""A run that goes on when its cloud has died: when it is sent again, with what, and when it is not."""

import json
import tomllib
from pathlib import Path

import pytest
from fsl.simulations import flower_cloud
from fsl.simulations.fsl_federation import command

from fsl.deployment.local import flower_runs, known_superlink, supervised_run
from fsl.deployment.local.flower_runs import NOT_AGAIN, RunEnd, watch
from fsl.deployment.local.known_superlink import KnownSuperLink
from fsl.deployment.local.supervised_run import SupervisedRun
from fsl.errors import CodeError, ConfigError, RunError, TrustError
from fsl.quoting import override_value

DONE = ("finished:completed", "")
EXPIRED = ("finished:failed", "Task failed because the run expired")


class Runs:
    """What runs do, one after the other: rounds that they finish, and how they end."""

    def __init__(self, folder: Path, *script):
        self.folder = folder
        self.script = list(script)
        self.sent = []  # overrides
        self.stopped = []

    def submit(self, overrides):
        end = self.script[0]
        if isinstance(end, RunError):
            raise self.script.pop(0)
        self.sent.append(list(overrides))
        return str(len(self.sent))

    def watch(self, run, look):
        rounds, end = self.script.pop(0)
        for _ in range(rounds):
            write_round(self.folder)
            look()
        if isinstance(end, BaseException):
            raise end
        return RunEnd(run, *end)

    def stop(self, run):
        self.stopped.append(run)


def write_round(folder, checkpoint=True):
    path = folder / "metrics.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    rounds = len(path.read_text().splitlines()) if path.exists() else 0
    with path.open("a") as file:
        file.write(json.dumps({"round": rounds + 1, "train_loss": 0.5, "accuracy": 0.25}) + "\n")
    if checkpoint:
        (folder / "checkpoint").mkdir(exist_ok=True)
        (folder / "checkpoint" / "state.json").write_text("{}")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs" / "it"


@pytest.fixture(autouse=True)
def there(out):
    out.parent.mkdir()


@pytest.fixture
def said():
    return []


@pytest.fixture
def pauses():
    return []


def supervised(runs, retries, said=None, pauses=None):
    tell, sleep = (said if said is not None else []).append, (pauses if pauses is not None else []).append
    return SupervisedRun(runs, ["rounds=5"], runs.folder, retries, tell, sleep)


def test_a_run_that_ended_before_its_time_goes_on_from_its_checkpoint(out, said, pauses):
    runs = Runs(out, (2, EXPIRED), (3, DONE))
    assert supervised(runs, 3, said, pauses).run().completed
    assert runs.sent == [
        ["rounds=5", f"hydra.run.dir={out}"],
        ["rounds=5", f"resume={out}", f"hydra.run.dir={out}"],
    ]
    assert said == [
        "run 1 ended as finished:failed (Task failed because the run expired); 2 rounds are done, again in 5 s "
        "(try 1 of 3)"
    ]
    assert pauses == [5.0]


@pytest.mark.parametrize(
    "end",
    [
        DONE,
        ("finished:stopped", ""),
        ("finished:failed", f"ServerApp failed with exception: rounds=x: it must be a whole number{NOT_AGAIN}"),
    ],
    ids=["completed", "stopped", "refused"],
)
def test_what_no_other_try_mends_is_not_tried_again(end, out):
    runs = Runs(out, (1, end))
    assert supervised(runs, 5).run() == RunEnd("1", *end)
    assert len(runs.sent) == 1


def test_tries_without_a_new_round_are_counted_and_pauses_grow(out, pauses):
    runs = Runs(out, *[(0, EXPIRED)] * 2, (1, EXPIRED), *[(0, EXPIRED)] * 9)
    assert supervised(runs, 3, pauses=pauses).run() == RunEnd("6", *EXPIRED)
    assert pauses == [5.0, 10.0, 5.0, 10.0, 20.0]


def test_without_retries_a_run_is_sent_once(out):
    runs = Runs(out, (0, EXPIRED))
    assert not supervised(runs, 0).run().completed
    assert runs.sent == [["rounds=5", f"hydra.run.dir={out}"]]


def test_a_superlink_that_takes_no_run_for_a_while_is_asked_again(out, said):
    away = RunError("flwr run failed: Connection to the SuperLink is unavailable.")
    runs = Runs(out, away, (1, EXPIRED), away, (4, DONE))
    assert supervised(runs, 2, said).run().completed
    assert len(runs.sent) == 2
    assert "flwr run failed: Connection to the SuperLink is unavailable." in said[0]
    with pytest.raises(RunError, match="unavailable"):
        supervised(Runs(out, away, away), 1).run()


def test_a_supervisor_that_starts_again_goes_on_too(out):
    write_round(out)
    runs = Runs(out, (4, DONE))
    supervised(runs, 1).run()
    assert runs.sent == [["rounds=5", f"resume={out}", f"hydra.run.dir={out}"]]


def test_what_never_came_to_a_checkpoint_is_put_aside(out, said):
    runs = Runs(out, (0, EXPIRED), (5, DONE))
    supervise = supervised(runs, 1, said)
    watched = runs.watch

    def half_a_round(run, look):
        if run == "1":
            write_round(out, checkpoint=False)
        return watched(run, look)

    runs.watch = half_a_round
    assert supervise.run().completed
    assert runs.sent == [["rounds=5", f"hydra.run.dir={out}"]] * 2
    assert (out.parent / "it.lost-1" / "metrics.jsonl").exists()
    assert said[-1] == f"no round came to a checkpoint; what there was lies in {out.parent}/it.lost-1"


def test_a_run_whose_folder_is_on_another_machine_goes_on_as_well(tmp_path):
    far = tmp_path / "of another" / "machine"
    runs = Runs(far, (0, EXPIRED), (0, DONE))
    supervised(runs, 1).run()
    quoted = override_value(str(far))
    assert runs.sent[1] == ["rounds=5", f"resume={quoted}", f"hydra.run.dir={quoted}"]
    assert not far.parent.exists()


@pytest.mark.parametrize("heard", [True, False])
def test_ctrl_c_stops_the_run_once(heard, out, said):
    runs = Runs(out, (1, KeyboardInterrupt()))
    stop = runs.stop

    def deaf(run):
        stop(run)
        raise RunError("the SuperLink is away")

    if not heard:
        runs.stop = deaf
    with pytest.raises(KeyboardInterrupt):
        supervised(runs, 5, said).run()
    assert runs.stopped == ["1"]
    assert said == ([] if heard else ["run 1 may go on, since nobody heard that it is to stop (the SuperLink is away)"])


def test_retries_are_a_number_and_need_a_folder(out):
    with pytest.raises(ConfigError, match="retries=-1: it is a number of tries from 0 on"):
        supervised(Runs(out), -1)
    with pytest.raises(ConfigError, match="retries=1 without a folder"):
        SupervisedRun(Runs(out), [], None, 1)


# What the run's cloud says of its end.


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConfigError("rounds=x"), False),
        (TrustError("no"), False),
        (CodeError("model.py, line 3"), False),
        (CodeError("the disk is full", passing=True), True),
        (RunError("round 3: no device finished"), True),
    ],
)
def test_a_cloud_says_whether_another_try_may_mend_it(error, again, monkeypatch):
    def ends(grid, overrides):
        raise error

    monkeypatch.setattr(flower_cloud, "_run", ends)
    with pytest.raises(type(error)) as told:
        flower_cloud.run(None, "")
    assert str(told.value) == f"{error}{'' if again else NOT_AGAIN}"
    assert RunEnd("1", "finished:failed", str(told.value)).refused is not again


# By `flwr`.


class Flwr:
    """The program `flwr`, as far as runs need it."""

    def __init__(self, out, *states):
        self.out = out
        self.states = list(states)  # of the run that was sent last, one for each question
        self.said = []
        self.overrides = []

    def __call__(self, home, arguments):
        self.said.append(list(arguments[:2]))
        if arguments[0] == "run":
            self.overrides.append(tomllib.loads(Path(arguments[-1]).read_text())["overrides"])
            return {"run-id": len(self.overrides)}
        if arguments[0] == "stop":
            return {}
        state = self.states.pop(0)
        if isinstance(state, RunError):
            raise state
        if state is None:
            write_round(self.out)
            state = ("running", "")
        return {"runs": [{"status": state[0], "status-details": state[1]}]}


@pytest.fixture
def flwr(out, monkeypatch, tmp_path):
    def by(*states):
        found = Flwr(out, *states)
        monkeypatch.setattr(flower_runs, "flwr", found)
        return found

    monkeypatch.setattr(known_superlink, "_ASK", 0.01)
    monkeypatch.setattr(known_superlink, "_POLL", 0.01)
    monkeypatch.setattr(supervised_run, "_PAUSE", (0.01, 0.01))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    return by


AWAY = RunError("flwr list failed: Connection to the SuperLink is unavailable.")
UNKNOWN = RunError("flwr list failed: [code: 16] Run ID not found.")


def run(out, *more):
    return command(["run", "--connection", "mine", *more, "rounds=3", f"hydra.run.dir={out}"])


def test_a_run_outlives_its_superlink(out, flwr, capsys):
    fake = flwr(None, AWAY, AWAY, UNKNOWN, None, None, DONE)
    assert run(out, "--retries", "1") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        *(f"round {k}/3: train_loss 0.5000, accuracy 0.2500" for k in (1, 2, 3)),
        "train_loss 0.5000, accuracy 0.2500",
        captured.out.splitlines()[-1],
    ]
    notes = [line.removeprefix("fsl-federation: ") for line in captured.err.splitlines()]
    assert notes[0] == f"run 1: the SuperLink does not say how it is ({AWAY}); it is asked on"
    assert notes[1] == "run 1: the SuperLink answers again"
    assert notes[2].startswith("run 1 ended as forgotten (the SuperLink does not know it: did it restart without")
    assert [words for words in fake.overrides if "resume=" in words] == fake.overrides[1:]


def test_who_comes_after_a_killed_supervisor_watches_its_run(out, flwr, capsys):
    flwr()
    KnownSuperLink("mine", Path("app"), out).submit([])  # and then it was killed
    fake = flwr(None, None, None, DONE)
    assert run(out, "--retries", "1") == 0
    assert "run 1 was sent before, and is watched to its end" in capsys.readouterr().err
    assert fake.overrides == []
    assert run(out, "--retries", "1") == 0  # it is done
    assert "results: " in capsys.readouterr().out
    assert fake.overrides == []


@pytest.mark.parametrize(
    ("given", "drawn", "named"),
    [((), True, True), (("figures=false",), True, False), ((), False, False)],  # drawn by an earlier part of a run, too
)
def test_figures_are_named_where_the_run_draws_them(out, flwr, capsys, given, drawn, named):
    flwr(None, None, None, DONE)
    if drawn:
        (out / "figures").mkdir(parents=True)
    for _ in range(2):  # the second time, the run is done already
        assert run(out, "--retries", "1", *given) == 0
        assert any(line.startswith("figures: ") for line in capsys.readouterr().out.splitlines()) == named


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [
        (("finished:stopped", ""), 1, "run 1 was stopped; log: flwr log 1 mine"),
        (("finished:failed", f"rounds=x{NOT_AGAIN}"), 2, "run 1 ended as finished:failed (rounds=x); log: flwr log 1"),
        (EXPIRED, 1, "run 1 ended as finished:failed (Task failed because the run expired); log: flwr log 1 mine"),
    ],
)
def test_how_it_ended_is_one_line_and_an_exit_code(out, flwr, capsys, end, code, line):
    flwr(end)
    assert run(out) == code
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"fsl-federation: {line}")


def test_bad_input_of_a_run_elsewhere_is_one_line(out, flwr, capsys):
    fake = flwr()
    assert command(["run", "--connection", "mine", "rounds=abc"]) == 2
    assert command(["run", "--app", "here", "rounds=1"]) == 2
    write_round(out)
    assert run(out) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "rounds='abc': it must be a whole number" in lines[0]
    assert "--app here without --connection" in lines[1]
    assert "holds a run already" in lines[2]
    assert fake.said == []


class Told:
    """A SuperLink's control that is away once, and then tells a run's statuses one after another."""

    def __init__(self, *statuses):
        self.statuses = [*statuses]

    def status(self, run):
        if (now := self.statuses.pop(0)) is None:
            raise RunError("the SuperLink does not answer")
        return now, ""


def test_a_local_run_whose_cloud_dies_is_known_at_once(flwr, monkeypatch):
    """The first process of it comes too late for the SuperLink, which starts another."""
    monkeypatch.setattr(flower_runs, "_POLL", 0.001)
    fake, control = flwr(), Told(None, "starting", "running")
    at_work = iter([False, True, False, True, False, True, False])
    assert watch(None, control, "7", lambda: next(at_work), lambda: None, lambda: "") == RunEnd(
        "7", "died", "its cloud's process has ended without a word"
    )
    assert control.statuses == []
    assert fake.said == [["stop", "7"]]
