"""Rules about observed frames and executed actions that several policies share."""

from robolearn.errors import UserError


def check_n_obs_steps(policy: str, n_obs_steps: int) -> None:
    """A policy that acts on one frame observes one.

    Args:
        policy: Its name, for the message.
        n_obs_steps: Observed frames.

    Raises:
        UserError: They are more than one.
    """
    if n_obs_steps != 1:
        raise UserError(
            f"policy.n_obs_steps={n_obs_steps} must be 1, because {policy} acts on the newest frame alone.",
            key="policy.n_obs_steps",
        )


def check_n_action_steps(n_action_steps: int, length: int, key: str = "policy.chunk_size") -> None:
    """No more actions are executed than are predicted.

    Args:
        n_action_steps: Actions executed of each chunk.
        length: Actions of a chunk.
        key: The option that gives the length.

    Raises:
        UserError: They are more.
    """
    if n_action_steps > length:
        raise UserError(
            f"policy.n_action_steps={n_action_steps} is more than the {key}={length} actions predicted",
            key="policy.n_action_steps",
            fix=f"lower it or raise {key}",
        )
