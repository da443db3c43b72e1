"""Command lines whose mistakes are one line each."""

import argparse
from typing import NoReturn

from fsl.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises ConfigError for what cannot be parsed, where argparse prints its usage and ends the process."""

    def error(self, message: str) -> NoReturn:
        """What argparse calls for every mistake."""
        raise ConfigError(f"{message}; see {self.prog} --help")
