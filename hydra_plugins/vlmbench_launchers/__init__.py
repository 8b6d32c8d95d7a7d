"""Hydra's door to vlmbench's launchers; ``hydra_plugins`` is a namespace package, Hydra finds what lies in it.

Read at every start of Hydra, so it imports nothing of its own until a grid is launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class PluginFolders(SearchPathPlugin):
    """Adds the YAML folders of installed plug-ins behind vlmbench's own, so that ``probe=NAME`` finds theirs too."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append each folder; the packages are found, not imported."""
        from vlmbench.plugins import config_folders

        for name, folder in config_folders():
            search_path.append(provider=name, path=folder.as_uri())


class InProcessLauncher(BasicLauncher):
    """``hydra/launcher=basic``: Hydra's own, one job after the other, but a job that the user stops ends the sweep."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs in this process.

        Raises:
            KeyboardInterrupt: the user stopped one; it was said which were not begun, and how to continue.
        """
        from vlmbench.cli import main
        from vlmbench.cli.sweeps import announced
        from vlmbench.session.signals import ending_in_imports

        task, begun = self.task_function, 0
        assert task is not None
        assert self.config is not None
        assert self.hydra_context is not None

        def one(config: DictConfig) -> Any:
            nonlocal begun
            begun += 1
            try:
                return task(config)
            finally:
                if main.is_stopped():
                    raise KeyboardInterrupt

        def interrupted_in_import() -> bool:
            main.end_sweep(job_overrides, begun, initial_job_idx)
            return True

        self.task_function = one
        try:
            with (
                ending_in_imports(interrupted_in_import),
                announced(self.hydra_context.config_loader, self.config, job_overrides, initial_job_idx),
            ):
                return super().launch(job_overrides, initial_job_idx)
        except KeyboardInterrupt:
            if main.is_stopped():
                main.end_sweep(job_overrides, begun, initial_job_idx)
            raise
        finally:
            self.task_function = task


class _GridLauncher(Launcher):
    """Composes every job, hands them over, and reports what their own files say."""

    def __init__(self, **params: Any) -> None:
        self.params = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in params.items()}
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra gives; the job function is found by name on the other side."""
        from vlmbench.cli.compose import quicken

        del task_function
        self.hydra_context, self.config = hydra_context, config
        quicken(hydra_context.config_loader)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; returns one :class:`JobReturn` a job: its exit status, or what its sweeper asked for."""
        from vlmbench.cli import run_names
        from vlmbench.cli.compose import compose_tasks
        from vlmbench.cli.main import objective_values
        from vlmbench.errors import MeasurementError

        assert self.config is not None
        assert self.hydra_context is not None
        if missing := OmegaConf.missing_keys(self.config.hydra.launcher):
            from vlmbench.errors import ConfigError

            names = ", ".join(f"hydra.launcher.{name}=…" for name in sorted(missing))
            raise ConfigError(f"this launcher needs to be told {names}")
        sweep_dir = Path(str(self.config.hydra.sweep.dir))
        run_names.choose(sweep_dir, job_overrides, initial_job_idx)
        composed = compose_tasks(self.hydra_context.config_loader, self.config, job_overrides, initial_job_idx)
        once = {task.directory: (index, (task, plain)) for index, (task, plain) in composed.items()}  # of a search
        found = self._launch(sweep_dir, dict(once.values()))
        ends = dict(zip(once, found, strict=True))
        returns = []
        for task, _ in composed.values():
            done = JobReturn(overrides=list(task.overrides), working_dir=str(sweep_dir / task.directory))
            done.return_value, done.status = ends[task.directory].exit_status, JobStatus.COMPLETED
            if run_names.is_search(str(self.config.hydra.sweeper.get("_target_"))):
                try:
                    done.return_value = objective_values(sweep_dir / task.directory, done.return_value)
                except MeasurementError as error:
                    done.return_value, done.status = error, JobStatus.FAILED
            returns.append(done)
        return returns

    def _launch(self, sweep_dir: Path, composed: Any) -> Any:
        raise NotImplementedError


class SlurmLauncher(_GridLauncher):
    """``hydra/launcher=slurm``: job arrays; keys are those of ``vlmbench.cluster.settings.SlurmSettings``."""

    def _launch(self, sweep_dir: Path, composed: Any) -> Any:
        from vlmbench.cli.node import main as run_task
        from vlmbench.cluster.launch import launch_on_slurm
        from vlmbench.cluster.settings import SlurmSettings, parse

        return launch_on_slurm(sweep_dir, composed, parse(SlurmSettings, self.params), run_task)


class LocalLauncher(_GridLauncher):
    """``hydra/launcher=local``: processes of this machine; keys of ``vlmbench.cluster.settings.LocalSettings``."""

    def _launch(self, sweep_dir: Path, composed: Any) -> Any:
        from vlmbench.cluster.local import launch_here
        from vlmbench.cluster.settings import LocalSettings, parse

        return launch_here(sweep_dir, composed, parse(LocalSettings, self.params))


# In the place of Hydra's own, which was stored when its module was imported above. A YAML of this name would not do:
# Hydra takes one with the name of a stored node for a use of its old way to match schemas, and warns at every start.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="basic",
    node={"_target_": f"{InProcessLauncher.__module__}.{InProcessLauncher.__qualname__}"},
    provider="vlmbench",
)
