"""What operators deploy by: units, images and the compose file say what this fsl and its libraries understand."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from fsl.deployment.certs import CertificateFolder, CertificateOwner, issue
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.supernode import read
from tests.helpers.places import ROOT

DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
UNITS = {path.stem: path.read_text() for path in sorted((DEPLOY / "systemd").glob("*.service"))}
RUNS = UNITS.pop("fsl-run@")  # runs on a cloud's machine, and is no machine's own
SPECIFIERS = {"%S": "/var/lib", "%C": "/var/cache", "%d": "/run/credentials/this.service"}
WRITABLE = ("/var/lib/fsl", "/var/cache/fsl", "/tmp")

# How to ask each library where it writes; fsl and Flower among them.
ASK = """
import json, os, tempfile
import datasets, huggingface_hub.constants, matplotlib, torch
from flwr.supercore.utils import get_flwr_home
from fsl.private_files import cache_folder
from fsl.deployment.node.scratch import scratch_folder
print(json.dumps({name: str(place) for name, place in {
    "flower": get_flwr_home(), "images": cache_folder(), "scratch": scratch_folder(), "tmp": tempfile.gettempdir(),
    "hub": huggingface_hub.constants.HF_HUB_CACHE, "token": huggingface_hub.constants.HF_TOKEN_PATH,
    "assets": huggingface_hub.constants.HUGGINGFACE_ASSETS_CACHE, "datasets": datasets.config.HF_DATASETS_CACHE,
    "modules": datasets.config.HF_MODULES_CACHE, "downloads": datasets.config.DOWNLOADED_DATASETS_PATH,
    "torch": torch.hub.get_dir(), "matplotlib": matplotlib.get_cachedir(), "rc": matplotlib.get_configdir(),
}.items()}))
"""


def settings(unit: str) -> dict[str, list[str]]:
    """A unit's settings, each with all of its values, specifiers filled in."""
    for name, place in SPECIFIERS.items():
        unit = unit.replace(name, place)
    found: dict[str, list[str]] = {}
    for line in unit.replace("\\\n", " ").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(" ".join(value.split()))
    return found


def environment(unit: str) -> dict[str, str]:
    """The variables that a unit sets."""
    words = [word for line in settings(unit)["Environment"] for word in line.split()]
    return dict(word.split("=", 1) for word in words)


def image_environment() -> dict[str, str]:
    """The variables that the images set, but for PATH."""
    (words,) = re.findall(r"^ENV PATH=\S+ ((?:.|\n)*?[^\\])\n", DOCKERFILE, re.M)
    return dict(word.split("=", 1) for word in words.replace("\\\n", " ").split())


def test_there_is_a_unit_for_each_kind_of_machine():
    assert set(UNITS) == {"fsl-superlink", "fsl-edge", "fsl-device"}


def test_the_units_agree_in_all_but_what_they_start():
    first, *others = [text.partition("\nUser=")[2] for text in UNITS.values()]
    assert all(other == first for other in others)
    assert "ProtectSystem=strict" in first


def test_a_run_s_unit_writes_where_its_cloud_s_service_does():
    run, cloud = settings(RUNS), settings(UNITS["fsl-superlink"])
    for name in ("User", "UMask", "StateDirectory", "StateDirectoryMode", "WorkingDirectory", "ProtectSystem"):
        assert run[name] == cloud[name]
    assert environment(RUNS)["FLWR_HOME"] == environment(UNITS["fsl-superlink"])["FLWR_HOME"]


def test_images_and_units_write_to_the_same_places():
    assert image_environment() == environment(UNITS["fsl-device"])


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_what_a_service_may_write_is_its_own(unit):
    found = settings(unit)
    assert (found["User"], found["UMask"], found["PrivateTmp"]) == (["fsl"], ["0077"], ["true"])
    assert found["StateDirectory"] == found["CacheDirectory"] == ["fsl"]
    assert found["StateDirectoryMode"] == found["CacheDirectoryMode"] == ["0700"]
    places = [value for value in environment(unit).values() if value.startswith("/")]
    assert all(place.startswith(WRITABLE) for place in places)
    private = [re.search(r"(?:-keyfile|-key) (\S+)", command)[1] for command in found["ExecStart"]]
    assert all(place.startswith(SPECIFIERS["%d"]) for place in private)


@pytest.mark.slow
def test_with_a_home_that_nobody_can_write_all_libraries_write_where_the_units_say(tmp_path):
    home, places = tmp_path / "home", {}
    home.mkdir(mode=0o555)
    for place in WRITABLE:
        places[place] = tmp_path / place.strip("/").replace("/", "-")
        places[place].mkdir(mode=0o700)
    given = environment(UNITS["fsl-device"])
    for place, here in places.items():
        given = {name: value.replace(place, str(here), 1) for name, value in given.items()}
    given |= {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", ASK], env=given, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert {
        what: where for what, where in answers.items() if not where.startswith(tuple(map(str, places.values())))
    } == {}


def commands() -> dict[str, list[str]]:
    """The command of each unit and of each service of the compose file, program first."""
    found = {name: shlex.split(settings(unit)["ExecStart"][0]) for name, unit in UNITS.items()}
    for name, service in COMPOSE["services"].items():
        (entry,) = re.findall(rf"AS {service['build']['target']}\n(?:.|\n)*?ENTRYPOINT (\[.*\])", DOCKERFILE)
        assert json.loads(entry)[:2] == ["tini", "--"]
        found[name] = [*json.loads(entry)[2:], *service["command"]]
    return found


@pytest.mark.parametrize("command", commands().values(), ids=commands())
def test_flower_takes_the_options(command):
    program, *options = command
    if program.endswith("fsl-superlink"):
        taken = _parse_args_run_superlink().parse_args(options)
        assert taken.enable_supernode_auth
        assert taken.database.startswith("/var/lib/fsl/")
        assert taken.isolation == "subprocess"
    else:
        _, theirs = read(options)
        taken = _parse_args_run_supernode().parse_args(theirs)
        assert taken.host == "127.0.0.1"
        assert taken.node_config == "/etc/fsl/node.toml"
    assert not taken.insecure


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_the_units(tmp_path):
    for name, unit in UNITS.items():
        (tmp_path / f"{name}.service").write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit, flags=re.M))
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, timeout=60)
    told = [line for line in done.stderr.splitlines() if "fsl-" in line]
    assert (told, done.returncode) == ([], 0)


# Images


def stage(name: str) -> str:
    """The instructions of a stage of the Dockerfile, comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)
    return re.search(rf"^FROM \S+ AS {name}\n((?:.|\n)*?)(?=^FROM |\Z)", text, re.M)[1]


def copies(*stages: str) -> set[str]:
    """What these stages take from the source tree."""
    lines = [line for name in stages for line in re.findall(r"^COPY (?!--from)(.*)$", stage(name), re.M)]
    return {word for line in lines for word in line.split()[:-1]}


def test_an_image_has_all_that_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    places, packages = (project["tool"]["setuptools"][name] for name in ("package-dir", "packages"))
    tops = {places.get(package, package.split(".")[0]) for package in packages}
    files = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert copies("wheel") == tops | files
    ignored = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert kept == copies("dependencies", "wheel", "base")
    assert all((ROOT / name).exists() for name in kept)
    assert ignored.index("*") < min(ignored.index(f"!{name}") for name in kept)


def test_an_image_has_nothing_for_tests():
    (extras,) = re.findall(r"^RUN python requirements.py pyproject.toml (.*) > requirements.txt", DOCKERFILE, re.M)
    command = [
        sys.executable,
        str(DEPLOY / "docker" / "requirements.py"),
        str(ROOT / "pyproject.toml"),
        *extras.split(),
    ]
    needed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert needed == [*project["dependencies"], *project["optional-dependencies"]["federation"]]


def test_an_image_runs_as_nobody_that_matters():
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.M)
    assert f"--uid {user} " in DOCKERFILE
    assert int(user) >= 10000
    for name in ("cloud", "node"):
        assert "USER" not in stage(name)
        assert "HEALTHCHECK" in stage(name)


# Compose


@pytest.mark.parametrize("service", COMPOSE["services"].values(), ids=COMPOSE["services"])
def test_a_service_is_closed_rotates_its_logs_and_keeps_its_state(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    mounts = dict(reversed(one.rsplit(":ro", 1)[0].rsplit(":", 1)) for one in service["volumes"])
    assert mounts["/var/lib/fsl"] in COMPOSE["volumes"]
    assert mounts["/var/cache/fsl"] in COMPOSE["volumes"]
    assert [place.split(":")[0] for place in service["tmpfs"]] == ["/tmp"]
    named = re.findall(r"/run/secrets/([\w-]+)", " ".join(service["command"]))
    assert set(named) <= set(service["secrets"]) <= set(COMPOSE["secrets"])


def test_a_machine_starts_one_service():
    assert {name: service["profiles"] for name, service in COMPOSE["services"].items()} == {
        name: [name] for name in ("cloud", "edge", "device")
    }
    places = [line for service in COMPOSE["services"].values() for line in service["volumes"]]
    states = [place.split(":")[0] for place in places if place.endswith("/fsl")]
    assert len(states) == len(set(states)) == len(COMPOSE["volumes"])


class Endpoint(BaseHTTPRequestHandler):
    """Answers with the number that its path names."""

    def do_GET(self):
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *_):
        """Keep quiet."""


@pytest.fixture
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def healthy(*arguments: str) -> int:
    command = [sys.executable, str(DEPLOY / "docker" / "healthy.py"), *arguments]
    return subprocess.run(command, capture_output=True, timeout=30).returncode


def test_a_container_is_healthy_where_all_that_is_there_says_so(address):
    closed = "http://127.0.0.1:9/health"
    assert healthy(f"{address}/200") == 0
    assert healthy(f"{address}/200", "--if-there", closed) == 0
    assert healthy(f"{address}/200", "--if-there", f"{address}/503") == 1
    assert healthy(f"{address}/503") == 1
    assert healthy(closed) == 1


# Pages


def node_files() -> list[str]:
    """The node configurations that pages show, with the lines that they leave to choose."""
    pages = [(ROOT / "docs" / name).read_text() for name in ("deploying.md", "federation.md")]
    return [block for page in pages for block in re.findall(r"```toml[^\n]*\n(.*?)```", page, re.S) if "role" in block]


def test_pages_show_node_configurations_that_nodes_take(tmp_path):
    (tmp_path / "key").touch(mode=0o600)
    pair = CertificateFolder(tmp_path)
    issue(tmp_path, [CertificateOwner("edge-0", ("localhost",), server=True)])
    assert len(node_files()) >= 2
    for block in node_files():
        given = tomllib.loads(re.sub(r"^# (?=[\w-]+ = )", "", block, flags=re.M))
        given |= {"key": str(tmp_path / "key")} if "key" in given else {}
        files = {
            "cert": pair.certificate("edge-0"),
            "cert-key": pair.key("edge-0"),
            "client-ca": pair.ca,
            "ca": pair.ca,
        }
        given |= {name: str(path) for name, path in files.items() if name in given}
        assert NodeSettings.read(given).role in ("edge", "device")
