"""A Weights & Biases run of a training run: the same one after a resume online, one of the same group offline."""

import html
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.utilities import rank_zero_only

from scaledl import checkpoint
from scaledl.loggers.base import RunLogger, in_a_line, told
from scaledl.loggers.drawn import TEXTS, Drawn, Watched

FLUSH_SECONDS = 1  # what a kill may lose; the client's own default is 15
AXES = ("step", "samples_seen", "tokens_seen")  # in each row, so that a panel can have any of them as its x axis


class Wandb(RunLogger):
    """Metrics over `step`, config, code state, pictures, texts and the result, from rank 0.

    Offline the client cannot go on with a run, so each attempt is one of its own, numbered in `attempt`, in the run's
    group; of a sweep's trial the group is the sweep. An attempt that cannot begin online is logged offline. No error of
    the client ends a training.

    Args:
        project: on the server.
        run_dir: its `wandb/` holds what is logged.
        run_name: what the run is called, `<experiment>/<run_id>`.
        id: of the run that is continued; null: a new one.
        offline: log beside the run only; `wandb sync` sends it later.
        entity: the team; null: the account's own.
        tags: to find it by, besides the family.
        group: null: the sweep, else the run itself.
        monitor: the metric whose best value stands in the summary.
        mode: whether its smallest or largest value is best.
        checkpoints: keep the best and the last checkpoint as artifacts when the run has completed.
    """

    def __init__(
        self,
        project: str,
        run_dir: str,
        run_name: str,
        id: str | None = None,
        offline: bool = True,
        entity: str | None = None,
        tags: list[str] | None = None,
        group: str | None = None,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        checkpoints: bool = False,
    ):
        super().__init__()
        self.project, self.run_dir, self.run_name, self.entity = project, Path(run_dir), run_name, entity
        self.id, self.offline = id, offline
        self.tags = [run_name.partition("/")[0], *(tags or [])]
        self.group = group or _sweep_of(self.run_dir) or run_name
        self.monitor, self.mode, self.checkpoints = monitor, mode, checkpoints
        self._run: Any = None
        self._watched: Watched | None = None
        self._axes: dict[str, float] = {}

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        return self.id

    @property
    def experiment(self) -> Any:
        """The client's run; on rank 0, once the training has begun."""
        return self._run

    def begin(self, step: int, facts: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_DATA_DIR", str(self.run_dir.resolve()))  # else artifacts go through the home
        attempt = 1 + sum(1 for _ in self.run_dir.glob("wandb/*run-*-*/files"))  # one that failed to begin has none
        about = {"facts": facts, "attempt": attempt, "begins_at_step": step}
        self._watched = Watched(self.run_dir)
        for offline in [False, True][self.offline :]:
            try:
                self._run = self._begun(about, offline)
                return
            except Exception as error:
                instead = "nothing is logged to it" if offline else "this attempt is logged offline, for `wandb sync`"
                place = "offline" if offline else "online"
                warnings.warn(f"Weights & Biases cannot log {place}, so {instead}: {in_a_line(error)}", stacklevel=2)

    def _begun(self, about: dict[str, Any], offline: bool) -> Any:
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=self.run_dir,
            id=self.id if offline == self.offline else None,
            name=self.run_name,
            group=self.group,
            job_type="train",
            tags=self.tags,
            config=about,
            mode="offline" if offline else "online",
            resume=None if offline or self.id is None else "allow",
            allow_val_change=True,
            settings=wandb.Settings(x_transaction_log_flush_interval=FLUSH_SECONDS),
        )
        run.define_metric("*", step_metric="step")
        run.define_metric(self.monitor, step_metric="step", summary=f"{self.mode},last")
        return run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        if self._run is not None:
            with told("the config was not logged to Weights & Biases"):
                self._run.config.update(params, allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._run is None:
            return
        self._axes |= {name: metrics[name] for name in AXES if name in metrics} | {"step": step or 0}
        with told("metrics were not logged to Weights & Biases"):
            self._run.log(self._axes | metrics)
        if any(name.startswith("val/") for name in metrics):
            self._send(step or 0)

    def end(self, summary: dict[str, Any]) -> None:
        if self._run is None:
            return
        self._send(summary["steps"])
        with told("the result was not logged to Weights & Biases"):
            self._run.summary.update({f"run/{name}": value for name, value in summary.items() if name != "metrics"})
        if self.checkpoints and summary["status"] == "completed":
            with told("checkpoints were not kept by Weights & Biases"):
                self._keep_checkpoints()
        with told("Weights & Biases was not told that the run has ended"):
            if summary["status"] == "preempted":
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if summary["status"] in ("completed", "pruned") else 1)
        self._run = None

    def _send(self, step: int) -> None:
        found: list[Drawn] = []
        with told("new pictures were not found"):
            found = self._watched.new() if self._watched else []
        for each in found:
            at = step if each.step is None else each.step
            axes = self._axes if at == self._axes.get("step") else {"step": at}  # the samples of that step are past
            with told(f"{each.path} was not logged to Weights & Biases"):
                self._run.log({**axes, each.name: _media(each)})

    def _keep_checkpoints(self) -> None:
        best, last = checkpoint.best(self.run_dir), checkpoint.latest(self.run_dir)
        for folder in {best, last} - {None}:
            aliases = ["best"] * (folder == best) + ["latest"] * (folder == last)
            artifact = wandb.Artifact(f"checkpoint-{self.run_dir.name}", "model", metadata={"folder": str(folder)})
            artifact.add_dir(str(folder), policy="immutable")  # no second copy: the run has ended
            self._run.log_artifact(artifact, aliases=aliases)


def _media(each: Drawn) -> Any:
    if each.path.suffix in TEXTS:
        return wandb.Html(f"<pre>{html.escape(each.path.read_text(encoding='utf-8'))}</pre>", inject=False)
    return wandb.Video(str(each.path), format="gif") if each.path.suffix == ".gif" else wandb.Image(str(each.path))


def _sweep_of(run_dir: Path) -> str | None:
    """The name of the sweep whose trial lies in `run_dir`, by the names of their folders."""
    return run_dir.parent.name if run_dir.name.startswith("trial_") else None
