"""Which versions of fsl understand each other: said when a node becomes a member, and when a session opens."""

import re

from fsl.errors import WireError
from fsl.installed import __version__

PROTOCOL = 8  # of setups, plans, parts and frames; it goes up with every change that an older end would misread
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})[0-9A-Za-z.+-]{0,30}", re.ASCII)


class VersionError(WireError):
    """The two ends run versions of fsl that do not understand each other."""


def check_versions(protocol: object, version: object, there: str, here: str) -> None:
    """VersionError unless the other end has this protocol and this minor version (0.3.1 and 0.3.7 go together).

    `there` and `here` name the two ends, as "the cloud" and "this node". What the other end said is checked before it
    is repeated; who says nothing is older than this check.
    """
    known = isinstance(version, str) and _VERSION.fullmatch(version) is not None
    theirs = version if known and isinstance(version, str) else None
    if type(protocol) is int and protocol == PROTOCOL and theirs is not None and _minor(theirs) == _minor(__version__):
        return
    number = protocol if type(protocol) is int and 0 < protocol < 1 << 31 else 1
    said = f"fsl {theirs} (protocol {number})" if theirs is not None else "an fsl that says no version (protocol 1)"
    older = there if theirs is None or (number, _minor(theirs)) < (PROTOCOL, _minor(__version__)) else here
    wanted = __version__ if older == there or theirs is None else theirs
    raise VersionError(
        f"{there} runs {said}, {here} fsl {__version__} (protocol {PROTOCOL}); upgrade {older}: "
        f"pip install 'fsl-flower=={'.'.join(map(str, _minor(wanted)))}.*'"
    )


def _minor(version: str) -> tuple[int, int]:
    match = _VERSION.fullmatch(version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
