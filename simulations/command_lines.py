"""Parses command lines, and reports each mistake in one line."""

import argparse
from typing import NoReturn

from fsl.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises ConfigError for invalid arguments, where argparse prints its usage and ends the process."""

    def error(self, message: str) -> NoReturn:
        """Raise the ConfigError; argparse calls it for every mistake."""
        raise ConfigError(f"{message}; see {self.prog} --help")
