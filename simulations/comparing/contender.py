"""A model that is compared: its points, what they cost on device and edge, and what its answers are worth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fsl.simulations.attacks.attacked_runs import config_of
from fsl.simulations.comparing.compare_options import CompareOptions
from fsl.simulations.fsl_export import TrainedRun, read_trained_run

from fsl.codecs.codec import Codec
from fsl.codecs.codec_choice import build_codecs, codec_spec
from fsl.codecs.codec_maker import codec_of
from fsl.data import Examples, TaskData, recompress
from fsl.data.rewritten_images import ImageFormat
from fsl.errors import ConfigError
from fsl.importing.spec import Spec
from fsl.inference import SplitPoints
from fsl.inference.comparison import CutWay, MeasuredAnswer, device_bytes, measure_answers
from fsl.inference.planning import LOCAL, REMOTE, SplitChoice, SplitCosts
from fsl.inference.profiles import Encoding, ModelProfile, image_encoding, measure, raw_image_encoding
from fsl.inference.split_points import INPUT, OUTPUT
from fsl.run.config import read_config
from fsl.run.run_folder import RunFolder
from fsl.split.coded_model import CodedModel

RAW = "uint8"  # an image as it is
_USUAL_IMAGES = ("jpeg:75", "webp:75")


@dataclass(frozen=True)
class Contender:
    """A trained model at its points; `answers` of every choice that changes them, and `exact` what all others give.

    `own`: the choices of a trained codec, where the run has one. Costs are those of device and edge.
    """

    name: str
    run: TrainedRun
    points: SplitPoints
    examples: Examples
    costs: SplitCosts
    answers: Mapping[SplitChoice, MeasuredAnswer]
    own: tuple[SplitChoice, ...] = ()
    exact: tuple[SplitChoice, ...] = field(default=(LOCAL, REMOTE))

    @property
    def unsplit(self) -> MeasuredAnswer:
        """What the model's own answers are worth."""
        return self.answers[LOCAL]

    def qualities(self) -> dict[SplitChoice, float]:
        """Returns what answers are worth, by every choice."""
        plain = [choice for choice in self.costs.choices(formats=True) if choice not in self.answers]
        known = {choice: answer.quality for choice, answer in self.answers.items()}
        return known | dict.fromkeys([choice for choice in plain if self._is_exact(choice)], self.unsplit.quality)

    def encoders(self) -> dict[SplitChoice, int]:
        """Returns bytes of weights on the device, by choice."""
        more = {choice: answer.device_bytes for choice, answer in self.answers.items()}
        return {choice: size + more.get(choice, 0) for choice, size in device_bytes(self.costs).items()}

    def exact_choices(self) -> list[SplitChoice]:
        """Returns the choices that change no answer: points as they are, and images as they are."""
        return [choice for choice in self.costs.choices(formats=True) if self._is_exact(choice)]

    def _is_exact(self, choice: SplitChoice) -> bool:
        if choice.point == INPUT:
            return choice.input_format in (None, RAW)
        return choice.point == OUTPUT or choice.codec == "identity"


def bottleneck_names(folders: tuple[Path, ...]) -> dict[Path, str]:
    """Returns what to call runs: the ends of their paths, long enough to differ and to be more than numbers.

    ConfigError where one is given twice.
    """
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise ConfigError(f"bottlenecks={','.join(map(str, folders))}: one run is given twice")
    for parts in range(1, 1 + max((len(folder.parts) for folder in whole), default=0)):
        names = ["/".join(folder.parts[-parts:]) for folder in whole]
        if len(set(names)) == len(names) and not any(name.isdecimal() for name in names):
            return dict(zip(folders, names, strict=True))
    return {folder: str(folder) for folder in folders}


def contender(folder: Path, options: CompareOptions, name: str = "", *, bottleneck: bool) -> Contender:
    """Read a finished run, measure its points here, and score its answers on the rows of its data that it kept apart.

    `bottleneck`: it must have a trained codec, and is divided at its own cut alone. ConfigError for what cannot be.
    """
    run = read_trained_run(folder)
    whole = run.trained.whole(options.front)
    coded = whole if isinstance(whole, CodedModel) else None
    trained = whole if coded is None else coded.inner
    if bottleneck != (coded is not None):
        raise ConfigError(
            f"bottlenecks={folder}: this run has no trained codec; give it as run, or train one by codec.up=bottleneck"
            if bottleneck
            else f"run={folder}: this run has a trained codec at its cut; give it as bottlenecks={folder}"
        )
    names = list(run.trained.cuts) if bottleneck else options.points
    points = SplitPoints(trained, run.trained.inputs().rows, names)
    examples = (run.data.test or run.data.train).of_one_length()
    ways = _own_ways(folder, name, coded, points) if coded is not None else _codec_ways(options.codecs, points)
    formats = {} if bottleneck else _formats(run.data, options.images)
    answers = measure_answers(
        points,
        examples,
        run.objective,
        ways=ways,
        formats={SplitChoice(INPUT, input_format=name): _test(data) for name, (data, _) in formats.items() if data},
        rows=options.rows,
    )
    profile = measure(
        points,
        examples.batch(torch.arange(1))[0],
        repetitions=options.repetitions,
        threads=options.threads,
        checks=0,
    )
    return Contender(
        name=name,
        run=run,
        points=points,
        examples=examples,
        costs=_costs(profile, options, answers, {name: encoding for name, (_, encoding) in formats.items()}),
        answers=answers,
        own=tuple(ways) if bottleneck else (),
    )


def _test(data: TaskData) -> Examples:
    return (data.test or data.train).of_one_length()


def _costs(
    profile: ModelProfile,
    options: CompareOptions,
    answers: Mapping[SplitChoice, MeasuredAnswer],
    formats: Mapping[str, Encoding],
) -> SplitCosts:
    slower, faster = 1 / options.device_speed, 1 / options.edge_speed
    device = profile.faster(options.device_speed)
    edge = profile.faster(options.edge_speed)
    measured = {choice: answer.encoding for choice, answer in answers.items() if answer.encoding is not None}
    return SplitCosts(
        device=device,
        edge=edge,
        input_formats={name: _at_speeds(each, slower, faster) for name, each in formats.items()},
        measured={choice: _at_speeds(each, slower, faster) for choice, each in measured.items()},
        power=options.power,
    )


def _at_speeds(encoding: Encoding, slower: float, faster: float) -> Encoding:
    return Encoding(
        encoding.factor, encoding.fixed_bytes, encoding.encode_seconds * slower, encoding.decode_seconds * faster
    )


def _codec_ways(codecs: tuple[str, ...], points: SplitPoints) -> dict[SplitChoice, CutWay]:
    ways: dict[SplitChoice, CutWay] = {}
    for name in codecs:
        spec = codec_spec("codecs.up", name)
        for cut in points.cuts:
            ways[SplitChoice(cut, name)] = CutWay(_maker(spec))
    return ways


def _maker(spec: Spec) -> Callable[[], Codec]:
    return lambda: codec_of(spec)


def _own_ways(folder: Path, name: str, coded: CodedModel, points: SplitPoints) -> dict[SplitChoice, CutWay]:
    """Returns the way of a trained codec, or one for each of its rates, at the run's cut."""
    spec = build_codecs(read_config(config_of(RunFolder(folder))).codec)["up"]
    rates = getattr(coded.encoder, "units", None)
    if rates is None:
        choices: dict[SplitChoice, int | None] = {SplitChoice(points.cuts[0], name): None}
    else:
        choices = {SplitChoice(points.cuts[0], f"{name} rate {k}"): k for k in range(len(rates))}
    return {choice: CutWay(_maker(spec), coded.encoder, coded.decoder, rate) for choice, rate in choices.items()}


def _formats(task: TaskData, asked: tuple[str, ...] | None) -> dict[str, tuple[TaskData | None, Encoding]]:
    """Returns images as they are, and as files: the task as they leave it (None: unchanged), and what they take."""
    if task.scaling is None or len(task.input_shape) != 3:
        if asked:
            raise ConfigError(f"images={','.join(asked)}: {task.name} has no images that a loader scaled; leave it out")
        return {}
    found: dict[str, tuple[TaskData | None, Encoding]] = {RAW: (None, raw_image_encoding(task))}
    for text in _USUAL_IMAGES if asked is None else asked:
        form, _, quality = text.partition(":")
        if form not in ("jpeg", "webp") or not quality.isdecimal() or not 1 <= int(quality) <= 100:
            raise ConfigError(f"images={text}: give a format of jpeg, webp and a quality from 1 to 100, as jpeg:75")
        kind: ImageFormat = "jpeg" if form == "jpeg" else "webp"
        found[text] = (recompress(task, kind, int(quality)).task, image_encoding(task, kind, int(quality)))
    return found
