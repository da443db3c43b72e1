"""Reaches the library transformers, and what lies in folders or on the Hub for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsl.errors import ConfigError


def transformers(option: str) -> Any:
    """Returns the library; ConfigError, in one line, where it is not installed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked processes do not go together
    try:
        import transformers as library
    except ImportError:
        raise ConfigError(f"{option}: transformers is not installed; pip install 'fsl-flower[transformers]'") from None
    return library


def place_of(pretrained: str | Path, option: str) -> str:
    """Returns a folder's path, or a name on the Hub; ConfigError for a path where no folder is."""
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_absolute() or len(folder.parts) > 2 or str(pretrained).startswith((".", "~")):
        raise ConfigError(f"{option}={pretrained}: there is no such folder; give one, or a name on the Hub")
    return str(pretrained)


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Silence the library's bars and its table of weights that the head lacks."""
    level = library.logging.get_verbosity()
    library.logging.set_verbosity_error()
    bars = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        library.logging.set_verbosity(level)
        if bars:
            library.utils.logging.enable_progress_bar()
