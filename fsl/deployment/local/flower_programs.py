"""Builds the command lines of Flower's SuperLink and SuperNodes, and calls `flwr`."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fsl.deployment.certs import CertificateFolder
from fsl.deployment.local.federation_record import SUPERLINK, Config, LocalNode
from fsl.deployment.node.bundles import COMPONENTS, hash_of
from fsl.errors import ConfigError, RunError
from fsl.files import write_text
from fsl.installed import __version__
from fsl.private_files import private_folder

CONNECTION = "federation"
_TIMEOUT = 120.0  # seconds for one command of flwr
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",  # seconds; at 0.1 six nodes that wait take half a processor
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}


def program(name: str) -> str:
    """Find one of Flower's programs beside this Python or on PATH; ConfigError where it is in neither."""
    found = shutil.which(name, path=_path())
    if found is None:
        raise ConfigError(f"there is no {name} beside {sys.executable} or on PATH; pip install flwr there")
    return found


def environment(home: Path | None, more: Mapping[str, str]) -> dict[str, str]:
    """Build the environment of Flower's programs, in which they find each other on PATH; None: the user's own home."""
    if home is None:
        return {**_QUIET, "PATH": _path(), **more}
    private_folder(home)
    return {**_QUIET, "FLWR_HOME": str(home), "PATH": _path(), **more}


def superlink_command(certificates: CertificateFolder, address: str) -> list[str]:
    """Returns the command of a SuperLink with TLS that only registered SuperNodes may join; it stores nothing."""
    host, port = address.split(":")
    return [
        program("flower-superlink"),
        *("--ssl-ca-certfile", str(certificates.ca)),
        *("--ssl-certfile", str(certificates.certificate(SUPERLINK))),
        *("--ssl-keyfile", str(certificates.key(SUPERLINK))),
        *("--host", host, "--port", port),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]


def supernode_command(
    certificates: CertificateFolder, superlink: str, node: LocalNode, config: Path, allowed: Sequence[str] = ()
) -> list[str]:
    """Returns the command of a SuperNode with the node configuration `config`; it runs only `allowed` code bundles."""
    return [
        *(sys.executable, "-P", "-m", "fsl.deployment.node.supernode"),
        *(word for bundle in allowed for word in ("--allow-bundle", bundle)),
        *("--superlink", superlink),
        *("--root-certificates", str(certificates.ca)),
        *("--auth-supernode-private-key", str(certificates.node_key(node.name))),
        *("--host", "127.0.0.1", "--port", str(node.port)),
        *("--node-config", str(config)),
    ]


def write_node_config(path: Path, config: Config) -> None:
    """Write a node's configuration, as TOML: on a command line, Flower cannot quote every path."""
    write_text(private_folder(path.parent) / path.name, tomli_w.dumps(config), private=True)


def write_connection(home: Path, address: str, certificates: CertificateFolder) -> None:
    """Write the SuperLink's address into this FLWR_HOME, where `flwr` finds it."""
    private_folder(home)
    connection = {"address": address, "root-certificates": str(certificates.ca)}
    text = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}})
    (home / "config.toml").write_text(text)


def write_app(folder: Path) -> None:
    """Write the app that `flwr run` sends: only a table that names fsl's app, so that a node runs its own fsl."""
    folder.mkdir(parents=True, exist_ok=True)
    app = {
        "publisher": "fsl",
        "components": COMPONENTS,
        "config": {"overrides": ""},
    }
    project = {
        "name": "fsl-flower",
        "version": __version__,
        "description": "Federated split learning",
        "license": "Apache-2.0",
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}}))


def bundle_hash(app: Path) -> str:
    """Returns the hash of the bundle that `flwr run` makes of a folder."""
    from flwr.cli.build import build_fab_from_disk

    return hash_of(build_fab_from_disk(app))


def answers(superlink: str, certificates: CertificateFolder) -> bool:
    """Returns whether a SuperLink of this CA answers at this address."""
    context = ssl.create_default_context(cafile=str(certificates.ca))
    try:
        with urllib.request.urlopen(f"https://{superlink}/health", timeout=1, context=context):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def flwr(home: Path | None, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a `flwr` command in a session of its own, where no Ctrl-C reaches it; RunError in one line if it fails.

    `home`: the FLWR_HOME whose connections it knows; None: the user's own.
    """
    process = subprocess.Popen(
        [program("flwr"), *arguments, "--format", "json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment(home, {})},
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=_TIMEOUT)
    except BaseException as error:
        process.kill()
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RunError(f"flwr {' '.join(arguments[:2])} did not end within {_TIMEOUT:g} s") from None
        raise
    try:
        answer = json.loads(out[out.index("{") :])
    except ValueError:
        answer = {"success": False, "error-message": out + err}
    if not answer.get("success"):
        reason = " ".join(str(answer.get("error-message", out + err)).split())
        raise RunError(f"flwr {' '.join(arguments[:2])} failed: {reason or f'exit code {process.returncode}'}")
    return dict(answer)


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
