"""`fsl-simulate`: one run, or a sweep (`-m`), from the command line."""

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import hydra
from fsl.simulations.messages import one_line
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsl.config import build, build_backend, build_data, build_model, build_optimizer, read_config
from fsl.errors import ConfigError, FslError, RunError
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
        backend=build_backend(top.backend),
        out=folder,
        resume=top.resume is not None,
        observers=(ProgressBar(), TensorBoard(), Figures()),
    )


failures: list[FslError] = []


@hydra.main(version_base="1.3", config_path="pkg://fsl.configs", config_name="config")
def _job(config: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    try:
        run = simulate_config(config, Path(hydra_config.runtime.output_dir))
    except FslError as error:
        if hydra_config.mode is RunMode.MULTIRUN:
            raise  # Hydra names the job, and goes on with the others of the sweep
        failures.append(error)  # Hydra would print lines of its own
        return
    last = run.metrics[-1] if run.metrics else {}
    scores = ", ".join(
        f"{name} {last[name]:.4f}" for name in ("train_loss", "loss", "accuracy") if last.get(name) is not None
    )
    print(f"{scores}\nresults: {os.path.relpath(run.folder.path)}\nfigures: {os.path.relpath(run.folder.figures)}")


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 (could not go on), 2 (bad input) or 130 (Ctrl-C)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving
    sys.argv = [sys.argv[0], *arguments]
    failures.clear()
    try:
        _job()
        if failures:
            raise failures[0]
    except KeyboardInterrupt:
        print("interrupted; go on with resume=<the run's folder>", file=sys.stderr)
        return 130
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        print(f"fsl-simulate: {one_line(error)}", file=sys.stderr)
        return 2
    except FslError as error:
        hint = "; what is written can be resumed" if isinstance(error, RunError) else ""
        print(f"fsl-simulate: {one_line(error)}{hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"fsl-simulate: {error}; what is written can be resumed", file=sys.stderr)
        return 1
    return 0


def main() -> None:
    """The console script."""
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
