"""From a plan's description of a codec to the objects of its sessions."""

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
    """What makes a new codec as described, one for each session; only of classes inside the allowed packages.

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
