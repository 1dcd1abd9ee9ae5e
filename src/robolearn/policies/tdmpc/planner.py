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
        action_dim: Numbers of an action, A.
        cem_iterations: Rounds of sampling and refitting.
        max_std: Deviation that the search starts with, and its upper bound.
        min_std: Its lower bound, and the deviation of the noise on the learnt policy's actions.
        n_gaussian_samples: Plans drawn in each round.
        n_pi_samples: Plans of the learnt policy, made once and compared in each round.
        n_elites: Best plans that the next round is fitted to.
        elite_weighting_temperature: Factor on their returns before the softmax that weighs them.
        gaussian_mean_momentum: Share of the previous round in the mean.
        discount: Of rewards, for each step.
        uncertainty_regularizer_coeff: Weight of the action values' disagreement, subtracted from the return.
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
        """Plans (H, B, A) from latents (B, Z), and the means (H, B, A) they were drawn around.

        Args:
            model: Predicts and values.
            latent: Where the plans start.
            mean: Means (H, B, A) to start the search from; None: zeros.
        """
        learnt = self.policy_trajectories(model, latent)
        batch = len(latent)
        start = latent.expand(self.n_gaussian_samples + self.n_pi_samples, *latent.shape)
        if mean is None:
            mean = torch.zeros(self.horizon, batch, self.action_dim, device=latent.device)
        std = torch.full_like(mean, self.max_std)
        elites = weights = learnt  # replaced in the first round
        for _ in range(self.cem_iterations):
            shape = (self.horizon, self.n_gaussian_samples, batch, self.action_dim)
            noise = torch.randn(shape, device=latent.device)
            drawn = (mean.unsqueeze(1) + std.unsqueeze(1) * noise).clamp(-1, 1)
            plans = torch.cat([drawn, learnt], dim=1)
            returns = self.returns(model, start, plans).nan_to_num(0)
            best = returns.topk(self.n_elites, dim=0)
            elites = plans.take_along_dim(best.indices[None, :, :, None], dim=1)
            # Equation 4 of TD-MPC, with weights that sum to 1.
            weights = (self.elite_weighting_temperature * best.values).softmax(dim=0)
            shares = weights[None, :, :, None]
            fitted = (shares * elites).sum(1)
            std = (shares * (elites - fitted.unsqueeze(1)) ** 2).sum(1).sqrt().clamp(self.min_std, self.max_std)
            mean = self.gaussian_mean_momentum * mean + (1 - self.gaussian_mean_momentum) * fitted
        chosen = sample(weights.T)
        return elites.take_along_dim(chosen[None, None, :, None], dim=1).squeeze(1), mean

    def policy_trajectories(self, model: WorldModel, latent: Tensor) -> Tensor:
        """Plans (H, n_pi_samples, B, A) of the learnt policy, with noise."""
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
            doubt = self.uncertainty(model.action_values(latent, action)) if self.uncertainty_regularizer_coeff else 0.0
            latent, reward = model.step(latent, action)
            total = total + discount * (reward - doubt)
            discount *= self.discount
        values = model.action_values(latent, model.act(latent, self.min_std))
        total = total + discount * min_of_random_pair(values, self.draws_with_replacement)
        if self.uncertainty_regularizer_coeff:
            total = total - discount * self.uncertainty(values)
        return total.float()

    def uncertainty(self, values: Tensor) -> Tensor:
        """How much the heads' values (E, *) disagree, weighted."""
        return self.uncertainty_regularizer_coeff * values.std(0)


def min_of_random_pair(values: Tensor, replacement: bool) -> Tensor:
    """The lower of two random heads' values, (*) of (E, *); of all where there are no more than two.

    FOWM, appendix C; the heads are drawn on the device.
    """
    heads = len(values)
    if heads > 2:
        if replacement:
            chosen = rng.randint(heads, (2,), values.device, dim=None)
        else:
            chosen = rng.rand((heads,), values.device, dim=None).topk(2).indices
        values = values[chosen]
    return values.amin(0)
