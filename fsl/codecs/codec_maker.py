"""Builds the codecs of sessions from a plan's description."""

from collections.abc import Callable, Iterable

from fsl.codecs.codec import Codec
from fsl.errors import ConfigError, WireError
from fsl.importing.import_paths import ALLOWED
from fsl.importing.spec import Spec

CANNOT_MOVE = (
    "it keeps state in a session, which does not follow a device that moves to another edge in the middle of a round; "
    "use mobility=none, or a codec without state"
)


def codec_maker(spec: Spec, allowed: Iterable[str] = ALLOWED) -> Callable[[], Codec]:
    """Returns a function that builds a described codec for a session, only from classes of the allowed packages.

    WireError for a class that is not allowed, or for arguments that it does not take; ConfigError for what is no Codec.
    """
    kind = spec.locate(allowed)
    if not issubclass(kind, Codec):
        raise ConfigError(f"{spec.target} is not a Codec")

    def make() -> Codec:
        try:
            codec: Codec = kind(**spec.kwargs)
        except TypeError as error:
            raise WireError(
                f"codec {spec.text} cannot be built: {error}; both ends need the same version of it"
            ) from None
        return codec

    return make


def codec_of(spec: Spec) -> Codec:
    """A codec as described by whoever is trusted: the run's own configuration."""
    codec: Codec = spec.build()
    return codec
