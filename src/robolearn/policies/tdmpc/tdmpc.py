"""TD-MPC (Hansen et al. 2022, arXiv:2203.04955) as FOWM learns it offline (Feng et al. 2023, arXiv:2310.16029)."""

import copy
from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from robolearn import rng
from robolearn.errors import UserError
from robolearn.normalize import NormalizationMode
from robolearn.policies.base import Policy, PolicySpec
from robolearn.policies.length_checks import check_n_action_steps, check_n_obs_steps
from robolearn.policies.tdmpc.planner import Planner, min_of_random_pair
from robolearn.policies.tdmpc.world_model import WorldModel, feature_map_size
from robolearn.types import Batch, Depth, Fraction, Kind, NonNegative, Size, Spec, Weight, Window

DEFAULT_NORMALIZATION: dict[Kind, NormalizationMode] = {
    "VISUAL": "IDENTITY",
    "STATE": "IDENTITY",
    "ENV": "IDENTITY",
    "ACTION": "MIN_MAX",
}


class TdmpcPolicy(Policy):
    """Learns latent dynamics, rewards, values and a policy from rewarded frames, and plans with them.

    Args:
        spec: Features of the dataset.
        n_obs_steps: Observed frames; must be 1.
        normalization_mapping: Normalisation of each kind of feature; ACTION must be MIN_MAX, because plans lie in
            [-1, 1].
        n_action_repeats: Times that the first action of a plan is executed.
        horizon: Steps of training sequences and plans, H.
        n_action_steps: Actions executed of each plan; more than 1 needs n_action_repeats=1 and use_mpc=true.
        image_encoder_hidden_dim: Channels of the image encoder.
        state_encoder_hidden_dim: Hidden width of the state encoders.
        latent_dim: Size of a latent state, Z.
        q_ensemble_size: Heads of the action value, E.
        mlp_dim: Hidden width of dynamics, rewards, values and policy.
        discount: Discount of rewards for each step.
        use_mpc: Plan; else act with the learned policy.
        cem_iterations: Iterations of the cross-entropy method.
        max_std: Initial and largest standard deviation of the sampled plans.
        min_std: Smallest one, and that of the noise on the learned policy's actions in planning.
        n_gaussian_samples: Plans sampled in each iteration.
        n_pi_samples: Plans of the learned policy.
        uncertainty_regularizer_coeff: Weight of the disagreement of the action values in the return of a plan.
        n_elites: Best plans that each iteration is fitted to.
        elite_weighting_temperature: Factor on their returns before the softmax that weights them.
        gaussian_mean_momentum: Momentum of the mean of the plans.
        max_random_shift_ratio: Largest shift of training images as a fraction of their size; 0: none.
        reward_coeff: Weight of the reward loss.
        expectile_weight: Expectile of the action values that the state value learns.
        value_coeff: Weight of the losses of both values.
        consistency_coeff: Weight of the loss of predicted latents.
        advantage_scaling: Factor on the advantage, whose exponential weights the policy's loss.
        pi_coeff: Weight of the policy's loss.
        temporal_decay_coeff: Weight of each step of a sequence relative to the one before.
        target_model_momentum: Momentum of the target model at each update.
        q_draws_with_replacement: Minima over two random action values may take one twice, as the reference does.
        warm_start_shift: Actions by which the last mean is shifted before the next search starts from it; null: as
            many as were executed since; the reference always shifts by 1.

    Raises:
        UserError: Options contradict each other or the spec; its key is the option's.
    """

    def __init__(
        self,
        spec: Spec,
        n_obs_steps: int = 1,
        normalization_mapping: Mapping[Kind, NormalizationMode] | None = None,
        n_action_repeats: Size = 2,
        horizon: Size = 5,
        n_action_steps: Size = 1,
        image_encoder_hidden_dim: Size = 32,
        state_encoder_hidden_dim: Size = 256,
        latent_dim: Size = 50,
        q_ensemble_size: Depth = 5,
        mlp_dim: Size = 512,
        discount: Fraction = 0.9,
        use_mpc: bool = True,
        cem_iterations: Depth = 6,
        max_std: Weight = 2.0,
        min_std: Weight = 0.05,
        n_gaussian_samples: Size = 512,
        n_pi_samples: Annotated[int, Interval(ge=0, le=65_536)] = 51,
        uncertainty_regularizer_coeff: Weight = 1.0,
        n_elites: Size = 50,
        elite_weighting_temperature: Weight = 0.5,
        gaussian_mean_momentum: Fraction = 0.1,
        max_random_shift_ratio: Fraction = 0.0476,
        reward_coeff: Weight = 0.5,
        expectile_weight: Fraction = 0.9,
        value_coeff: Weight = 0.1,
        consistency_coeff: Weight = 20.0,
        advantage_scaling: Weight = 3.0,
        pi_coeff: Weight = 0.5,
        temporal_decay_coeff: Weight = 0.5,
        target_model_momentum: Fraction = 0.995,
        q_draws_with_replacement: bool = False,
        warm_start_shift: NonNegative | None = None,
    ) -> None:
        super().__init__()
        mapping = normalization_mapping or DEFAULT_NORMALIZATION
        check_n_obs_steps("TD-MPC", n_obs_steps)
        _check_action_scale(mapping)
        _check_steps(n_action_steps, n_action_repeats, use_mpc, horizon)
        _check_search(min_std, max_std, n_elites, n_gaussian_samples + n_pi_samples)
        if use_mpc:
            _check_ensemble(q_ensemble_size, uncertainty_regularizer_coeff)
        _check_spec(spec)

        steps = tuple(range(horizon))
        self.spec = PolicySpec(
            window=Window(observation=(*steps, horizon), action=steps, reward=steps),
            n_action_steps=max(n_action_steps, n_action_repeats),
            normalization_mapping=mapping,
            needs_reward=True,
        )
        self.keys, self.cameras = list(spec.observation), list(spec.of_kind("VISUAL"))
        self.n_action_repeats = n_action_repeats
        self.max_random_shift_ratio = max_random_shift_ratio
        self.discount, self.expectile_weight, self.advantage_scaling = discount, expectile_weight, advantage_scaling
        self.reward_coeff, self.value_coeff, self.consistency_coeff = reward_coeff, value_coeff, consistency_coeff
        self.pi_coeff, self.temporal_decay_coeff = pi_coeff, temporal_decay_coeff
        self.target_model_momentum = target_model_momentum
        self.q_draws_with_replacement = q_draws_with_replacement
        self.warm_start_shift = self.spec.n_action_steps if warm_start_shift is None else warm_start_shift

        self.model = WorldModel(
            spec, latent_dim, image_encoder_hidden_dim, state_encoder_hidden_dim, mlp_dim, q_ensemble_size
        )
        self.target = copy.deepcopy(self.model).requires_grad_(False)
        self.planner = None
        if use_mpc:
            self.planner = Planner(
                horizon=horizon,
                action_dim=spec.action.shape[0],
                cem_iterations=cem_iterations,
                max_std=max_std,
                min_std=min_std,
                n_gaussian_samples=n_gaussian_samples,
                n_pi_samples=n_pi_samples,
                n_elites=n_elites,
                elite_weighting_temperature=elite_weighting_temperature,
                gaussian_mean_momentum=gaussian_mean_momentum,
                discount=discount,
                uncertainty_regularizer_coeff=uncertainty_regularizer_coeff,
                draws_with_replacement=q_draws_with_replacement,
            )

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Consistency, reward, both values and the policy, over sequences (sections 3.1 and 3.2 of FOWM).

        Padded steps do not count.

        Raises:
            UserError: The dataset has no rewards.
        """
        if "next.reward" not in batch:
            raise UserError(
                "policy=tdmpc learns from rewards, but the dataset has no next.reward",
                key="dataset",
                fix="choose another one",
            )
        # Time first, (T, B, ...): the model steps through it.
        actions, rewards = batch["action"].transpose(0, 1), batch["next.reward"].float().transpose(0, 1)
        observations = {key: batch[key].transpose(0, 1) for key in self.keys}
        for key in self.cameras:
            observations[key] = shift_images(observations[key], self.max_random_shift_ratio)
        following = {key: value[1:] for key, value in observations.items()}
        observed = ~batch[f"{self.keys[0]}_is_pad"].transpose(0, 1)
        valid = observed[0] & ~batch["action_is_pad"].transpose(0, 1)
        rewarded = ~batch["next.reward_is_pad"].transpose(0, 1)

        latents = [self.model.encode({key: value[0] for key, value in observations.items()})]
        predicted_rewards = []
        for action in actions:
            latent, reward = self.model.step(latents[-1], action)
            latents.append(latent)
            predicted_rewards.append(reward)
        start, predicted = torch.stack(latents[:-1]), torch.stack(latents[1:])
        q_values, values = self.model.action_values(start, actions), self.model.value(start)

        with torch.no_grad():
            target_latents = self.target.encode(following)
            # Equation 3 of FOWM: only actions of the data are valued; its code takes the model, not the target, here.
            q_targets = rewards + self.discount * self.model.value(self.model.encode(following))
            target_qs = self.target.action_values(start, actions)
            v_targets = min_of_random_pair(target_qs, self.q_draws_with_replacement)
            advantages = min_of_random_pair(target_qs, self.q_draws_with_replacement) - values
            importance = (advantages * self.advantage_scaling).exp().clamp(max=100.0)

        decay = self.temporal_decay_coeff ** torch.arange(len(actions), device=actions.device).unsqueeze(-1)
        shortfall = v_targets - values
        expectile = torch.where(shortfall > 0, self.expectile_weight, 1 - self.expectile_weight)
        imitation = (self.model.act(start.detach()) - actions).square().sum(-1)
        errors = {
            "consistency_loss": (predicted - target_latents).square().mean(-1) * valid * observed[1:],
            "reward_loss": (torch.stack(predicted_rewards) - rewards).square() * valid * rewarded,
            "Q_value_loss": (q_values - q_targets).square().sum(0) * valid * rewarded * observed[1:],
            "V_value_loss": expectile * shortfall.square() * valid,
            "pi_loss": importance * imitation * valid,
        }
        # Sums over time; the policy's loss alone is a mean, as in FOWM's code.
        losses = {name: (decay * error).sum(0).mean() for name, error in errors.items()}
        losses["pi_loss"] = losses["pi_loss"] / len(actions)
        loss = (
            self.consistency_coeff * losses["consistency_loss"]
            + self.reward_coeff * losses["reward_loss"]
            + self.value_coeff * (losses["Q_value_loss"] + losses["V_value_loss"])
            + self.pi_coeff * losses["pi_loss"]
        )
        metrics = {**losses, "Q": q_values.mean(), "V": values.mean()}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        """A planned chunk (B, T, A), see `plan`; the state's ``mean`` is where the next search starts."""
        chunk, mean = self.plan(observation, state.get("mean"))
        return chunk, {} if mean is None else {"mean": mean}

    def plan(self, observation: Batch, mean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Search a plan from the newest frame.

        Args:
            observation: Every key (B, 1, ...).
            mean: The mean (H, B, A) that the previous call returned; None: the search starts from zeros.

        Returns:
            A chunk (B, T, A) in [-1, 1], and the mean (H, B, A) to start the next search from, None without MPC.
        """
        latent = self.model.encode({key: observation[key][:, -1] for key in self.keys})
        if self.planner is None:
            chunk = self.model.act(latent).unsqueeze(1)
        else:
            plans, mean = self.planner(self.model, latent, mean)
            shift = min(self.warm_start_shift, len(mean))
            mean = torch.cat([mean[shift:], torch.zeros_like(mean[:shift])])
            chunk = plans.transpose(0, 1)
        if self.n_action_repeats > 1:
            chunk = chunk[:, :1].expand(-1, self.n_action_repeats, -1)
        return chunk.clamp(-1, 1), mean

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the target model towards the model, by an exponential moving average."""
        targets: list[Tensor] = list(self.target.parameters())
        models: list[Tensor] = list(self.model.parameters())
        weight = 1 - self.target_model_momentum
        torch._foreach_lerp_(targets, models, weight=weight)  # pyright: ignore[reportPrivateImportUsage]


def shift_images(images: Tensor, ratio: float) -> Tensor:
    """Shift each image by a random number of whole pixels; the edges are repeated.

    The augmentation of DrQ-v2 (Yarats et al. 2021, arXiv:2107.09645), with shifts sampled on the device.

    Args:
        images: (T, B, C, S, S).
        ratio: Largest shift as a fraction of S.
    """
    size = images.shape[-1]
    largest = round(ratio * size)
    if not largest:
        return images
    flat = images.flatten(0, 1)
    shifts = rng.randint(2 * largest + 1, (*images.shape[:2], 1, 1, 2), images.device, dim=1).flatten(0, 1)
    pixels = torch.arange(size, device=images.device) - largest
    columns = (pixels + shifts[:, 0, :, 0]).clamp(0, size - 1)
    rows = (pixels + shifts[:, 0, :, 1]).clamp(0, size - 1)
    shifted = flat.gather(2, rows[:, None, :, None].expand_as(flat))
    return shifted.gather(3, columns[:, None, None, :].expand_as(flat)).view(images.shape)


def _check_action_scale(mapping: Mapping[Kind, NormalizationMode]) -> None:
    if (mode := mapping.get("ACTION", "IDENTITY")) != "MIN_MAX":
        raise UserError(
            f"policy.normalization_mapping.ACTION={mode} must be MIN_MAX, because actions are searched in [-1, 1].",
            key="policy.normalization_mapping.ACTION",
        )


def _check_steps(n_action_steps: int, n_action_repeats: int, use_mpc: bool, horizon: int) -> None:
    if n_action_steps == 1:
        return
    if n_action_repeats != 1:
        raise UserError(
            f"policy.n_action_steps={n_action_steps} executes several actions of a plan, so that the first cannot be "
            "repeated",
            key="policy.n_action_steps",
            fix=f"set policy.n_action_repeats=1 (now {n_action_repeats}) or policy.n_action_steps=1",
        )
    if not use_mpc:
        raise UserError(
            f"policy.n_action_steps={n_action_steps} needs a plan",
            key="policy.n_action_steps",
            fix="set policy.use_mpc=true or policy.n_action_steps=1",
        )
    check_n_action_steps(n_action_steps, horizon, "policy.horizon")


def _check_search(min_std: float, max_std: float, n_elites: int, n_samples: int) -> None:
    if min_std > max_std:
        raise UserError(
            f"policy.min_std={min_std} must not be more than policy.max_std={max_std}.", key="policy.min_std"
        )
    if n_elites > n_samples:
        raise UserError(
            f"policy.n_elites={n_elites} is more than the {n_samples} plans of policy.n_gaussian_samples and "
            "policy.n_pi_samples together",
            key="policy.n_elites",
            fix="lower it",
        )


def _check_ensemble(q_ensemble_size: int, uncertainty_coeff: float) -> None:
    if q_ensemble_size == 1 and uncertainty_coeff > 0:
        raise UserError(
            "policy.q_ensemble_size=1 has no disagreement to plan with",
            key="policy.q_ensemble_size",
            fix="raise it or set policy.uncertainty_regularizer_coeff=0",
        )


def _check_spec(spec: Spec) -> None:
    cameras = spec.of_kind("VISUAL")
    if not spec.observation:
        raise UserError("policy=tdmpc needs an observation, but the dataset has no key 'observation.*'.", key="policy")
    if len(cameras) > 1:
        raise UserError(
            f"policy=tdmpc takes one camera, the dataset has {', '.join(cameras)}",
            key="dataset.exclude",
            fix=f"set dataset.exclude=[{','.join(list(cameras)[1:])}], say",
        )
    for key, feature in cameras.items():
        _, height, width = feature.shape
        if height != width:
            raise UserError(
                f"policy=tdmpc takes square images, those of {key} are {height} x {width} pixels",
                key=key,
                fix=f"choose another dataset, or set dataset.exclude=[{key}] to learn from its other features",
            )
        if feature_map_size(height) < 1:
            raise UserError(
                f"policy=tdmpc needs larger images: its four convolutions leave nothing of the {height} x {width} "
                f"pixels of {key}.",
                key=key,
            )
