"""Takes the place of `flwr-clientapp` under Flower's executor, and lets it run only bundles that the owner allows.

Flower's SuperNode starts programs by their names. `fsl-supernode` leaves one folder on its PATH, with this program
under each name; so nothing runs where the folder is missing. The real program then gets the owner's PATH.
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsl.deployment.node import bundles
from fsl.errors import TrustError

APP = "flwr-clientapp"
SUPEREXEC = "flower-superexec"
REFUSED = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")
SUPERLINK = "FSL_SUPERNODE_SUPERLINK"  # environment variable: host:port at which the node reaches its SuperLink
PATH, ALLOWED = "FSL_SUPERNODE_PATH", "FSL_SUPERNODE_BUNDLES"  # environment variables: the owner's PATH, and the hashes
# The kernel reads a shell script, whatever the path of Python holds; Python reads a Python script.
_SCRIPT = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
from fsl.deployment.node.guard import main

main()
"""


def write_programs(folder: Path) -> Path:
    """Write a program for each name that a SuperNode may start, into a folder that only its owner can change."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for name in (APP, SUPEREXEC, *REFUSED):
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_text(_SCRIPT.format(python=sys.executable))
        temporary.chmod(0o700)
        temporary.replace(folder / name)
    return folder


def watch_over(runtime: Any, allowed: frozenset[str]) -> None:
    """Let Flower's module `run_clientapp` check each bundle before it writes a byte of it to the disk."""
    pull: Callable[[Any], tuple[Any, Any, Any, Any]] = runtime.pull_task_input
    install: Callable[..., Path] = runtime.install_from_fab
    pulled_tasks: list[tuple[Any, Any]] = []  # (run, bundle) of each task

    def pulled(client: Any) -> tuple[Any, Any, Any, Any]:
        message, context, run, fab = pull(client)
        pulled_tasks.append((run, fab))
        return message, context, run, fab

    def installed(content: bytes, skip_prompt: bool = False) -> Path:
        run, fab = pulled_tasks[-1]
        app, version = bundles.check(content, allowed)
        # Flower finds the app by the SuperLink's word, which may name another than this one.
        if (run.fab_id, run.fab_version) != (app, version) or fab.hash_str != bundles.hash_of(content):
            raise TrustError(
                f"this node refuses run {run.run_id}: it names the app {run.fab_id} {run.fab_version} "
                f"({fab.hash_str[:16]}), and brings {app} {version} ({bundles.hash_of(content)[:16]})"
            )
        folder = install(content, skip_prompt=skip_prompt)
        bundles.check_installed(folder, content)
        return folder

    runtime.pull_task_input = pulled
    runtime.install_from_fab = installed


def main() -> None:
    """Run as the program whose name this one was called by."""
    name = Path(sys.argv[0]).name
    if (path := os.environ.pop(PATH, None)) is None:
        sys.exit(f"{name}: this program is fsl-supernode's, which starts it")
    if name == SUPEREXEC:
        os.environ[PATH] = path
        from flwr.supercore.cli.flower_superexec import flower_superexec

        return flower_superexec()
    if name != APP:
        sys.exit(f"fsl-supernode: a run asked for {name}, and this node runs only {APP}")
    os.environ["PATH"] = path
    runtime = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    watch_over(runtime, bundles.hashes([one for one in os.environ.pop(ALLOWED, "").split(",") if one]))
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    return flwr_clientapp()
