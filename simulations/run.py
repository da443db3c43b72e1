"""`fsl-simulate`: one run, or a sweep (`-m`), from the command line."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import hydra
from fsl.simulations.messages import check_choices, one_line
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsl.config import build, build_backend, build_data, build_model, build_optimizer, read_config
from fsl.errors import ConfigError, FslError
from fsl.observers import Figures, ProgressBar, TensorBoard
from fsl.run import Run, simulate


def run_folder(resume: str | None) -> str:
    """The folder of this run: the one that goes on, or a new one named by the time."""
    if resume is not None:
        return str(resume)
    folder = Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}"
    return str(folder if not folder.exists() else folder.with_name(f"{folder.name}-{os.getpid()}"))


OmegaConf.register_new_resolver("fsl.run_folder", run_folder, replace=True, use_cache=True)


def simulate_config(config: DictConfig, folder: Path) -> Run:
    """Run what a composed configuration says, into this folder."""
    top = read_config(config)
    data, augmentation = build_data(top.data, top.seed)
    model, cut = build_model(top.model, data, top.seed)
    partition = build("partition", top.partition)
    if top.resume is not None and not Path(top.resume).is_dir():
        raise ConfigError(f"resume={top.resume}: there is no such folder; give the folder of an earlier run")
    return simulate(
        model,
        data,
        strategy=build("strategy", top.strategy),
        cut=cut,
        devices=top.devices,
        rounds=top.rounds,
        partition=partition,
        samples_per_device=top.samples_per_device,
        optimizer=build_optimizer(top.optimizer),
        augmentation=augmentation,
        edges=top.edges,
        devices_per_round=top.devices_per_round,
        local_epochs=top.local_epochs,
        batch_size=top.batch_size,
        up=top.codec["up"],
        down=top.codec["down"],
        seed=top.seed,
        init_from=top.init_from,
        evaluate_every=top.evaluate_every,
        evaluate_devices=top.evaluate_devices,
        nodes=top.nodes,
        device_profile=build("device", top.device),
        edge_profile=build("edge", top.edge),
        link_profile=build("link", top.link),
        backend=build_backend(top.backend),
        out=folder,
        resume=top.resume is not None,
        observers=(ProgressBar(), TensorBoard(), Figures()),
    )


@dataclass
class _Outcome:
    """What a job tells the command beside its return value."""

    folder: Path | None = None
    failure: FslError | OSError | None = None


def _job(config: DictConfig, outcome: _Outcome) -> float | None:
    hydra_config = HydraConfig.get()
    outcome.folder = Path(hydra_config.runtime.output_dir)
    try:
        run = simulate_config(config, outcome.folder)
    except (FslError, OSError) as error:
        if hydra_config.mode is RunMode.MULTIRUN:
            raise  # Hydra names the job, and goes on with the others of the sweep
        outcome.failure = error  # raised in here, Hydra would print lines of its own
        return None
    last = run.metrics[-1] if run.metrics else {}
    scores = ", ".join(
        f"{name} {last[name]:.4f}" for name in ("train_loss", "loss", "accuracy") if last.get(name) is not None
    )
    print(f"{scores}\nresults: {_short(run.folder.path)}\nfigures: {_short(run.folder.figures)}")
    return last.get("accuracy")


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 (could not go on), 2 (bad input) or 130 (Ctrl-C)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving
    sys.argv = [sys.argv[0], *arguments]
    outcome = _Outcome()

    @hydra.main(version_base="1.3", config_path="pkg://fsl.configs", config_name="config")
    def job(config: DictConfig) -> float | None:
        return _job(config, outcome)

    try:
        check_choices(arguments)
        job()
        if outcome.failure is not None:
            raise outcome.failure
    except KeyboardInterrupt:
        return _say(f"interrupted; go on with {_resume(outcome)}", 130)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return _say(one_line(error), 2)
    except (FslError, OSError) as error:
        return _say(f"{one_line(error)}; go on with {_resume(outcome)}", 1)
    return 0


def _say(line: str, code: int) -> int:
    print(f"fsl-simulate: {line}", file=sys.stderr)
    return code


def _resume(outcome: _Outcome) -> str:
    return f"resume={_short(outcome.folder) if outcome.folder else '<folder>'}, and the same options"


def _short(path: Path) -> str:
    return os.path.relpath(path)


def main() -> None:
    """The console script."""
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
