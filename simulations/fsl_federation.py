"""`fsl-federation`: starts, runs on, shows and ends a whole federation of real processes on this machine."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fsl.simulations.endings import interruption, sigterm_ends_like_ctrl_c
from fsl.simulations.error_lines import one_line
from fsl.simulations.federation_run import run_on_federation, run_on_superlink, say
from fsl.simulations.federation_status import show_endpoints, show_local
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fsl.deployment.local.flower_programs import bundle_hash, write_app
from fsl.deployment.local.local_federation import LocalFederation
from fsl.errors import ConfigError, FslError
from fsl.quoting import shell_word


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    0; 1: it could not go on; 2: bad input; 130: Ctrl-C; 143: SIGTERM.
    """
    options = _parser().parse_args(arguments)
    action: Callable[[argparse.Namespace], int] = options.action
    try:
        with sigterm_ends_like_ctrl_c():
            return action(options)
    except KeyboardInterrupt as error:
        word, code = interruption(error)
        return say(options.interrupted.replace("interrupted", word, 1), code)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say(one_line(error), 2)
    except (FslError, OSError) as error:
        return say(one_line(error), 1)


def _up(options: argparse.Namespace) -> int:
    federation = LocalFederation(
        options.folder,
        options.edges,
        options.devices,
        devices_per_node=options.devices_per_node,
        tops=options.tops,
        data=options.data,
        mutual_tls=options.mutual_tls,
        timeout=options.timeout,
    )
    federation.start()
    record = federation.record
    print(f"superlink: {record.superlink}")
    for node in record.nodes:
        metrics = f", metrics at http://{node.metrics}/metrics" if node.metrics else ""
        print(f"{node.name}: {node.address or 'online'}{metrics}")
    print(f"logs: {os.path.relpath(federation.folder / 'logs')}")
    folder = "" if options.folder == _FOLDER else f" --folder {shell_word(str(options.folder))}"
    print(f"run on it: fsl-federation run{folder} [overrides]; end it: fsl-federation down{folder}")
    return 0


def _run(options: argparse.Namespace) -> int:
    if options.connection is not None:
        return run_on_superlink(options.connection, options.app, options.overrides, options.retries)
    if options.app is not None:
        raise ConfigError(
            f"--app {options.app} without --connection: a federation on this machine has an app of its own"
        )
    return run_on_federation(_attached(options.folder), options.overrides, options.retries)


def _status(options: argparse.Namespace) -> int:
    if options.metrics:
        return 0 if show_endpoints(options.metrics) else 1
    return 0 if show_local(_attached(options.folder)) else 1


def _down(options: argparse.Namespace) -> int:
    federation = LocalFederation.attach(options.folder)
    ended = federation.stop() if federation else 0
    print(f"{ended} processes ended" if ended else f"nothing was running in {options.folder}")
    return 0


def _app(options: argparse.Namespace) -> int:
    write_app(options.app)
    where = shell_word(os.path.relpath(options.app))
    print(f"bundle without code: {bundle_hash(options.app)}")
    print(f"run it: flwr run {where} CONNECTION --run-config \"overrides='rounds=3 devices=4 edges=2'\"")
    return 0


def _attached(folder: Path) -> LocalFederation:
    federation = LocalFederation.attach(folder)
    if federation is None or not any(federation.alive().values()):
        raise ConfigError(f"no federation is running in {folder}; start one with fsl-federation up")
    return federation


_FOLDER = Path(".fsl-federation")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fsl-federation",
        description="A whole federation on this machine, as real processes over TLS: for trying and for tests.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, action: Callable[[argparse.Namespace], int], text: str, interrupted: str
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("--folder", type=Path, default=_FOLDER, help=f"of the federation (default: {_FOLDER})")
        one.set_defaults(action=action, interrupted=interrupted)
        return one

    up = add("up", _up, "start a SuperLink, edges and devices", "interrupted; nothing is left running")
    up.add_argument("--edges", type=int, default=2, help="how many edge servers (default: 2)")
    up.add_argument("--devices", type=int, default=4, help="how many devices (default: 4)")
    up.add_argument("--devices-per-node", type=int, default=1, help="how many share a SuperNode (default: 1)")
    up.add_argument("--tops", action="store_true", help="a server above each edge, for a split with two hops")
    up.add_argument("--data", type=Path, help="the devices' data: a file or folder")
    up.add_argument("--mutual-tls", action="store_true", help="devices show edges a certificate, too")
    up.add_argument("--timeout", type=float, default=120.0, help="seconds until all are online (default: 120)")
    run = add("run", _run, "run on it, with the overrides of fsl-simulate", "interrupted; the run was stopped")
    run.add_argument("--connection", help="on a SuperLink that flwr knows by this name, not on the federation")
    run.add_argument("--app", type=Path, help="with --connection: the app's folder (default: fsl's own app)")
    run.add_argument("--retries", type=int, default=0, help="go on that often in a row after a fault (default: 0)")
    run.add_argument("overrides", nargs="*", help="such as strategy=sglr rounds=3")
    status = add("status", _status, "what runs where; exit code 1 where a process or endpoint is dead", "interrupted")
    status.add_argument(
        "--metrics",
        nargs="+",
        metavar="URL",
        help="ask these endpoints of a federation of real machines instead, as http://edge0.example.org:9109/metrics",
    )
    app = add("app", _app, "write the app that flwr run sends to nodes, which brings no code", "interrupted")
    app.add_argument("app", type=Path, nargs="?", default=Path("fsl-app"), help="its folder (default: fsl-app)")
    add("down", _down, "end all of it", "interrupted; fsl-federation down goes on with it")
    return parser


def main() -> None:
    """Run the console script."""
    sys.path.append(os.getcwd())  # at the end, like fsl-simulate: the user's own strategy lies here
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
