"""When to log, evaluate and save."""

from dataclasses import dataclass


@dataclass
class Intervals:
    """Updates from one log line, evaluation or checkpoint to the next; 0 or less is never.

    Args:
        log_freq: Between two lines of scalars.
        eval_freq: Between two evaluations; the last step is evaluated too, unless this is never.
        save_freq: Between two checkpoints; the last step is saved in any case.
        save_checkpoint: False writes no checkpoint at all.
    """

    log_freq: int
    eval_freq: int
    save_freq: int
    save_checkpoint: bool = True

    @staticmethod
    def is_due(freq: int, step: int) -> bool:
        """Whether something that happens every `freq` updates happens after `step` of them."""
        return freq > 0 and step % freq == 0

    def should_save(self, step: int, end_step: int) -> bool:
        """Whether the state after `step` of `end_step` updates is saved."""
        return self.save_checkpoint and (self.is_due(self.save_freq, step) or step == end_step)

    def should_evaluate(self, step: int, end_step: int) -> bool:
        """Whether the weights after `step` of `end_step` updates are evaluated."""
        return self.eval_freq > 0 and step > 0 and (self.is_due(self.eval_freq, step) or step == end_step)
