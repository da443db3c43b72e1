"""`fsl-export`: writes a finished run's segments as programs that run without fsl."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsl.simulations.attacks.attacked_runs import config_of
from fsl.simulations.console_scripts import run_script, say_why
from fsl.simulations.error_lines import one_line
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsl.codecs.codec_choice import build_codecs
from fsl.codecs.codec_maker import codec_of
from fsl.data import TaskData
from fsl.errors import ConfigError, FslError
from fsl.export.exported_segments import FORMATS, export_trained
from fsl.export.pretrained import save_trained
from fsl.export.trained_model import Inputs, TrainedModel
from fsl.files import load_tensors
from fsl.importing.building import unknown
from fsl.objective import Objective
from fsl.run.config import (
    build_data,
    build_model,
    build_objective,
    build_places,
    build_privacy,
    given_arguments,
    is_changed,
    outputs_of,
    read_config,
)
from fsl.run.observers import human_bytes
from fsl.run.run_folder import RunFolder
from fsl.run.summary import remarks_on
from fsl.split.coded_model import CodedModel
from fsl.split.coding import coded

_USAGE = """usage: fsl-export RUN_FOLDER [option=value ...]

Write the segments of a finished run of fsl-simulate as programs that run without fsl, each checked against the module
that it was made from. They go to RUN_FOLDER/export, with manifest.json and the whole model's weights.

  out=FOLDER          another folder
  formats=pt2,onnx    programs of torch.export, ONNX models; default: both, where pip install 'fsl-flower[export]' was
  cut=NAME[,NAME]     cut after other modules than the run did, where all devices share one front
  device=3            whose front, where each device has its own
  pretrained=FOLDER   write the whole model there, too, for fsl.load_pretrained and from_pretrained
  overwrite=true      replace what an earlier call wrote; other files are never replaced"""

_OPTIONS = ("out", "formats", "cut", "device", "pretrained", "overwrite")


@dataclass(frozen=True)
class _Options:
    folder: Path
    out: Path
    formats: list[str] | None
    cut: list[str] | None
    device: int | None
    pretrained: Path | None
    overwrite: bool


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 (it could not be written), 2 (bad input) or 130 (Ctrl-C)."""
    if "-h" in arguments or "--help" in arguments:
        print(_USAGE)
        return 0
    try:
        options = _read(arguments)
        trained = read_trained(options.folder)
        made = export_trained(
            trained,
            options.out,
            cut=options.cut,
            device=options.device,
            formats=options.formats,
            overwrite=options.overwrite,
        )
        print(in_words(made))
        print(f"programs: {os.path.relpath(options.out)}")
        if options.pretrained is not None:
            save_trained(trained, options.pretrained, device=options.device, overwrite=options.overwrite)
            print(f"pretrained: {os.path.relpath(options.pretrained)}")
    except KeyboardInterrupt:
        return say_why("fsl-export", "interrupted; nothing was written", 130)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say_why("fsl-export", one_line(error).replace("overwrite=True", "overwrite=true"), 2)
    except (FslError, OSError) as error:
        return say_why("fsl-export", one_line(error), 1)
    return 0


def read_trained(folder: Path) -> TrainedModel:
    """Returns the model of a finished run of fsl-simulate; ConfigError where the folder has none."""
    return read_trained_run(folder).trained


@dataclass(frozen=True)
class TrainedRun:
    """A finished run's model with the data and the objective that it was trained with."""

    trained: TrainedModel
    data: TaskData
    objective: Objective


def read_trained_run(folder: Path) -> TrainedRun:
    """Returns a finished run of fsl-simulate; ConfigError as `read_trained`."""
    run = RunFolder(folder)
    config = OmegaConf.load(run.federation_config) if run.federation_config.exists() else config_of(run)
    top = read_config(DictConfig(config))
    data, _ = build_data(top.data, top.training.seed)
    objective = build_objective(top.objective)
    module, cut = build_model(top.model, data, top.training.seed, objective)
    up = codec_of(build_codecs(top.codec)["up"])
    module = coded(module, cut, build_places(top.model), up, data.blank(3), top.training.seed)
    if not (summary := run.read_summary()):
        raise ConfigError(f"{folder} has not finished: it has no {run.summary_path.name}; go on with it first")
    settings = summary["settings"]
    private = not run.model_path.exists()
    if private and not run.back_path.exists():
        raise ConfigError(f"{folder} has neither {run.model_path.name} nor {run.back_path.name}; restore one")
    privacy = build_privacy(top.privacy)
    trained = TrainedModel(
        module=module,
        cuts=() if top.cuts is not None else tuple(str(settings["model.cut"]).split(", ")),
        places=None if (places := build_places(top.model)) is None else tuple(places),
        states={"back": load_tensors(run.back_path)} if private else {"whole": load_tensors(run.model_path)},
        devices=run.front_owners() if private else None,
        front_of=run.front,
        inputs=lambda: Inputs.of(data.train if data.test is None else data.test),
        facts={
            "classes": summary.get("classes"),
            "seed": summary.get("seed"),
            "strategy": settings.get("strategy"),
            "rounds": (summary.get("final") or {}).get("round"),
        },
        remarks=remarks_on(privacy is not None and privacy.cut is not None, build_codecs(top.codec)["up"].target),
        target=str(top.model["_target_"]),
        # A model with adapters, with another change, or with a trained codec is not made by its arguments alone.
        arguments=None
        if is_changed(top.model) or isinstance(module, CodedModel)
        else given_arguments(top.model, input_shape=data.input_shape, classes=outputs_of(data, objective)),
    )
    return TrainedRun(trained, data, objective)


def in_words(manifest: Mapping[str, Any]) -> str:
    """Describe an export in a line for each segment, each file, and what is to be known beside."""
    lines = []
    for segment in manifest["segments"]:
        given, passed = (_tensors(segment[way]) for way in ("inputs", "outputs"))
        each = human_bytes(sum(one["bytes"] for one in segment["outputs"]))
        lines.append(f"{segment['name']} on the {segment['place']}: {given} -> {passed}, {each} a sample")
        for program in segment["programs"].values():
            off = f"off by {program['largest_error']:.2g} at most"
            lines.append(f"  {program['file']}: {human_bytes(program['bytes'])}, {off}")
    names = " -> ".join(segment["name"] for segment in manifest["segments"])
    for form, chained in manifest["chained"].items():
        lines.append(f"{names} ({form}) against the whole model: off by {chained['largest_error']:.2g} at most")
    return "\n".join([*lines, *(f"note: {remark}" for remark in manifest["remarks"])])


def _tensors(described: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['name']} ({', '.join(map(str, one['shape']))}) {one['dtype']}" for one in described)


def _read(arguments: Sequence[str]) -> _Options:
    folders = [argument for argument in arguments if "=" not in argument]
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    for name in given:
        if name not in _OPTIONS:
            raise ConfigError(unknown("option", name, list(_OPTIONS)))
    if len(folders) != 1:
        raise ConfigError(f"give the folder of one run, as in fsl-export outputs/...; given are {len(folders)}")
    device, overwrite = given.get("device"), given.get("overwrite", "false").lower()
    if device is not None and not device.isdecimal():
        raise ConfigError(f"device={device}: it must be a device's number, as in device=3")
    if overwrite not in ("true", "false"):
        raise ConfigError(f"overwrite={overwrite}: it must be true or false")
    folder = Path(folders[0])
    return _Options(
        folder=folder,
        out=Path(given.get("out") or folder / ("export" if device is None else f"export-{device}")),
        formats=_listed("formats", given),
        cut=_listed("cut", given),
        device=None if device is None else int(device),
        pretrained=Path(given["pretrained"]) if given.get("pretrained") else None,
        overwrite=overwrite == "true",
    )


def _listed(name: str, given: Mapping[str, str]) -> list[str] | None:
    """Returns the texts of an option, which may be in brackets as Hydra writes lists."""
    if name not in given:
        return None
    texts = [text.strip() for text in given[name].strip("[]").split(",")]
    if not all(texts):
        allowed = f" of {', '.join(FORMATS)}" if name == "formats" else ""
        raise ConfigError(f"{name}={given[name]}: give one or several{allowed}, with commas between them")
    return texts


def main() -> None:
    """Run the console script."""
    run_script(command)


if __name__ == "__main__":
    main()
