"""Says by its exit code whether a container is healthy: each address must answer with HTTP 200.

Those behind --if-there may be closed: a node's metrics open with its first run. Only the loopback is asked, so a
certificate need not name it.
"""

import argparse
import ssl
import sys
import urllib.error
import urllib.request

_TIMEOUT = 3.0  # seconds


def trouble(address: str, may_be_closed: bool) -> str:
    """Returns what is wrong at an address; empty where nothing is."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT, context=unchecked) as answer:
            return "" if answer.status == 200 else f"{address}: HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        return f"{address}: HTTP {error.code}"
    except urllib.error.URLError as error:
        closed = isinstance(error.reason, ConnectionRefusedError)
        return "" if closed and may_be_closed else f"{address}: {error.reason}"
    except OSError as error:
        return f"{address}: {error}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Exit code 0 where all addresses answer with HTTP 200, else 1.")
    parser.add_argument("address", nargs="+")
    parser.add_argument("--if-there", action="append", default=[], metavar="ADDRESS", help="may be closed")
    options = parser.parse_args()
    found = [trouble(one, False) for one in options.address] + [trouble(one, True) for one in options.if_there]
    if wrong := "; ".join(filter(None, found)):
        sys.exit(wrong)


if __name__ == "__main__":
    main()
