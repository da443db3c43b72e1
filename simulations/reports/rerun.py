"""Reconstructs the command that repeats a run, from its folder."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_OWN_FOLDER = (
    "resume",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
)  # keys of a run's place, not of its computation
_SWEEP = ("-m", "--multirun")
# The command started by its file or with `python -m`; earlier versions had it in run.py.
_BY_PYTHON = (("simulations", "fsl_simulate.py"), ("simulations", "run.py"))


def command_of(command: str | None, overrides: Any, hydra: Any) -> str:
    """Returns the command, quoted for a shell; a comment (`# ...`) for runs from Python, which have none.

    `command`: the process's, from the summary; `overrides` and `hydra`: Hydra's files in the folder.
    """
    if isinstance(overrides, list):  # of this job alone, where the command may be of a whole sweep
        return _simulate([*_sources(hydra), *_own(list(map(str, overrides)))])
    if command is None:
        return "# not known: the run has no summary"
    try:
        program, *arguments = shlex.split(command)
    except ValueError:
        program, arguments = command, []
    path = Path(program)
    if path.name == "fsl-simulate" or path.parts[-2:] in _BY_PYTHON:
        if any(argument in _SWEEP for argument in arguments):
            return f"# a job of {_simulate(arguments)}"
        return _simulate(_own(arguments))
    if path.name.startswith("ipykernel"):
        return "# from a notebook"
    if path.suffix == ".py":
        return f"# from Python: {shlex.join([path.name, *arguments])}".replace("\n", " ")
    # A report must not show its arguments, in which Flower passes tokens to its processes.
    return f"# from {'Python' if path.name in ('', '-c', '-m') else path.name}"


def _simulate(arguments: Sequence[str]) -> str:
    return shlex.join(["fsl-simulate", *arguments])


def _own(overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if override.partition("=")[0].lstrip("+") not in _OWN_FOLDER]


def _sources(hydra: Any) -> list[str]:
    """Returns the options that decide a configuration's sources: --config-dir, --config-name, hydra.searchpath."""
    section = hydra.get("hydra") if isinstance(hydra, Mapping) else None
    if not isinstance(section, Mapping):
        return []
    found = []
    runtime, job, given = (_mapping(section.get(name)) for name in ("runtime", "job", "overrides"))
    for source in runtime.get("config_sources") or []:
        if _mapping(source).get("provider") == "command-line":
            found += ["--config-dir", str(source["path"])]
    if job.get("config_name") not in (None, "config"):
        found += ["--config-name", str(job["config_name"])]
    return [*found, *(str(o) for o in given.get("hydra") or [] if str(o).startswith("hydra.searchpath="))]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
