"""Planning in a latent world model: MPPI with the cross-entropy method (TD-MPC, algorithm 1) for many plans at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robolearn import rng
from robolearn.policies.nn.residual_vq import sample
from robolearn.policies.tdmpc.world_model import WorldModel


@dataclass(frozen=True)
class Planner:
    """Searches the sequence of actions of the highest estimated return.

    Args:
        horizon: Actions of a plan, H.
        action_dim: Size of an action, A.
        cem_iterations: Iterations of sampling and fitting.
        max_std: Initial standard deviation, and its upper bound.
        min_std: Its lower bound, and the standard deviation of the noise on the learned policy's actions.
        n_gaussian_samples: Plans sampled in each iteration.
        n_pi_samples: Plans of the learned policy, made once and compared in each iteration.
        n_elites: Best plans that the next iteration is fitted to.
        elite_weighting_temperature: Factor on their returns before the softmax that weights them.
        gaussian_mean_momentum: Momentum of the mean.
        discount: Discount of rewards for each step.
        uncertainty_regularizer_coeff: Weight of the disagreement of the action values, subtracted from the return.
        draws_with_replacement: The two heads of the terminal value may be one head twice.
    """

    horizon: int
    action_dim: int
    cem_iterations: int
    max_std: float
    min_std: float
    n_gaussian_samples: int
    n_pi_samples: int
    n_elites: int
    elite_weighting_temperature: float
    gaussian_mean_momentum: float
    discount: float
    uncertainty_regularizer_coeff: float
    draws_with_replacement: bool = False

    def __call__(self, model: WorldModel, latent: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Search a plan for each latent.

        Args:
            model: Predicts latents, rewards and values.
            latent: Where the plans start (B, Z).
            mean: Mean (H, B, A) to start the search from; None: zeros.

        Returns:
            Plans (H, B, A) sampled from the elites, and the mean (H, B, A) of the last iteration.
        """
        policy_plans = self.policy_trajectories(model, latent)
        batch = len(latent)
        start = latent.expand(self.n_gaussian_samples + self.n_pi_samples, *latent.shape)
        if mean is None:
            mean = torch.zeros(self.horizon, batch, self.action_dim, device=latent.device)
        std = torch.full_like(mean, self.max_std)
        elites = weights = policy_plans  # replaced in the first iteration
        for _ in range(self.cem_iterations):
            shape = (self.horizon, self.n_gaussian_samples, batch, self.action_dim)
            noise = torch.randn(shape, device=latent.device)
            sampled = (mean.unsqueeze(1) + std.unsqueeze(1) * noise).clamp(-1, 1)
            plans = torch.cat([sampled, policy_plans], dim=1)
            returns = self.returns(model, start, plans).nan_to_num(0)
            best = returns.topk(self.n_elites, dim=0)
            elites = plans.take_along_dim(best.indices[None, :, :, None], dim=1)
            # Equation 4 of TD-MPC, with weights that sum to 1.
            weights = (self.elite_weighting_temperature * best.values).softmax(dim=0)
            weighting = weights[None, :, :, None]
            fitted = (weighting * elites).sum(1)
            std = (weighting * (elites - fitted.unsqueeze(1)) ** 2).sum(1).sqrt().clamp(self.min_std, self.max_std)
            mean = self.gaussian_mean_momentum * mean + (1 - self.gaussian_mean_momentum) * fitted
        chosen = sample(weights.T)
        return elites.take_along_dim(chosen[None, None, :, None], dim=1).squeeze(1), mean

    def policy_trajectories(self, model: WorldModel, latent: Tensor) -> Tensor:
        """Plans (H, n_pi_samples, B, A) of the learned policy, with noise."""
        if not self.n_pi_samples:
            return torch.zeros(self.horizon, 0, len(latent), self.action_dim, device=latent.device)
        latents = latent.expand(self.n_pi_samples, *latent.shape)
        actions = []
        for _ in range(self.horizon):
            actions.append(model.act(latents, self.min_std).float())
            latents = model.next_latent(latents, actions[-1])
        return torch.stack(actions)

    def returns(self, model: WorldModel, latent: Tensor, plans: Tensor) -> Tensor:
        """Estimated returns (N, B) of plans (H, N, B, A) from latents (N, B, Z): equation 4 of FOWM."""
        total, discount = torch.zeros(latent.shape[:-1], device=latent.device), 1.0
        for action in plans:
            uncertainty = 0.0
            if self.uncertainty_regularizer_coeff:
                uncertainty = self.uncertainty(model.action_values(latent, action))
            latent, reward = model.step(latent, action)
            total = total + discount * (reward - uncertainty)
            discount *= self.discount
        values = model.action_values(latent, model.act(latent, self.min_std))
        total = total + discount * min_of_random_pair(values, self.draws_with_replacement)
        if self.uncertainty_regularizer_coeff:
            total = total - discount * self.uncertainty(values)
        return total.float()

    def uncertainty(self, values: Tensor) -> Tensor:
        """The weighted standard deviation of the heads' values (E, *)."""
        return self.uncertainty_regularizer_coeff * values.std(0)


def min_of_random_pair(values: Tensor, replacement: bool) -> Tensor:
    """The lower of the values (*) of two random heads, or of all where there are at most two (FOWM, appendix C).

    Args:
        values: Of all heads (E, *).
        replacement: The same head may be drawn twice.
    """
    heads = len(values)
    if heads > 2:
        if replacement:
            chosen = rng.randint(heads, (2,), values.device, dim=None)
        else:
            chosen = rng.rand((heads,), values.device, dim=None).topk(2).indices
        values = values[chosen]
    return values.amin(0)
