"""MLflow: a run on a tracking server, or in files that `mlflow ui --backend-store-uri` shows."""

import time
from pathlib import Path

from finetune_api.names import MLFLOW_PASSWORD, MLFLOW_TOKEN, MLFLOW_USERNAME
from finetune_api.output import Mlflow
from finetune_api.run import RunSpec
from mlflow import environment_variables as environment
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from finetune_trainer.credentials import read_secret
from finetune_trainer.tracking import Numbers, settings_of

PARAMETER_LENGTH = 500
"""Longest value of a parameter that every server takes."""


class MlflowTracker:
    """One run of the experiment."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        asked, identity = spec.training.tracking.mlflow or Mlflow(), spec.identity
        _show_keys(spec)
        self._client = MlflowClient(tracking_uri=asked.tracking_uri or folder.absolute().as_uri())
        self._run = self._client.create_run(
            self._experiment(asked.experiment or f"{identity.namespace}/{identity.name}"),
            run_name=f"{identity.name}-{identity.uid[:8]}-{spec.attempt}",
        ).info.run_id
        given = settings_of(spec).items()
        self._client.log_batch(self._run, params=[Param(key, str(value)[:PARAMETER_LENGTH]) for key, value in given])

    def log(self, step: int, numbers: Numbers) -> None:
        """One call for all numbers."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in numbers.items()])

    def close(self) -> None:
        """The run is over."""
        self._client.set_terminated(self._run)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))


def _show_keys(spec: RunSpec) -> None:
    """MLflow takes its keys from the environment alone, by variables of the names that the Secret's keys have."""
    if spec.tracking_credentials is None:
        return
    variables = {
        MLFLOW_TOKEN: environment.MLFLOW_TRACKING_TOKEN,
        MLFLOW_USERNAME: environment.MLFLOW_TRACKING_USERNAME,
        MLFLOW_PASSWORD: environment.MLFLOW_TRACKING_PASSWORD,
    }
    for key, variable in variables.items():
        value = read_secret(spec.tracking_credentials, key)
        if value is not None:
            variable.set(value)
