"""MLflow, an extra: `pip install 'fsl-flower[mlflow]'`."""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from fsl.run.observers import RunInfo
from fsl.run.provenance import flat
from fsl.run.run_folder import RunFolder
from fsl.trackers.tracker import Tracker, remember, remembered, require, run_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PARAMETERS = 100  # that MLflow takes at once


class MLflow(Tracker):
    """The run in MLflow: settings as parameters, each round's numbers as metrics, the figures as artifacts.

    `tracking_uri`: a local data base, or the address of a server; None leaves the choice to MLflow and its environment
    variables. A resumed run goes on in the same MLflow run. ConfigError where mlflow is not installed.
    """

    title: ClassVar[str] = "MLflow"
    _client: "MlflowClient"
    _id: str

    def __init__(
        self,
        experiment: str = "fsl",
        tracking_uri: str | None = "sqlite:///mlflow.db",
        name: str | None = None,
    ):
        super().__init__()
        require("mlflow", "MLflow", "mlflow")
        self.experiment, self.tracking_uri, self.name = experiment, tracking_uri, name

    def open(self, info: RunInfo) -> None:
        """Begin an MLflow run, or go on with it."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read on import; it is on unless one says so
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow import MlflowClient

        assert info.folder is not None
        self._client = MlflowClient(tracking_uri=self.tracking_uri)  # no global active run
        known = remembered(info, "mlflow")
        if known is not None:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self.experiment)
        created = self._client.create_run(experiment, run_name=self.name or run_name(info.folder))
        self._id = created.info.run_id
        remember(info, "mlflow", self._id)
        self._log_settings(info.settings)

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """Add a round."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, round) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, info: RunInfo, complete: bool) -> None:
        """Add the figures, and end the MLflow run."""
        assert info.folder is not None
        try:
            if (figures := RunFolder(info.folder).figures).is_dir():
                self._client.log_artifacts(self._id, str(figures), "figures")
        finally:
            self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")

    def _log_settings(self, settings: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        parameters = [Param(key, str(value)[:500]) for key, value in flat(settings).items()]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._id, params=parameters[start : start + _PARAMETERS])
