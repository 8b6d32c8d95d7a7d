"""MLflow: a local SQLite file, a folder, or a server."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmbench.hiding import hide_secrets
from vlmbench.trackers.library import library
from vlmbench.trackers.protocol import Tracked
from vlmbench.trackers.result import Result

_LOCAL = "sqlite:///mlflow.db"
_BATCH = 100  # of one call
_REFUSED = re.compile(r"[^\w./: -]")
# MLflow's own defaults report usage and ask a server that does not answer for minutes.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_ENDS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


@dataclass(frozen=True, kw_only=True)
class MlflowTracker:
    """Stores a run in MLflow: numbers as metrics, provenance as parameters, figures and the page as artifacts.

    Args:
        uri: of the store: ``sqlite:///FILE``, ``file:FOLDER`` or ``http://HOST:PORT``; None takes
            ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working directory.
        experiment: MLflow's experiment, made where there is none.
    """

    uri: str | None = None
    experiment: str = "vlmbench"
    name = "mlflow"

    def check(self) -> None:
        """Refuse where MLflow is not installed.

        Raises:
            ConfigError: with the package to install.
        """
        self._library("mlflow.tracking")
        if self._uri.startswith("sqlite:"):
            for module in ("sqlalchemy", "alembic"):
                self._library(module)

    def track(self, result: Result, run_id: str | None) -> Tracked:
        """Make a run of MLflow, or bring the one of this directory up to date."""
        entities = self._library("mlflow.entities")
        client = self._client()
        run_id = self._run(client, result, run_id)
        now = int(time.time() * 1000)
        metrics = [
            entities.Metric(key=_allowed(name), value=value, timestamp=now, step=result.sessions)
            for name, value in result.numbers.items()
        ]
        kept = client.get_run(run_id).data.params  # MLflow changes no parameter
        params = [entities.Param(key, value) for key, value in _renamed(result.facts).items() if key not in kept]
        tags = [entities.RunTag(key, value) for key, value in result.tags.items()]
        for name, entries in (("metrics", metrics), ("params", params), ("tags", tags)):
            for first in range(0, len(entries), _BATCH):
                client.log_batch(run_id, **{name: entries[first : first + _BATCH]})
        for path, folder in result.files.items():
            client.log_artifact(run_id, str(path), folder or None)
        client.set_terminated(run_id, _ENDS.get(result.tags.get("vlmbench.state", ""), "FINISHED"))
        return Tracked(run_id=run_id, where=f"{hide_secrets(self._uri)}, experiment {self.experiment}, run {run_id}")

    @property
    def _uri(self) -> str:
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or _LOCAL

    def _library(self, module: str) -> Any:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self._uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow asks for it since folders are frozen
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return library(module, tracker=self.name, package="'vlmbench-latency[trackers]'")

    def _client(self) -> Any:
        return self._library("mlflow.tracking").MlflowClient(tracking_uri=self._uri)

    def _run(self, client: Any, result: Result, run_id: str | None) -> str:
        """The run of this directory, made where this store has none."""
        exceptions = self._library("mlflow.exceptions")
        if run_id is not None:
            try:
                client.update_run(run_id, status="RUNNING")
            except exceptions.MlflowException:
                run_id = None  # another store than before, or it was deleted there
        if run_id is not None:
            return run_id
        experiment = client.get_experiment_by_name(self.experiment)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(self.experiment)
        return str(client.create_run(experiment_id, run_name=result.name).info.run_id)


def _renamed(facts: Mapping[str, str]) -> dict[str, str]:
    return {_allowed(key): value for key, value in facts.items()}


def _allowed(name: str) -> str:
    """A name with what MLflow refuses in one replaced."""
    return _REFUSED.sub("_", name)
