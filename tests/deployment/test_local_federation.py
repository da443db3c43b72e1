"""A federation of real processes: what it is told, how it fails, and that nothing of it stays."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from fsl.simulations.fsl_federation import command
from fsl.simulations.overrides import for_federation

from fsl.deployment.local import local_federation as local
from fsl.deployment.local.control import Control
from fsl.deployment.local.federation_record import read_record
from fsl.deployment.local.flower_programs import CONNECTION, bundle_hash, flwr
from fsl.deployment.local.flower_runs import submit, watch
from fsl.deployment.local.local_federation import LocalFederation
from fsl.deployment.local.scraped_metrics import parse_metrics
from fsl.deployment.node.bundles import check
from fsl.deployment.processes import members, wait_until
from fsl.errors import CheckpointError, ConfigError, RunError
from fsl.installed import __version__
from fsl.quoting import override_value
from tests.helpers.federation_app import write_app

pytestmark = pytest.mark.slow

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with a space")
    more = {"device-0": {"edge-addresses": "0=127.0.0.1:5555"}}
    app = write_app(folder / "app")
    with LocalFederation(folder / "federation", 1, 2, node_config=more, app=app, timeout=60) as running:
        yield running
        processes = list(running.record.processes.values())
    assert not any(members(process) for process in processes)


@contextmanager
def interruptible(program: list[str], folder: Path | None = None) -> Iterator[subprocess.Popen]:
    """A process that Ctrl-C reaches, also where tests run in the background; nothing of it outlives its test."""
    free = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, preexec_fn=free) as process:
        try:
            yield process
        finally:
            process.kill()
            if folder is not None and (left := LocalFederation.attach(folder)) is not None:
                left.stop()


def cli(*arguments: str, folder: Path) -> int:
    return command([arguments[0], "--folder", str(folder), *arguments[1:]])


def table(capsys) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


@slow
def test_a_run_reaches_every_node_with_what_it_was_told(federation, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "re sults"
    assert cli("run", "rounds=1", f"hydra.run.dir='{out}'", folder=federation.folder) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "round 1/1: train_loss 0.5000, accuracy 0.2500, devices 2",
        "train_loss 0.5000, accuracy 0.2500",
        "results: re sults",
    ]
    told = json.loads((out / "told.json").read_text())
    assert told["overrides"]["devices"] == "2"
    assert cli("run", f"hydra.run.dir='{out}'", folder=federation.folder) == 2
    assert "holds a run already" in capsys.readouterr().err
    nodes = {(node["role"], node.get("devices")): node for node in told["nodes"]}
    assert set(nodes) == {("edge", None), ("device", "0"), ("device", "1")}
    assert nodes["device", "0"]["edge-addresses"] == "0=127.0.0.1:5555"
    assert nodes["edge", None]["address"] == federation.record.node("edge-0").address
    for node in told["nodes"]:
        for key in {"ca", "key", "cert", "cert-key", "state"} & set(node):
            assert Path(node[key]).exists()


@slow
def test_a_run_that_fails_is_one_line_with_its_reason(federation, tmp_path, capsys):
    assert cli("run", "seed=13", f"hydra.run.dir={tmp_path}/out", folder=federation.folder) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "finished:failed" in line
    assert "thirteen is no seed" in line
    assert "logs" in line


@slow
def test_a_bundle_that_no_owner_allowed_does_not_run_on_any_node(federation, tmp_path):
    app = write_app(tmp_path / "foreign")
    ran, module = tmp_path / "ran", app / "few_lines.py"
    # Its server runs where the SuperLink is, which is the operator's; what a node imports is told by its process.
    at_node = f"import sys\nif sys.argv[0].endswith('flwr-clientapp'): open({str(ran)!r}, 'w')\n"
    module.write_text(at_node + module.read_text().replace("context.node_config", "{}"))
    run = submit(federation.home, str(app), [f"hydra.run.dir={tmp_path}/out"])
    end = watch(federation.home, federation.control, run, federation.at_work, lambda: None, lambda: "")
    assert not end.completed
    assert not ran.exists()
    for node in federation.record.nodes:
        said = federation.log(node.name).read_text()
        assert f"refuses bundle {bundle_hash(app)}: it brings files of its own (few_lines.py)" in said


@slow
def test_ctrl_c_stops_a_run(federation, tmp_path):
    out = tmp_path / "out"
    program = [sys.executable, "-m", "fsl.simulations.fsl_federation", "run", "--folder", str(federation.folder)]
    with interruptible([*program, "seed=14", f"hydra.run.dir={out}"]) as process:
        assert wait_until((out / "here").exists, 60)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "fsl-federation: interrupted; the run was stopped\n"
        assert process.returncode == 130
    runs = flwr(federation.home, ["list", CONNECTION])["runs"]
    assert "finished:stopped" in {run["status"] for run in runs}


@slow
def test_status_and_a_second_up(federation, capsys):
    assert cli("status", folder=federation.folder) == 0
    rows = table(capsys)
    assert ["device-1", "device", str(federation.record.processes["device-1"].pid), "yes", "yes"] in [
        r[:5] for r in rows
    ]
    assert "run" in rows[-1]  # the one that was sent last
    assert ["superlink", "superlink", str(federation.record.processes["superlink"].pid), "yes"] in [r[:4] for r in rows]
    assert cli("up", folder=federation.folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a federation is running there (4 processes)" in line


@slow
def test_a_wrong_override_is_one_line_and_starts_nothing(federation, capsys):
    assert cli("run", "rounds=abc", folder=federation.folder) == 2
    captured = capsys.readouterr()
    assert captured.err == "fsl-federation: rounds='abc': it must be a whole number\n"
    assert captured.out == ""


@slow
def test_a_node_comes_back_with_its_key(federation, capsys):
    before = federation.record.processes["device-1"]
    commands = [member.command for member in federation.pids("device-1")]
    assert len(commands) == 2
    assert any("fsl.deployment.node.supernode" in command for command in commands)
    assert any(command.startswith("flower-superexec") for command in commands)
    federation.kill("device-1", signal.SIGTERM)
    assert wait_until(lambda: not members(before), 20)
    assert not federation.alive()["device-1"]
    federation.restart("device-1")
    assert cli("status", folder=federation.folder) == 0
    row = ["device-1", "device", str(federation.record.processes["device-1"].pid), "yes", "yes"]
    assert row in [each[:5] for each in table(capsys)]


@slow
def test_what_a_superlink_refuses_is_one_line(federation):
    control, certificates = federation.control, federation.certificates
    with pytest.raises(RunError, match=r"^the SuperLink at [\d.:]+ (knows no run 7|does not tell of run 7: .+)$"):
        control.status("7")
    with pytest.raises(RunError, match=r"does not register device-0: .+"):
        control.register(certificates.node_public_key("device-0"), "device-0")


@slow
def test_a_superlink_that_does_not_answer_is_one_line(federation):
    with pytest.raises(RunError, match=r"^the SuperLink at 127\.0\.0\.1:1 does not list its nodes: .+$"):
        Control("127.0.0.1:1", federation.certificates.ca).online()


@slow
def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path):
    folder = tmp_path / "federation"
    program = [sys.executable, "-m", "fsl.simulations.fsl_federation", "up", "--folder", str(folder)]
    with interruptible(program, folder) as process:

        def processes():
            record = read_record(folder)
            return list(record.processes.values()) if record else []

        assert wait_until(lambda: bool(processes()), 60)
        started = processes()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "fsl-federation: interrupted; nothing is left running\n"
        assert process.returncode == 130
    assert not any(members(one) for one in started)
    assert not (folder / "processes.json").exists()


@slow
def test_a_port_that_is_taken_is_said_with_the_log(tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(local, "free_ports", lambda count: [taken.getsockname()[1]] * count)
        assert cli("up", folder=tmp_path / "federation") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fsl-federation: superlink has ended (")
    assert "address already in use" in line
    assert line.endswith("superlink.log")


def test_down_ends_nothing_that_it_did_not_start(tmp_path, capsys):
    folder = tmp_path / "federation"
    assert cli("down", folder=folder) == 0
    assert "nothing was running" in capsys.readouterr().out
    folder.mkdir()
    (folder / "federation.lock").touch()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        process = {"name": "superlink", "pid": stranger.pid, "start": 1, "boot": boot, "token": "superlink:0"}
        record = {"superlink": "127.0.0.1:1", "edges": 1, "devices": 1, "app": "", "environment": {}, "nodes": []}
        (folder / "processes.json").write_text(json.dumps({**record, "processes": {"superlink": process}}))
        assert cli("status", folder=folder) == 2
        assert cli("down", folder=folder) == 0
        assert "nothing was running" in capsys.readouterr().out
        assert stranger.poll() is None
        stranger.communicate(b"\n")


def test_the_app_that_it_writes_runs_on_every_node(tmp_path, capsys):
    assert command(["app", str(tmp_path / "app")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"bundle without code: {bundle_hash(tmp_path / 'app')}"
    assert check(build_fab_from_disk(tmp_path / "app"), ()) == ("fsl/fsl-flower", __version__)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="holds other things"):
        LocalFederation(tmp_path).start()
    assert (tmp_path / "logs" / "mine.txt").exists()


def test_a_damaged_record_is_one_line(tmp_path):
    (tmp_path / "processes.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        LocalFederation.attach(tmp_path)


def test_nothing_runs_before_the_start(tmp_path):
    with pytest.raises(RunError, match="no federation was started"):
        LocalFederation(tmp_path).run([])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--devices", "0"], "devices=0"),
        (["up", "--data", "nowhere"], "data=nowhere: there is no such file or folder"),
        (["run"], "no federation is running in"),
        (["status"], "no federation is running in"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, said):
    assert cli(*arguments, folder=tmp_path / "federation") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_overrides_are_checked_and_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a b").mkdir(parents=True)
    checked = for_federation(["rounds=3", "resume=runs/a b", "hydra.run.dir=here"], edges=2, devices=4)
    assert checked.overrides == ["edges=2", "devices=4", "rounds=3", f"resume='{tmp_path}/runs/a b'"]
    assert checked.folder == tmp_path / "here"
    assert for_federation(["devices=3"], edges=2, devices=4).config.training.devices == 3
    with pytest.raises(ConfigError, match="devices=5: this federation has 4"):
        for_federation(["devices=5"], edges=2, devices=4)
    with pytest.raises(ConfigError, match="resume=nowhere: there is no such folder"):
        for_federation(["resume=nowhere"], edges=2, devices=4)
    with pytest.raises(ConfigError, match="phi=2"):
        for_federation(["strategy=sglr", "strategy.phi=2"], edges=2, devices=4)
    with pytest.raises(ConfigError, match=r"privacy\.delta=2"):
        for_federation(["privacy=dp_sgd", "privacy.delta=2"], edges=2, devices=4)


@pytest.mark.parametrize("path", ["/a/b-1", "/a b/c=d", "/it's", "/a,b(c)", "/back\\slash's", "/end\\"])
def test_a_quoted_override_is_read_as_it_was(path, tmp_path):
    assert for_federation([f"init_from={override_value(path)}"], 1, 1).config.init_from == path


def test_figures_are_read_as_prometheus_writes_them():
    text = """# HELP fsl_sessions Sessions.
# TYPE fsl_sessions gauge
fsl_sessions{device="0",what="a } b"} 1
fsl_sessions{device="1"} 2.0 1700000000
fsl_steps_total 7

nonsense
fsl_bad x
"""
    assert parse_metrics(text) == {"fsl_sessions": 3.0, "fsl_steps_total": 7.0}
