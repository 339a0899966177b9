"""A trial of a sweep that falls behind the others ends early, on all its ranks together."""

import json
import os
import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.trial import Trial

from scaledl.distributed import group
from scaledl.sweep.storage import OUTAGE, TRIAL, connect


class Pruning(pl.Callback):
    """Rank 0 tells the sweep's study what each validation gave, and asks whether to go on; all ranks hear the answer.

    The n-th validation is the pruner's step n, whatever the interval. Outside a sweep this does nothing.

    Args:
        monitor: the metric of the validation.
        pruner: who decides.

    Raises:
        ValueError: the validation has no such metric.
    """

    def __init__(self, monitor: str, pruner: BasePruner):
        self.monitor, self.pruner = monitor, pruner
        self.outcome: str | None = None  # the run's status, if it is this that ends it
        self._trial: Trial | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        every = max(1, int(trainer.val_check_interval) // trainer.accumulate_grad_batches)
        self.judge(trainer.callback_metrics, -(-trainer.global_step // every), trainer.global_step, trainer.max_steps)
        trainer.should_stop |= self.outcome is not None

    def judge(self, metrics: Mapping[str, Any], validation: int, step: int, max_steps: int) -> None:
        """Tell what the n-th validation gave; `outcome` says whether the run ends with it, on all ranks.

        Raises:
            ValueError: it has no such metric.
        """
        if TRIAL not in os.environ:
            return
        if self.monitor not in metrics:
            known = ", ".join(name for name in metrics if name.startswith("val/"))
            raise ValueError(
                f"callbacks.pruning.monitor={self.monitor} is no metric of the validation; there are: {known}"
            )
        behind = group.agreed(lambda: self._behind(float(metrics[self.monitor]), validation))
        if behind and step < max_steps:
            self.outcome = "pruned"
            if group.rank() == 0:
                warnings.warn(f"step {step}: pruned, for it falls behind the sweep's others", stacklevel=2)

    def _behind(self, value: float, validation: int) -> bool:
        try:
            if self._trial is None:
                told = json.loads(os.environ[TRIAL])
                study = optuna.load_study(
                    study_name=told["study"], storage=connect(told["storage"]), pruner=self.pruner
                )
                self._trial = Trial(study, told["id"])
            try:
                return self._asked(value, validation)
            except UpdateFinishedTrialError:  # its worker was lost: another one waits for this launch now
                self._trial = _latest_attempt(self._trial)
                return self._asked(value, validation)
        except UpdateFinishedTrialError:  # and that one's place is filled
            return False
        except (*OUTAGE, OSError) as error:
            warnings.warn(
                f"the sweep's storage does not answer, so this trial goes on: {type(error).__name__}", stacklevel=2
            )
            return False

    def _asked(self, value: float, validation: int) -> bool:
        assert self._trial is not None
        with warnings.catch_warnings():  # after a resume the step may be there already
            warnings.simplefilter("ignore")
            self._trial.report(value, validation)
        return self._trial.should_prune()


def _latest_attempt(trial: Trial) -> Trial:
    followers = {
        each.user_attrs["follows"]: each
        for each in reversed(trial.study.get_trials(deepcopy=False))
        if "follows" in each.user_attrs
    }
    number, found = trial.number, trial._trial_id
    while number in followers:
        number, found = followers[number].number, followers[number]._trial_id
    return Trial(trial.study, found)
