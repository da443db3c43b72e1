"""`fsl-superlink`: Flower's SuperLink with closed control: nodes join from outside, only this machine starts runs.

Flower serves three APIs on one port. `/v1/fleet` is the nodes', and each call is signed. `/v1/control` starts runs,
which run code here and on nodes, and `/v1/runtime` gives work and its tokens to whoever asks: here both answer only
this machine.
"""

import argparse
import ipaddress
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from fsl.errors import ConfigError

_OPEN = "--open-control"
# With these Flower opens ports, or believes addresses, that the check below does not see.
_REFUSED = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API", "FORWARDED_ALLOW_IPS")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClosedControl:
    """ASGI middleware: all but the nodes' own API answers only this machine; others read why in a 403."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or is_outsiders(scope["path"]) or is_local(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            told = b"fsl-superlink: only its own machine may start runs; come through ssh -L\n"
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(told)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": told})


def is_outsiders(path: str) -> bool:
    """Returns whether a path belongs to the nodes' API."""
    return path == "/health" or path.startswith("/v1/fleet/")


def is_local(scope: Mapping[str, Any]) -> bool:
    """Returns whether a request comes from this machine: the loopback, or the very address that it came to."""
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback or bool(server and client[0] == server[0])


def command(arguments: Sequence[str]) -> int:
    """Run a SuperLink with these arguments until it ends; 2: bad input. Elsewhere it exits as `flower-superlink`."""
    parser = argparse.ArgumentParser(
        prog="fsl-superlink",
        description="Flower's SuperLink, where only this machine may start runs, and nodes join from anywhere.",
        epilog="All other options are those of flower-superlink --help.",
        allow_abbrev=False,
    )
    parser.add_argument(_OPEN, action="store_true", help="let everybody who reaches the port start runs")
    ours, theirs = parser.parse_known_args(arguments)
    try:
        if set_here := [name for name in _REFUSED if os.environ.get(name)]:
            raise ConfigError(f"{set_here[0]} is set, with which Flower lets others past the check; unset it")
    except ConfigError as error:
        print(f"fsl-superlink: {error}", file=sys.stderr)
        return 2
    # Flower starts programs by their names: those of this installation, also where nobody's PATH leads to it.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    sys.argv = ["flower-superlink", *theirs]
    if ours.open_control:
        print(
            f"fsl-superlink: {_OPEN}: whoever reaches this port runs code on this machine, and on all nodes that "
            "allow it",
            file=sys.stderr,
        )
    else:
        _close()
    from flwr.superlink.cli.flower_superlink import flower_superlink

    flower_superlink()
    return 0


def _close() -> None:
    from flwr.superlink import main as superlink

    create: Callable[..., Any] = superlink.create_app

    def closed(*given: Any, **named: Any) -> Any:
        app = create(*given, **named)
        app.add_middleware(ClosedControl)  # wraps all others
        return app

    superlink.create_app = closed


def main() -> None:
    """Run the console script."""
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
