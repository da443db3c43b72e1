"""A model that is compared: its points, what they cost on device and edge, and what its answers are worth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from fsl.simulations.attacks.attacked_runs import config_of
from fsl.simulations.comparing.compare_options import CompareOptions
from fsl.simulations.fsl_export import TrainedRun, read_trained_run
from fsl.simulations.image_formats import RAW, USUAL_IMAGES, read_format
from fsl.simulations.profiling.int8_model import in_int8
from fsl.simulations.profiling.profiled_model import whole_of

from fsl.codecs.codec import Codec
from fsl.codecs.codec_choice import build_codecs, codec_spec
from fsl.codecs.codec_maker import codec_of
from fsl.data import Examples, TaskData, recompress
from fsl.errors import ConfigError
from fsl.importing.spec import Spec
from fsl.inference import SplitPoints
from fsl.inference.comparison import CutWay, MeasuredAnswer, device_weights, measure_answers
from fsl.inference.planning import LOCAL, REMOTE, SplitChoice, SplitCosts
from fsl.inference.profiles import Encoding, ModelProfile, image_encoding, measure, raw_image_encoding
from fsl.inference.split_points import INPUT, OUTPUT
from fsl.run.config import read_config
from fsl.run.run_folder import RunFolder
from fsl.segments.tensor_trees import Values, as_values, tensors_of
from fsl.settings.wire_settings import IDENTITY
from fsl.split.coded_model import CodedModel


@dataclass(frozen=True)
class Contender:
    """A trained model at its points; `answers` of every choice that changes them, and `exact` what all others give.

    `own`: the choices of a trained codec, where the run has one. Costs are those of device and edge. `examples`:
    those that answers are scored on, which are `rows` of the run's data, in words.
    """

    name: str
    run: TrainedRun
    points: SplitPoints
    examples: Examples
    rows: str
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

    def weights(self) -> dict[SplitChoice, Mapping[int, int]]:
        """Returns the bytes of each tensor on the device, by choice and the tensor's identity."""
        more = {choice: answer.weights for choice, answer in self.answers.items()}
        own = device_weights(self.points, self.costs.choices(formats=True))
        return {choice: {**sizes, **more.get(choice, {})} for choice, sizes in own.items()}

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
    run, given = read_trained_run(folder), f"{'bottlenecks' if bottleneck else 'run'}={folder}"
    front = None if bottleneck and run.trained.devices is None else options.front
    whole = whole_of(run.trained, front, given)
    coded = whole if isinstance(whole, CodedModel) else None
    trained = whole if coded is None else coded.inner
    if bottleneck != (coded is not None):
        raise ConfigError(
            f"bottlenecks={folder}: this run has no trained codec; give it as run, or train one by codec.up=bottleneck"
            if bottleneck
            else f"run={folder}: this run has a trained codec at its cut; give it as bottlenecks={folder}"
        )
    if not bottleneck:
        trained = in_int8(trained, run.trained, run.data, options.int8)
    names = list(run.trained.cuts) if bottleneck else options.points
    points = SplitPoints(trained, run.trained.inputs().rows, names)
    examples, words = scored_rows(run.data)
    examples = examples.subset(torch.arange(min(options.rows, len(examples))))
    ways = _own_ways(folder, name, coded, points) if coded is not None else _codec_ways(options.codecs, points)
    formats = {} if bottleneck else _formats(run.data, examples, options.images)
    answers = measure_answers(
        points,
        examples,
        run.objective,
        ways=ways,
        formats={SplitChoice(INPUT, input_format=name): rows for name, (rows, _) in formats.items() if rows},
        rows=options.rows,
        threads=options.threads,
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
        rows=words,
        costs=_costs(profile, options, answers, {name: encoding for name, (_, encoding) in formats.items()}),
        answers=answers,
        own=tuple(ways) if bottleneck else (),
    )


def scored_rows(data: TaskData) -> tuple[Examples, str]:
    """Returns rows on which a run's model is scored, and which of its data they are, in words."""
    parts = ((data.test, "test rows"), (data.validation, "validation rows, since there are no test rows"))
    found = next(((rows, words) for rows, words in parts if rows), None)
    rows, words = found or (data.train, "rows that the model was trained on, since there are no others")
    return rows.of_one_length(), words


def refuse_unlike(main: Contender, other: Contender, folder: Path) -> None:
    """ConfigError where a bottleneck's answers are scored by another objective, or on other rows."""
    objectives = [type(one.run.objective).__name__ for one in (main, other)]
    if objectives[0] != objectives[1] or (main.unsplit.score.accuracy is None) != (
        other.unsplit.score.accuracy is None
    ):
        raise ConfigError(
            f"bottlenecks={folder}: it was trained for {objectives[1]}, and run= for {objectives[0]}; give one of the "
            "same objective"
        )
    first, second = (one.examples.batch(torch.arange(len(one.examples))) for one in (main, other))
    pairs = zip((*tensors_of(_values(first[0])), first[1]), (*tensors_of(_values(second[0])), second[1]))
    if len(main.examples) != len(other.examples) or not all(torch.equal(one, two) for one, two in pairs):
        raise ConfigError(
            f"bottlenecks={folder}: its rows are others than those of run=, so that answers cannot be compared; give a "
            "run on the same data, prepared alike, of the same seed where that divides them"
        )


def _values(inputs: Any) -> Values:
    found = as_values(inputs)
    assert found is not None
    return found


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
        try:
            spec = codec_spec("codecs.up", name)
        except ConfigError as error:
            raise ConfigError(str(error).replace("codecs.up", "codecs")) from None
        if spec == IDENTITY:
            raise ConfigError(f"codecs={name}: what crosses as it is stands in the table anyway; leave it out")
        for cut in points.cuts:
            ways[SplitChoice(cut, name)] = _way(f"codecs={name}", spec)
    return ways


def _way(given: str, spec: Spec) -> CutWay:
    try:
        return CutWay(_maker(spec))
    except ConfigError as error:
        raise ConfigError(f"{given}: {error}") from None


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


def _formats(
    task: TaskData, examples: Examples, asked: tuple[str, ...] | None
) -> dict[str, tuple[Examples | None, Encoding]]:
    """Returns images as they are, and as files: examples as they leave them (None: unchanged), and what they take."""
    if asked == ():
        return {}
    if task.scaling is None or len(task.input_shape) != 3:
        if asked:
            raise ConfigError(f"images={','.join(asked)}: {task.name} has no images that a loader scaled; leave it out")
        return {}
    scored = TaskData(task.name, examples, None, task.classes, scaling=task.scaling)
    found: dict[str, tuple[Examples | None, Encoding]] = {RAW: (None, raw_image_encoding(scored))}
    for text in USUAL_IMAGES if asked is None else asked:
        kind, quality = read_format(text)
        made = recompress(scored, kind, quality)
        found[text] = (made.task.train, replace(image_encoding(scored, kind, quality), fixed_bytes=made.bytes))
    return found
