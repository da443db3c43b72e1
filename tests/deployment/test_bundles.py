"""A node runs what its owner allowed: no bundle with code of its own, whatever the control plane sends."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab

from fsl.deployment.local.flower_programs import write_app
from fsl.deployment.node import guard
from fsl.deployment.node.bundles import check, check_installed, hash_of, hashes
from fsl.deployment.node.supernode import command, read
from fsl.errors import ConfigError, TrustError
from tests.helpers import federation_app

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # of a library that Flower uses


@pytest.fixture
def ours(tmp_path) -> bytes:
    write_app(tmp_path / "ours")
    return build_fab_from_disk(tmp_path / "ours")


@pytest.fixture
def foreign(tmp_path) -> bytes:
    return build_fab_from_disk(federation_app.write_app(tmp_path / "foreign"))


def changed(bundle: bytes, files: dict[str, bytes] | None = None, table: tuple[str, str] | None = None) -> bytes:
    """A bundle with more files, or with other words in its table."""
    old, new = zipfile.ZipFile(io.BytesIO(bundle)), io.BytesIO()
    with zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            data = old.read(name)
            if table is not None and name == "pyproject.toml":
                assert table[0].encode() in data
                data = data.replace(table[0].encode(), table[1].encode())
            archive.writestr(name, data)
        for name, data in (files or {}).items():
            archive.writestr(name, data)
    return new.getvalue()


def test_the_bundle_that_names_fsls_apps_and_brings_no_code_runs(ours):
    assert check(ours, ()) == ("fsl/fsl-flower", "0.1.0")


def test_a_foreign_bundle_is_refused_by_its_hash_and_runs_where_its_owner_lists_it(foreign):
    with pytest.raises(TrustError) as refused:
        check(foreign, ())
    said = str(refused.value)
    assert "\n" not in said
    assert f"refuses bundle {hash_of(foreign)}: it brings files of its own (few_lines.py)" in said
    assert f"--allow-bundle {hash_of(foreign)}" in said
    assert check(foreign, {hash_of(foreign)}) == ("tests/few-lines", "1.0.0")


@pytest.mark.parametrize(
    ("files", "table", "said"),
    [
        ({"fsl/__init__.py": b""}, None, "files of its own"),
        ({"torch.so": b""}, None, "files of its own"),
        ({"../../fsl.pth": b"import os"}, None, "files of its own"),
        ({"__pycache__/fsl.cpython-311.pyc": b""}, None, "files of its own"),
        (None, ("fsl.simulations.flower_app:client", "http.server:test"), "'http.server:test', not fsl's"),
        (None, ("fsl.simulations.flower_app:server", "antigravity:fly"), "not fsl's"),
        (None, ('name = "fsl-flower"', 'name = "fsl-flower"\ndependencies = ["evil"]'), "installed (dependencies)"),
        (None, ('name = "fsl-flower"', 'name = "fsl-flower"\ndynamic = ["dependencies"]'), "installed (dynamic)"),
        (None, ("[project]", "[build-system]\nrequires = ['evil']\n[project]"), "has tables beside"),
        (None, ("[project]", "[tool.uv.sources]\nevil = 1\n[project]"), "has tables beside"),
        (None, ("[project]", "#" + 70_000 * "x" + "\n[project]"), "larger than"),
        ({"README.md": bytes(2 << 20)}, None, "README.md is larger than"),
        (None, ('version = "0.1.0"', 'version = "1/../../../../../out"'), "no name or version of an app"),
        (None, ('version = "0.1.0"', "version = ['1']"), "no name or version of an app"),
        (None, ('name = "fsl-flower"', 'name = "../fsl"'), "no name or version of an app"),
        (None, ('name = "fsl-flower"', r'name = "a\u001b[31m"'), "no name or version of an app"),
        (None, ('publisher = "fsl"', 'publisher = ".."'), "no name or version of an app"),
        (None, ("[project]", "project"), "no bundle that can be read"),
        (None, ('publisher = "fsl"', ""), "no bundle that can be read"),
    ],
)
def test_a_bundle_that_might_bring_code_is_refused(ours, files, table, said):
    with pytest.raises(TrustError) as refused:
        check(changed(ours, files, table), ())
    assert said in str(refused.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_bundle_that_holds_a_file_twice_is_refused(ours):
    with pytest.raises(TrustError, match="a file twice"):
        check(changed(ours, {"pyproject.toml": b""}), ())


@pytest.mark.parametrize("bundle", [b"", b"PK", b"import os", bytes(100)])
def test_what_is_no_bundle_is_refused_in_one_line(bundle):
    with pytest.raises(TrustError, match=r"refuses bundle [0-9a-f]{64}: it is no bundle that can be read"):
        check(bundle, ())


class Runtime(SimpleNamespace):
    """Flower's `run_clientapp`, as far as a bundle goes through it."""

    def __init__(self, bundle: bytes, app: tuple[str, str], home: Path, told: str | None = None):
        run = SimpleNamespace(run_id=7, fab_id=app[0], fab_version=app[1])
        fab = SimpleNamespace(content=bundle, hash_str=told or hash_of(bundle))
        installed: list[Path] = []

        def install(content: bytes, skip_prompt: bool) -> Path:
            installed.append(install_from_fab(content, home, skip_prompt))
            return installed[-1]

        super().__init__(
            pull_task_input=lambda client: (None, None, run, fab), install_from_fab=install, installed=installed
        )

    def work(self) -> None:
        fab = self.pull_task_input(None)[3]
        self.install_from_fab(fab.content, skip_prompt=True)


def test_nothing_of_a_foreign_bundle_is_written_to_a_nodes_disk(foreign, ours, tmp_path):
    runtime = Runtime(foreign, ("tests/few-lines", "1.0.0"), tmp_path / "home")
    guard.watch_over(runtime, frozenset())
    with pytest.raises(TrustError, match="refuses bundle"):
        runtime.work()
    assert not runtime.installed
    assert not (tmp_path / "home").exists()
    runtime = Runtime(ours, ("fsl/fsl-flower", "0.1.0"), tmp_path / "home")
    guard.watch_over(runtime, frozenset())
    runtime.work()
    assert len(runtime.installed) == 1


@pytest.mark.parametrize(
    ("app", "told"), [(("tests/few-lines", "1.0.0"), None), (("fsl/fsl-flower", "9"), None), (None, "f" * 64)]
)
def test_a_bundle_that_is_allowed_does_not_let_another_app_be_loaded(ours, tmp_path, app, told):
    runtime = Runtime(ours, app or ("fsl/fsl-flower", "0.1.0"), tmp_path, told)
    guard.watch_over(runtime, frozenset())
    with pytest.raises(TrustError, match="refuses run 7"):
        runtime.work()
    assert not runtime.installed


def test_what_an_earlier_bundle_left_in_its_place_is_not_run(ours, tmp_path):
    folder = install_from_fab(ours, tmp_path, skip_prompt=True)
    check_installed(folder, ours)
    (folder / "fsl.py").write_text("")
    with pytest.raises(TrustError, match=r"fsl\.py is not what its bundle says"):
        check_installed(folder, ours)
    (folder / "fsl.py").unlink()
    (folder / "fsl").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(TrustError, match=r"fsl is not what its bundle says"):
        check_installed(folder, ours)


def test_a_supernode_finds_the_guard_and_nothing_else_on_its_path(tmp_path):
    folder = guard.write_programs(tmp_path / "a b")
    assert {p.name for p in folder.iterdir()} == {guard.APP, guard.SUPEREXEC, *guard.REFUSED}
    assert folder.stat().st_mode & 0o077 == 0
    environment = {guard.PATH: "/usr/bin", "PATH": str(folder), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [folder / "flwr-agentapp", "--token", "x"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "fsl-supernode: a run asked for flwr-agentapp, and this node runs only flwr-clientapp\n"


def test_the_owners_list_is_read_and_the_rest_is_flowers():
    one, other = "a" * 64, "0" * 64
    theirs = ["--superlink", "cloud:8000", "--insecure"]
    assert read(["--allow-bundle", one, *theirs, "--allow-bundle", other]) == (frozenset({one, other}), theirs)
    assert read(theirs) == (frozenset(), theirs)


@pytest.mark.parametrize("given", [["--isolation", "process"], ["--iso=process"], ["--trusted-entities", "a.yaml"]])
def test_what_would_go_round_the_guard_is_refused(given, capsys):
    assert command(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fsl-supernode: {given[0]}: ")


@pytest.mark.parametrize("given", ["", "abc", "A" * 64, "a" * 63 + "\n"])
def test_a_hash_that_is_none_is_refused(given):
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        hashes([given])
