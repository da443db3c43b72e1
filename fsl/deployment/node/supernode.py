"""`fsl-supernode`: Flower's SuperNode, which runs only code that its owner allows, and reports a wrong clock."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from logging import ERROR
from pathlib import Path
from types import FrameType
from typing import Any

from fsl.deployment.node.bundles import hashes
from fsl.deployment.node.clock import why_refused
from fsl.deployment.node.guard import ALLOWED, PATH, SUPERLINK, write_programs
from fsl.errors import ConfigError

_REFUSED = {
    "--isolation": "another program would start apps, where fsl-supernode cannot see what they bring; leave it out",
    "--trusted-entities": "Flower signs only bundles of its hub; fsl-supernode --allow-bundle HASH takes its place",
}


def command(arguments: Sequence[str]) -> int:
    """Run a SuperNode with these arguments until it ends; 2: bad input. Elsewhere it exits as `flower-supernode`."""
    try:
        allowed, theirs = read(arguments)
    except ConfigError as error:
        print(f"fsl-supernode: {error}", file=sys.stderr)
        return 2
    from flwr.supercore.utils import get_flwr_home

    os.environ[ALLOWED] = ",".join(sorted(allowed))
    os.environ[PATH] = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = str(write_programs(Path(get_flwr_home()).absolute() / "fsl-supernode"))
    os.environ[SUPERLINK] = _superlink(theirs)
    sys.argv = ["flower-supernode", *theirs]
    return _run()


def read(arguments: Sequence[str]) -> tuple[frozenset[str], list[str]]:
    """Split the arguments into allowed hashes and Flower's own; ConfigError for one that evades the guard."""
    parser = argparse.ArgumentParser(
        prog="fsl-supernode",
        description="Flower's SuperNode, which runs only fsl as it is installed here, and code that its owner allows.",
        epilog="All other options are those of flower-supernode --help.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--allow-bundle",
        action="append",
        default=[],
        metavar="HASH",
        help="SHA-256 of an app bundle (.fab) with code of its own that may run here; may be given several times",
    )
    ours, theirs = parser.parse_known_args(arguments)
    for given in theirs:
        name = given.partition("=")[0]
        for option, why in _REFUSED.items():
            if re.match(r"--\w", name) and option.startswith(name):  # Flower accepts abbreviations
                raise ConfigError(f"{given}: {why}")
    return hashes(ours.allow_bundle), theirs


def _superlink(arguments: Sequence[str]) -> str:
    """Returns the SuperLink's host:port as these arguments name it; Flower accepts abbreviations."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--superlink", default="")
    return str(parser.parse_known_args(arguments)[0].superlink)


def _run() -> int:
    from flwr.supercore import log
    from flwr.supercore.exit import ExitCode, add_exit_handler, flwr_exit
    from flwr.supernode.cli.flower_supernode import flower_supernode
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    reasons: list[str] = []
    ask = NodeAuthHttpInterceptor.intercept

    def asked(self: NodeAuthHttpInterceptor, context: Any, call_next: Any) -> Any:
        response = ask(self, context, call_next)
        if response.status_code == 401:
            reasons[:] = [why_refused(response.headers.get("date"))]
        return response

    def say() -> None:  # after all other handlers, at the end of the output
        if reasons:
            log(ERROR, "fsl-supernode: %s", reasons[0])
            sys.stderr.flush()
            os._exit(1)  # Flower would report an orderly end

    def interrupted(number: int, frame: FrameType | None) -> None:
        if not reasons:  # else Flower interrupts itself for each refused call: let it end in order
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)  # until Flower sets its own handler, and again after that ran
    NodeAuthHttpInterceptor.intercept = asked  # type: ignore[method-assign]
    add_exit_handler(say)
    flower_supernode()
    # Flower returns where its connection broke for good; its server's thread would keep an idle process alive.
    flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "The connection to the SuperLink has ended.")


def main() -> None:
    """Run the console script."""
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
