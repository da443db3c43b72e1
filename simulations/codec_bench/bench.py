"""One bench: checks what is asked for, runs it, and writes table, CSV and figure."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from fsl.simulations.codec_bench.bench_figure import draw
from fsl.simulations.codec_bench.bench_runs import BenchRun, refuse_others, runs_of, take
from fsl.simulations.codec_bench.bench_tables import best_lines, csv_of, table_of
from fsl.simulations.codec_bench.cases import Case
from fsl.simulations.codec_bench.cut_costs import cut_costs, refuse_unmeasured
from fsl.simulations.codec_bench.results import Row, image_rows, row_of
from fsl.simulations.endings import tell
from fsl.simulations.reports.measures import Measure
from fsl.simulations.reports.tables import markdown_of
from fsl.simulations.sweeps.search_trial import composed
from omegaconf import DictConfig

from fsl.data import TaskData, recompress
from fsl.errors import ConfigError, RunError
from fsl.files import write_text
from fsl.run.config import build_data, read_config
from fsl.run.plotting import save_figure
from fsl.run.run_folder import RunFolder

_STORED = "the stored input"


@dataclass
class Bench:
    """Codecs and images to compare under these overrides and seeds; results go to `out`."""

    out: Path
    overrides: tuple[str, ...]
    codecs: Sequence[Case]
    seeds: tuple[int, ...]
    metric: str = "accuracy"
    images: list[Case] = field(default_factory=list)

    @cached_property
    def data(self) -> TaskData:
        """The data of all runs, as the first seed divides them."""
        top = self._config(self.codecs[0])
        return build_data(read_config(top).data, self.seeds[0])[0]

    @property
    def _training(self) -> TaskData:
        return replace(self.data, test=None, validation=None)

    @property
    def loader(self) -> str:
        """Import path of the data's loader."""
        return str(self._config(self.codecs[0]).data.get("_target_"))

    def add_images(self, cases: Sequence[Case]) -> None:
        """Add the input itself as images of several qualities."""
        self.images += cases

    def check(self) -> None:
        """Try each codec on a batch at the cut, and each image format on the data, before the first run."""
        refuse_unmeasured(self._config(self.codecs[0]))
        if Measure(self.metric).lower_is_better is None:
            raise ConfigError(
                f"--metric {self.metric}: whether more of it is better is not known; take accuracy or loss"
            )
        refuse_others(self._runs())
        for case in self.codecs:
            try:
                cut_costs(self._config(case), self.data)
            except ConfigError as error:
                raise ConfigError(f"--codec '{case.title}': {error}") from error
        few = replace(self._training, train=self.data.train.subset(torch.arange(min(4, len(self.data.train)))))
        for case in self.images:
            recompress(few, case.format, case.quality)  # type: ignore[arg-type]

    def run(self, jobs: int) -> dict[str, str]:
        """Run what is not done; returns why runs failed, by title."""
        self.out.mkdir(parents=True, exist_ok=True)
        runs = self._runs()
        done = sum(run.done for run in runs)
        tell(f"{len(runs)} runs in {os.path.relpath(self.out)}" + (f", {done} of them done before" if done else ""))
        return take(runs, jobs, self.metric, -1 if Measure(self.metric).lower_is_better else 1)

    def write(self) -> str:
        """Write codecs.md, codecs.csv and codecs.png of the runs that are done; returns what they say."""
        rows, measure = self._rows(), Measure(self.metric)
        text = "\n".join([markdown_of(table_of(rows, measure)), *best_lines(rows, measure)]) + "\n"
        text += "\n" + self._about(rows[0])
        write_text(self.out / "codecs.md", text)
        write_text(self.out / "codecs.csv", csv_of(rows, measure))
        save_figure(draw(rows, measure), self.out / "codecs.png")
        folder = os.path.relpath(self.out)
        return f"{text}\ntable, CSV and figure: {folder}/codecs.md, {folder}/codecs.csv, {folder}/codecs.png"

    def _rows(self) -> list[Row]:
        runs, base_case = self._runs(), self.codecs[0]
        base = row_of(base_case, runs, {}, self.metric)
        if base is None:
            raise RunError(f"{self.out}: no run of identity is done, so that there is nothing to compare with")
        rows = []
        for case in self.codecs:
            row = row_of(case, runs, base.values, self.metric)
            if row is not None:
                weights = [RunFolder(run.folder).model_path for run in runs if run.case == case and run.done]
                trained = next((path for path in weights if path.exists()), None)
                rows.append(replace(row, costs=cut_costs(self._config(case), self.data, trained)))
        labels = self.data.train.targets[:1].nbytes
        if self.data.stored_bytes is not None:
            stored = Row(_STORED, "image", base.values, dict.fromkeys(base.values, 0.0), 0.0, 0.0)
            rows += image_rows(stored, self.data.stored_bytes, None, labels)
        for case in self.images:
            row = row_of(case, runs, base.values, self.metric)
            if row is not None:
                sent = recompress(self._training, case.format, case.quality)  # type: ignore[arg-type]
                rows += image_rows(row, sent.bytes, sent.bytes_without_tables, labels)
        return rows

    def _about(self, base: Row) -> str:
        costs = base.costs
        assert costs is not None
        seeds = " ".join(map(str, self.seeds))
        return (
            f"{' '.join(self.overrides)}; seeds {seeds}. {costs.values:,} values cross the cut for a sample, "
            f"{costs.value_bytes:,} bytes. Bytes are those of a training sample in one pass, headers and labels "
            "included. Where the input itself is sent, the edge trains the whole network on these images, with the "
            "same strategy; it gets each image once in a pass, or once in all where it may keep them. Times are "
            "medians on one core, for a sample of a training step, both ways; FLOPs are those of matrix products, "
            "convolutions and Fourier transforms. front: no other row has fewer bytes both ways and is as good.\n"
        )

    def _config(self, case: Case) -> DictConfig:
        return composed((*self.overrides, *case.overrides, f"seed={self.seeds[0]}"))

    def _runs(self) -> list[BenchRun]:
        return runs_of([*self.codecs, *self.images], self.seeds, self.overrides, self.out)
