"""Says in one line that the extra `federation` is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from fsl.errors import ConfigError


@contextmanager
def needs_prometheus(setting: str) -> Iterator[None]:
    """Turn a failed import of prometheus_client into a ConfigError that begins with `setting`."""
    try:
        yield
    except ImportError:
        raise ConfigError(
            f"{setting}: prometheus-client is not installed; pip install 'fsl-flower[federation]', or leave it out"
        ) from None
