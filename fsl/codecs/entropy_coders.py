"""The library of entropy coders, which comes with an extra of the package."""

from types import ModuleType

from fsl.errors import ConfigError


def entropy_coders(codec: str) -> ModuleType:
    """Returns the library constriction; ConfigError, for the codec of this name, where it is not installed."""
    try:
        import constriction
    except ImportError:
        raise ConfigError(f"codec '{codec}': constriction is not installed; pip install 'fsl-flower[codecs]'") from None
    library: ModuleType = constriction
    return library
