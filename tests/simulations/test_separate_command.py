"""`fsl-separate`: a run's model over devices, as folders and as processes of this machine."""

import re
import socket
import threading

import pytest
from fsl.simulations.fsl_separate import command
from fsl.simulations.fsl_serve import command as serve
from fsl.simulations.fsl_simulate import command as simulate

from fsl.inference.separable import load_device
from tests.helpers.separated import save_for_two


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("separate") / "run"
    options = ["model=resnet8", "data=digits", "devices=2", "rounds=1", "samples_per_device=64", "optimizer=adam"]
    assert simulate([*options, f"hydra.run.dir={folder}"]) == 0
    return folder


SHORT = ["devices=2", "epochs=1", "retrain=1", "share=0.2", "batch_size=256"]


@pytest.fixture(scope="module")
def searched(run):
    """Devices' folders of a short search over two."""
    assert command(["search", f"run={run}", *SHORT, "compare=true"]) == 0
    return run / "separable"


@pytest.mark.slow
def test_a_search_stands_beside_what_it_is_to_beat_and_is_not_written_over(run, tmp_path, capsys):
    assert command(["search", f"run={run}", *SHORT, "compare=true", f"out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    for name in ("all links, as trained", "searched", "random, equal bytes", "no links"):
        assert name in said
    gates = load_device(tmp_path / "device1").group.gates
    assert (gates.devices, 0 < gates.count < 12) == (2, True)
    assert command(["search", f"run={run}", *SHORT, f"out={tmp_path}"]) == 2
    assert "give overwrite=true, or another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_devices_as_processes_give_one_programs_outputs(searched, capsys):
    assert command(["local", f"folder={searched}", "count=2", "patience=60"]) == 0
    assert "outputs: the same as one program's, to the bit" in capsys.readouterr().out


@pytest.mark.slow
def test_devices_are_started_one_by_one_with_tokens(run, searched, tmp_path, capsys):
    """Device 0 asks for rows of the run's data, and the other ends when it does."""
    assert serve(["key", f"out={tmp_path}"]) == 0
    for number in range(2):
        folder, out = searched / f"device{number}", tmp_path / f"{number}.token"
        assert command(["token", f"key={tmp_path / 'operator-key.pem'}", f"folder={folder}", f"out={out}"]) == 0
    common = [f"token-key={tmp_path / 'operator-public.pem'}", "insecure=true"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    first = [f"folder={searched / 'device0'}", f"address={where}", f"run={run}", "rows=4", "count=3"]
    second = [f"folder={searched / 'device1'}", "address=127.0.0.1:0", f"peers={where}"]
    ends = []
    other = threading.Thread(
        target=lambda: ends.append(command(["device", *second, f"token={tmp_path / '1.token'}", *common]))
    )
    other.start()
    assert command(["device", *first, f"token={tmp_path / '0.token'}", *common]) == 0
    other.join(60)
    assert ends == [0]
    said = capsys.readouterr().out
    assert re.search(r"12 rows, [01]\.\d{4} right", said)
    assert "requests: 3" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to do: search, local, device, token; none is given"),
        (["fly"], "'fly' is none"),
        (["search"], "run must be given"),
        (["search", "run=nowhere", "share=2"], "share=2: of the bytes of all links, from 0 to 1"),
        (["search", "run=nowhere", "colour=red"], "there is no option 'colour'"),
        (["local"], "folder must be given"),
        (["local", "folder=nowhere"], "nowhere/device0 has no device.json"),
        (["device", "folder=nowhere"], "address must be given"),
        (["device", "folder=nowhere", "address=127.0.0.1:0"], "has no device.json"),
        (["token", "key=nowhere"], "folder must be given"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys):
    assert command(arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("fsl-separate: ")
    assert err.count("\n") == 1


def test_more_groups_than_channels_is_one_line(run, tmp_path, capsys):
    assert command(["search", f"run={run}", "devices=32", f"out={tmp_path}"]) == 2
    assert "devices=32: more groups than the 16 channels of layer 'stem.0'; give at most 16" in capsys.readouterr().err


def test_what_a_device_needs_is_said(tmp_path, capsys):
    first, second = save_for_two(tmp_path / "two")
    assert command(["device", f"folder={second}", "address=127.0.0.1:0", "insecure=true"]) == 2
    assert "peers: device 1 needs the addresses of the 1 below it, and has 0" in capsys.readouterr().err
    assert command(["device", f"folder={first}", "address=127.0.0.1:0", "insecure=true"]) == 2
    assert "run: device 0, and no other, needs a run" in capsys.readouterr().err
    assert command(["device", f"folder={second}", "address=0.0.0.0:0", "peers=127.0.0.1:1", "insecure=true"]) == 2
    assert "without TLS" in capsys.readouterr().err
    assert (
        command(
            ["device", f"folder={second}", "address=127.0.0.1:0", "peers=127.0.0.1:1", "insecure=true", "connect=0.2"]
        )
        == 1
    )
    assert "device 0 at 127.0.0.1:1 cannot be reached within 0.2 s" in capsys.readouterr().err
