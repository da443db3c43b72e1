"""What a bench compares: codecs, and the input itself in their place, each as overrides of a run."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fsl.codecs.identity import Identity
from fsl.errors import ConfigError
from fsl.importing.building import unknown
from fsl.importing.config_groups import named, names
from fsl.importing.import_paths import public_path

BASE = "identity"
USUAL = (
    "float16", "bfloat16", "int8", "int4", "int2", "binary", "topk k=0.1", "randtopk k=0.1", "c3 ratio=2", "c3 ratio=4",
    "c3 ratio=8", "c3 ratio=16", "[c3,int8]", "error_bounded",
)  # fmt: skip
FORMATS = ("jpeg", "webp")
Kind = Literal["codec", "image"]


@dataclass(frozen=True)
class Case:
    """One row of the table: `title` names it, `overrides` are those of its runs, `folder` is where these lie.

    `kind` "codec": what crosses the cut passes a codec. "image": the input itself crosses, written as `format` of
    `quality`, and the edge computes the whole network.
    """

    title: str
    overrides: tuple[str, ...]
    kind: Kind = "codec"
    format: str = ""
    quality: int = 0

    @property
    def folder(self) -> str:
        """A folder's name that says what the case is."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.title).strip("-")


def codec_case(text: str) -> Case:
    """Read one codec: its name with options, or several in brackets, then overrides.

    `c3 ratio=8` sets an option of `codec.up`; `[c3 ratio=8,int8]` those of a stage; `codec.down.per=channel` is an
    override as fsl-simulate takes it. ConfigError for a name that is no choice of `codec`.
    """
    text = " ".join(text.split())
    stages, rest = _bracketed(text)
    if stages:
        chosen = _in_turn(text, [stage.split() for stage in stages])
        words = shlex.split(rest)
    else:
        name, *words = shlex.split(text) or [""]
        _known(text, name)
        chosen = [f"codec={name}"]
    for word in words:
        if "=" not in word:
            raise ConfigError(f"--codec '{text}': {word} is no option; give option=value, as in 'c3 ratio=8'")
        full = word.lstrip("+").startswith("codec.")
        if stages and not full:
            raise ConfigError(f"--codec '{text}': {word}: put it behind the codec that it belongs to, in the brackets")
        chosen.append(word if full else f"codec.up.{word}")
    return Case(text, tuple(chosen))


def _bracketed(text: str) -> tuple[list[str], str]:
    """Returns the codecs in the brackets that a text begins with, and what comes behind; none without brackets."""
    if not text.startswith("["):
        return [], text
    inside, closed, rest = text[1:].partition("]")
    stages = [stage.strip() for stage in inside.split(",")]
    if not closed or not all(stages):
        raise ConfigError(f"--codec '{text}': give codecs with commas between them, as in '[c3 ratio=8,int8]'")
    return stages, rest


def _in_turn(text: str, stages: Sequence[Sequence[str]]) -> list[str]:
    """Returns overrides for codecs one behind the other, each a name and its options."""
    for name, *options in stages:
        _known(text, name)
        if wrong := [option for option in options if "=" not in option]:
            raise ConfigError(f"--codec '{text}': {wrong[0]} is no option=value, as in '[c3 ratio=8,int8]'")
    if all(len(stage) == 1 for stage in stages):
        return [f"codec=[{','.join(name for (name,) in stages)}]"]
    halves: dict[str, list[str]] = {"up": [], "down": []}
    for name, *options in stages:
        choice = named("codec", name)
        if "stages" in choice:
            raise ConfigError(f"--codec '{text}': {name} is no codec of its own; name those that it consists of")
        for way, half in halves.items():
            target = choice[way] if isinstance(choice[way], str) else choice[way]["_target_"]
            if way == "up" or target != public_path(Identity):
                given = [option.replace("=", ": ", 1) for option in options] if way == "up" else []
                half.append("{" + ", ".join([f"_target_: {target}", *given]) + "}")
    return [f"codec={BASE}", *(f"codec.{way}=[{','.join(half)}]" for way, half in halves.items() if half)]


def _known(text: str, name: str) -> None:
    if not name or "=" in name:
        raise ConfigError(f"--codec '{text}': name a codec first, as in 'c3 ratio=8'; {', '.join(names('codec'))}")
    if name not in names("codec"):
        raise ConfigError(f"--codec '{text}': {unknown('codec', name, names('codec'))}")


def codec_cases(texts: Iterable[str]) -> list[Case]:
    """Read codecs, `identity` first; ConfigError where one is named twice."""
    cases = [codec_case(text) for text in texts]
    if all(case.overrides != (f"codec={BASE}",) for case in cases):
        cases.insert(0, codec_case(BASE))
    cases.sort(key=lambda case: case.overrides != (f"codec={BASE}",))
    return _distinct(cases)


def image_cases(texts: Sequence[str], source: str) -> list[Case]:
    """Read what images are written as, `jpeg:75` or `webp:50`; `source` is the import path of the data's loader."""
    cases = []
    for text in texts:
        format, _, quality = text.partition(":")
        if format not in FORMATS or not quality.isdecimal() or not 1 <= int(quality) <= 100:
            raise ConfigError(
                f"--images {text}: give a format of {', '.join(FORMATS)} and a quality from 1 to 100, as jpeg:75"
            )
        overrides: tuple[str, ...] = ("data._target_=fsl.data.recompressed", f"+data.source={source}")
        overrides += (f"+data.format={format}", f"+data.quality={int(quality)}", f"codec={BASE}")
        cases.append(Case(f"{format} {int(quality)}", overrides, "image", format, int(quality)))
    return _distinct(cases)


def refuse_own(overrides: Sequence[str]) -> None:
    """ConfigError for overrides that the bench gives itself, or that would make other cases of one."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key == "codec" or key.startswith("codec."):
            raise ConfigError(f"{override}: give codecs as --codec, once each")
        if key in ("seed", "resume", "hydra.run.dir"):
            hint = {"seed": "--seeds", "resume": "--out with the folder of before"}.get(key, "--out")
            raise ConfigError(f"{override}: give {hint} instead")


def _distinct(cases: list[Case]) -> list[Case]:
    seen: dict[str, Case] = {}
    for case in cases:
        if case.folder in seen:
            raise ConfigError(f"'{case.title}' is asked for twice (the other is '{seen[case.folder].title}')")
        seen[case.folder] = case
    return cases
