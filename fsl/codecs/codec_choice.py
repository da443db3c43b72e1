"""Turns a user's codec into the description that plans, settings and reports carry."""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fsl.codecs.adaptive import Adaptive
from fsl.codecs.chain import Chain, spec_of
from fsl.codecs.codec import Codec
from fsl.codecs.identity import Identity
from fsl.errors import ConfigError, FslError
from fsl.importing.building import fitting, unknown
from fsl.importing.config_groups import named, names
from fsl.importing.description import describe
from fsl.importing.import_paths import locate, public_path
from fsl.importing.introspection import attributes
from fsl.importing.spec import Spec

# A codec as its class, the class's import path, its name in configs/codec, an object, or a mapping with arguments.
OneCodec = str | type[Codec] | Codec | Spec | Mapping[str, Any]
CodecChoice = OneCodec | Sequence[OneCodec]  # several: one behind the other
_IDENTITY = Spec(public_path(Identity))
_HOW = "name a Codec, as in fsl.codecs.Float16, or {_target_: my.TopK, k: 0.1}"


def build_codecs(config: Mapping[str, Any]) -> dict[str, Spec]:
    """Read the codecs `up` and `down` of a configuration's group; ConfigError for other keys.

    Or `stages`, names of choices of that group: each direction then has their codecs one behind the other.
    """
    ways = ("up", "down")
    if "stages" in config:
        return _of_stages(config)
    for name in config:
        if name not in ways:
            hint = " (an argument is that of one direction: codec.up={_target_: my.Codec, argument: ...})"
            raise ConfigError(unknown("option of codec", name, ways) + hint)
    for way in ways:
        if way not in config:
            raise ConfigError(f"codec.{way} must be given: a codec, or fsl.codecs.Identity for none")
    return {way: codec_spec(f"codec.{way}", config[way]) for way in ways}


def _of_stages(config: Mapping[str, Any]) -> dict[str, Spec]:
    stages = config["stages"]
    if len(config) > 1:
        raise ConfigError(
            "codec: stages name the codecs of both directions; to change an argument leave them out, and give each "
            "direction its own, as codec.up=[{_target_: fsl.codecs.C3, ratio: 8}, int8]"
        )
    if (
        not stages
        or not isinstance(stages, Sequence)
        or isinstance(stages, str)
        or not all(isinstance(s, str) for s in stages)
    ):
        raise ConfigError(
            f"codec.stages={stages!r}: give names of codecs, as [c3,int8,zstd]: {', '.join(names('codec'))}"
        )
    choices = [named("codec", stage) for stage in stages if stage != "identity"]
    for stage, choice in zip(stages, choices):
        if "stages" in choice:
            raise ConfigError(f"codec.stages: {stage} is no codec of its own; name those that it consists of")
    return {
        way: codec_spec(f"codec.{way}", [choice[way] for choice in choices] or [_IDENTITY]) for way in ("up", "down")
    }


def codec_spec(name: str, given: CodecChoice) -> Spec:
    """Describe a codec by its class's import path and its constructor's arguments, with defaults, as JSON values.

    Several are described as a chain, without those that change nothing. `name` is its name in errors ("codec.up").
    ConfigError for what is no codec, for arguments that its constructor does not take, and for those that a message
    cannot carry.
    """
    if isinstance(given, Sequence) and not isinstance(given, str):
        return _chained(name, [codec_spec(f"{name}[{place}]", one) for place, one in enumerate(given)])
    kind, arguments = _class_and_arguments(name, given)
    path = given if isinstance(given, str) else public_path(kind)
    if not (isinstance(kind, type) and issubclass(kind, Codec)):
        raise ConfigError(f"{name}={path} is not a Codec; {_HOW}")
    path = public_path(kind)
    if "." in kind.__qualname__ or locate(path) is not kind:
        raise ConfigError(
            f"{name}={path}: each end imports a codec by its path, and there is none; define the class at the top of a "
            "module"
        )
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise ConfigError(f"{name}={path} cannot be built: it does not define {missing}")
    parameters = _parameters(kind)
    for parameter in parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise ConfigError(
                f"{name}={path}: its constructor takes {parameter}, and a codec is described by arguments with names"
            )
    if kind is Adaptive and isinstance(arguments.get("choices"), Sequence):
        arguments["choices"] = _described(f"{name}.choices", arguments["choices"])
    arguments = fitting(name, kind, parameters, arguments)
    kwargs = {key: _plain(name, path, key, value) for key, value in arguments.items()}
    kwargs |= {
        key: json.loads(json.dumps(p.default))
        for key, p in parameters.items()
        if key not in kwargs and p.default is not p.empty and _is_plain(p.default)
    }
    try:
        kind(**kwargs)
    except ConfigError as error:  # the constructor names its argument alone
        argument = str(error).partition("=")[0]
        raise ConfigError(f"{name}.{error}" if argument in kwargs else f"{name}: {error}") from None
    except FslError:
        raise
    except Exception as error:
        raise ConfigError(f"{name}={path}: {type(error).__name__}: {error}") from error
    if isinstance(given, Codec):
        _refuse_changed(name, path, given)
    return Spec(path, kwargs)


def _chained(name: str, stages: Sequence[Spec]) -> Spec:
    """Describe codecs one behind the other; a chain among them stands for its stages."""
    flat: list[Any] = []
    for stage in stages:
        inner = (
            stage.kwargs["stages"]
            if stage.target == public_path(Chain)
            else [dict(stage.kwargs, _target_=stage.target)]
        )
        flat += [one for one in inner if one != {"_target_": _IDENTITY.target}]
    if not stages:
        raise ConfigError(f"{name}=[]: name codecs, as [c3,int8], or identity for none")
    if not flat:
        return _IDENTITY
    if len(flat) == 1:
        return spec_of(flat[0])
    return codec_spec(name, Spec(public_path(Chain), {"stages": flat}))


def _described(name: str, choices: Sequence[Any]) -> list[dict[str, Any]]:
    """Describe codecs, each given like a direction's, as a constructor takes them."""
    specs = [codec_spec(f"{name}[{place}]", one) for place, one in enumerate(choices)]
    return [dict(spec.kwargs, _target_=spec.target) for spec in specs]


def _class_and_arguments(name: str, given: Any) -> tuple[Any, dict[str, Any]]:
    match given:
        case Codec():
            return type(given), _built_from(name, given)
        case type():
            return given, {}
        case str() if given in names("codec"):
            return _class_and_arguments(name, _named_half(name, given))
        case str():
            return _located(name, given), {}
        case Spec():
            return _located(name, given.target), dict(given.kwargs)
        case Mapping():
            arguments = dict(given)
            target = arguments.pop("_target_", None)
            if not isinstance(target, str):
                raise ConfigError(f"{name} names no class; set {name}._target_ to a dotted import path")
            return _located(name, target), arguments
    raise ConfigError(f"{name}={given!r}: {_HOW}")


def _named_half(name: str, given: str) -> Any:
    """Returns what the choice of this name says of the direction that `name` has, as in codec.up[1]."""
    choice, way = named("codec", given), name.split(".")[1].partition("[")[0]
    if way not in choice:
        raise ConfigError(f"{name}={given}: it is no codec of its own; name codecs, as [c3,int8]")
    return choice[way]


def _located(name: str, path: str) -> Any:
    try:
        return locate(path)
    except ConfigError as error:
        hint = "" if "." in path else f"; there are the names {', '.join(names('codec'))}"
        raise ConfigError(f"{name}={path}: {error}{hint}") from None


def _parameters(kind: type[Codec]) -> dict[str, inspect.Parameter]:
    """Returns the constructor's parameters without `self`, which `Codec.__new__` would hide."""
    if kind.__init__ is object.__init__:
        return {}
    return dict(list(inspect.signature(kind.__init__).parameters.items())[1:])


def _built_from(name: str, codec: Codec) -> dict[str, Any]:
    """Returns an object's constructor arguments, by name."""
    positional, keywords = codec._built_from
    bound = inspect.signature(type(codec).__init__).bind(codec, *positional, **keywords)
    found: dict[str, Any] = {}
    for key, value in list(bound.arguments.items())[1:]:
        if bound.signature.parameters[key].kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[key] = value
    return found


def _refuse_changed(name: str, path: str, given: Codec) -> None:
    """Raise ConfigError where an object differs from what its arguments make, so that no session would be like it.

    Ignores attributes in which two objects of the same arguments differ, since these are random.
    """
    positional, keywords = given._built_from
    now, first, second = map(_attribute_texts, (given, *(type(given)(*positional, **keywords) for _ in range(2))))
    for attribute in sorted(now.keys() | first.keys()):
        if now.get(attribute) != first.get(attribute) and first.get(attribute) == second.get(attribute):
            is_now, was = (told.get(attribute, "absent")[:60] for told in (now, first))
            raise ConfigError(
                f"{name}={path}: the object's {attribute} is {is_now}, and was {was} when it was made; each end builds "
                "the codec anew from its constructor's arguments, so give a new object with the right ones"
            )


def _attribute_texts(codec: Codec) -> dict[str, str]:
    """Returns each attribute of a codec as text."""
    kept = {key: value for key, value in (attributes(codec) or {}).items() if key != "_built_from"}
    return {key: describe(value) for key, value in kept.items()}


def _plain(name: str, path: str, key: str, value: Any) -> Any:
    if not _is_plain(value):
        raise ConfigError(
            f"{name}={path}: {key} is a {type(value).__name__} ({str(value)[:60]}); each end builds the codec anew "
            "from its arguments, so give finite numbers, texts, true or false, null, and lists or mappings of them"
        )
    return json.loads(json.dumps(value))


def _is_plain(value: Any) -> bool:
    """Returns whether JSON restores a value, with a tuple as a list."""
    match value:
        case None | bool() | int() | str():
            return True
        case float():
            return value == value and abs(value) != float("inf")
        case list() | tuple():
            return all(_is_plain(item) for item in value)
        case Mapping():
            return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return False
