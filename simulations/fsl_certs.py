"""`fsl-certs`: makes a development CA, certificates for a federation's servers and devices, and SuperNode keys."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fsl.simulations.console_scripts import say_why

from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.deployment.cloud.enrolled import TABLE, add_nodes
from fsl.errors import ConfigError


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 (a file could not be written) or 2 (bad input)."""
    options = _parser().parse_args(arguments)
    try:
        if min(options.edges, options.devices, options.tops) < 0:
            raise ConfigError("--edges, --devices and --tops are counts: 0 or more")
        hosts = _hosts(options.host, options.edges, options.tops)
        wanted = identities(options.edges, options.devices, hosts, options.tops)
        written = issue(options.folder, wanted, options.days, options.add, options.force)
        if options.force:
            (options.folder / TABLE).unlink(missing_ok=True)
        files = CertificateFolder(options.folder)
        nodes = {one.name: files.node_public_key(one.name) for one in wanted if one.node}
        add_nodes(options.folder / TABLE, nodes)
    except ConfigError as error:
        return say_why("fsl-certs", str(error), 2)
    except OSError as error:
        return say_why("fsl-certs", str(error), 1)
    for path in written:
        print(path)
    print(options.folder / TABLE)
    print(f"{len(written)} files written" + ("; keep ca-key.pem to yourself" if written else ""))
    return 0


def _hosts(given: Sequence[str], edges: int, tops: int) -> dict[str, list[str]]:
    """Read host names: NAME is a host of every server, edge-0=NAME of that one."""
    servers = ["superlink", *(f"edge-{i}" for i in range(edges)), *(f"top-{i}" for i in range(tops))]
    hosts: dict[str, list[str]] = {}
    for text in given:
        whose, assigned, name = text.rpartition("=")
        for server in [whose] if assigned else servers:
            hosts.setdefault(server, []).append(name)
    return hosts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fsl-certs",
        description="Make a development CA, TLS certificates for a SuperLink, edges and devices, and the key pairs by "
        "which the SuperLink knows its SuperNodes.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where they are written")
    parser.add_argument("--edges", type=int, default=1, help="how many edge servers (default: 1)")
    parser.add_argument("--devices", type=int, default=2, help="how many devices (default: 2)")
    parser.add_argument("--tops", type=int, default=0, help="how many servers above edges, from edge 0 on (default: 0)")
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name or address of the servers, beside localhost; edge-0=NAME for one of them; repeatable",
    )
    parser.add_argument("--days", type=int, default=365, help="how long they are valid (default: 365)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--add", action="store_true", help="keep the CA that is there, make what is missing")
    instead.add_argument("--force", action="store_true", help="make a new CA; its old certificates are worthless then")
    return parser


def main() -> None:
    """Run the console script."""
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
