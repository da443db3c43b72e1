"""Reads the formats in which images are sent to a remote model."""

from fsl.data.rewritten_images import ImageFormat
from fsl.errors import ConfigError

RAW = "uint8"  # an image as it is
USUAL_IMAGES = ("jpeg:75", "webp:75")


def read_format(text: str) -> tuple[ImageFormat, int]:
    """Returns format and quality of a text as jpeg:75; ConfigError for another one."""
    form, _, quality = text.partition(":")
    if form not in ("jpeg", "webp") or not (quality.isascii() and quality.isdecimal()) or not 1 <= int(quality) <= 100:
        raise ConfigError(f"images={text}: give a format of jpeg, webp and a quality from 1 to 100, as jpeg:75")
    return "jpeg" if form == "jpeg" else "webp", int(quality)
