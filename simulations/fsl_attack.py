"""`fsl-attack`: attacks finished runs to measure what they reveal."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fsl.simulations.attacks.attacked_runs import read_target
from fsl.simulations.console_scripts import say_why
from fsl.simulations.error_lines import one_line
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsl.attacks import Attack, Finding, Target
from fsl.attacks.pictures import save_pictures
from fsl.errors import ConfigError, FslError
from fsl.files import write_json
from fsl.importing.building import build, checked, unknown

_USAGE = """usage: fsl-attack FOLDER... attack=NAME [victim=0] [attack.NAME.OPTION=...]

Attack finished runs of fsl-simulate. NAME is one of {names}, or a list of them as in
attack=[inversion,labels]. What is found goes to FOLDER/attacks, and into what fsl-report says of the runs."""


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 (an attack could not go on), 2 (bad input) or 130 (Ctrl-C)."""
    if "-h" in arguments or "--help" in arguments:
        print(_USAGE.format(names=", ".join(choices())))
        return 0
    try:
        folders = [Path(argument) for argument in arguments if "=" not in argument]
        attacks, device = read_attacks([argument for argument in arguments if "=" in argument])
        if not folders:
            raise ConfigError("no run to attack: give the folder of one, as in fsl-attack outputs/... attack=inversion")
        for folder in folders:
            target = read_target(folder, device)
            for name, attack in attacks.items():
                found = attack_run(target, name, attack)
                print(f"{folder}: {in_words(name, attack, found)}")
    except KeyboardInterrupt:
        return say_why("fsl-attack", "interrupted; what was found so far is kept", 130)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say_why("fsl-attack", one_line(error), 2)
    except (FslError, OSError) as error:
        return say_why("fsl-attack", one_line(error), 1)
    return 0


def read_attacks(overrides: Sequence[str]) -> tuple[dict[str, Attack], int]:
    """Returns the attacks that overrides name, and the device that they attack."""
    with initialize_config_module("fsl.configs", version_base="1.3"):
        try:
            composed = OmegaConf.to_container(compose("attack", overrides=list(overrides)), resolve=True)
        except HydraException as error:
            if (line := one_line(error)).startswith("there is no key 'attack."):
                line = f"{line.partition(';')[0]}; its options are in fsl's configs/attack"
            raise ConfigError(line) from None
    assert isinstance(composed, dict)
    chosen = composed["attack"]
    if not chosen:
        raise ConfigError(f"no attack is named; give attack=NAME, one of {', '.join(choices())}")
    attacks = {}
    for name, options in chosen.items():
        attack = build(f"attack.{name}", options)
        if not isinstance(attack, Attack):
            raise ConfigError(f"attack.{name}._target_ is no fsl.attacks.Attack; derive it from one")
        attacks[str(name)] = attack
    for name in composed:
        if name not in ("attack", "victim"):
            raise ConfigError(unknown("key", str(name), ["attack", "victim"]))
    return attacks, checked("victim", composed["victim"], int)


def attack_run(target: Target, name: str, attack: Attack) -> Finding:
    """Attack a run, and write the finding into its folder."""
    if attack.needs_cut and not target.cut:
        raise ConfigError(f"attack={name}: devices of this run train the whole model, without a cut; use membership")
    if target.tail and not attack.tails:
        raise ConfigError(f"attack={name}: it is not built for runs with a tail; use labels, inversion or membership")
    found = attack.run(target)
    folder = target.folder
    folder.mkdir(parents=True, exist_ok=True)
    if found.pictures is not None:
        save_pictures(found.pictures, folder / name, f"{name}: {_figures(found)}")
    write_json(
        folder / f"{name}.json",
        {
            "attack": name,
            "adversary": attack.adversary,
            "device": target.device,
            "options": asdict(attack),  # type: ignore[call-overload]
            "headline": list(found.headline),
            "figures": dict(found.figures),
            "remark": found.remark,
        },
    )
    return found


def in_words(name: str, attack: Attack, found: Finding) -> str:
    """Describe a finding in one line."""
    remark = f" ({found.remark})" if found.remark else ""
    return f"{name} by {attack.adversary}: {_figures(found)}{remark}"


def choices() -> list[str]:
    """List the attacks."""
    from importlib import resources

    files = (path.name for path in (resources.files("fsl.configs") / "attack").iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def _figures(found: Finding) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in found.figures.items())


def main() -> None:
    """Run the console script."""
    sys.exit(command(sys.argv[1:]))
