"""Which fsl this is and where it lies on this machine; any room may ask, so this file imports none."""

from pathlib import Path

__version__ = "0.1.0"  # pyproject.toml has the same, and a test compares them

HOME = Path(__file__).parent  # the folder of the package
# Where strategies, configs and simulations lie: beside the package in a source tree or a Flower app bundle, in a wheel
# inside of it.
TOP = HOME if (HOME / "strategies").is_dir() else HOME.parent
