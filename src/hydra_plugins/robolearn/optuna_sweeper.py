"""Optuna's sweeper, for studies that are resumed: unfinished trials run first, and trials are counted in all."""

import json
import logging
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper

try:
    from hydra_plugins.hydra_optuna_sweeper import optuna_sweeper

    Base: Any = optuna_sweeper.OptunaSweeper
except ImportError:  # an extra, whose lack is told where the command line is checked
    Base = Sweeper

log = logging.getLogger(__name__)


class OptunaSweeper(Base):  # pyright: ignore[reportGeneralTypeIssues]
    """The sweeper of hydra-optuna-sweeper over a study on disk.

    A launcher that died left trials running, and some may have failed. Their parameters are asked for again before
    any new ones; the runs are known by them and go on, or are finished and tell their metric at once.
    """

    def sweep(self, arguments: list[str]) -> None:
        """Run what is left of the study."""
        inner = self.sweeper
        Path(str(inner.sweep_dir)).mkdir(parents=True, exist_ok=True)
        if inner.storage is not None:
            self._take_up(inner)
        inner.sweep(arguments)

    def _take_up(self, inner: Any) -> None:
        import optuna
        from optuna.trial import TrialState

        study = optuna.create_study(
            study_name=inner.study_name,
            storage=inner.storage,
            directions=inner._get_directions(),
            load_if_exists=True,
        )
        trials = study.get_trials()
        if not trials:
            return
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        known = {_key(trial) for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.WAITING)}
        again = {_key(trial): trial for trial in trials if trial.state in (TrialState.RUNNING, TrialState.FAIL)}
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
        left = [trial.params for key, trial in again.items() if key not in known and trial.params]
        for params in left:
            study.enqueue_trial(params)
        inner.n_trials = max(0, inner.n_trials - len(complete))
        inner.job_idx = len(trials)
        if hasattr(inner.sampler, "reseed_rng"):
            # With its first seed it would draw what it drew before.
            inner.sampler.reseed_rng()
        log.info(
            "The study has %d finished trials; %d more are to come, %d of them begun before.",
            *(len(complete), inner.n_trials, len(left)),
        )


def _key(trial: Any) -> str:
    return json.dumps(trial.params or trial.system_attrs.get("fixed_params", {}), sort_keys=True)
