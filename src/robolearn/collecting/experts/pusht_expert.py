"""Demonstrates PushT: one straight push after the other, each tried in a second simulator first."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
from shapely.geometry import Point, Polygon

from robolearn.collecting.experts.expert import Demonstrator
from robolearn.collecting.experts.path_planning import Path, shortest_path
from robolearn.collecting.experts.push_physics import RADIUS, SUBSTEPS, BlockShape, SimulatedPush, State
from robolearn.errors import UserError, at_least
from robolearn.types import Depth, PositiveFloat, Weight

BOUNDS = (17.0, 17.0, 495.0, 495.0)
"""Where the agent may go: between the walls."""
ACCELERATION = 7.0
"""By how much the target's speed may grow or fall in a step, in px/step."""
MIDDLE = (256.0, 256.0)
"""Where the agent goes if it knows no better."""
WALKED = 3
"""Pushes of which the path there is tried too."""
NEAR = 8.0
"""Errors in px above which nothing is a success, so that the coverage need not be asked for."""
SUCCESS = -100.0
"""What counts as a success's error."""


@dataclass(frozen=True)
class Push:
    """A straight push: where the agent's centre starts, which way it goes, and how far."""

    start: tuple[float, float]
    direction: tuple[float, float]
    length: float
    error: float
    """The block's, afterwards, in px."""

    @property
    def end(self) -> tuple[float, float]:
        """Where the agent's centre stops."""
        return (self.start[0] + self.direction[0] * self.length, self.start[1] + self.direction[1] * self.length)


class PushTDemonstrator(Demonstrator):
    """Pushes the T home with straight pushes, walking around it in between.

    A push starts at one of the points around the outline, at right angles to it (the block is without friction, so
    only that part of a push moves it). Those that promise most for small motions are tried in a second simulator, the
    best few together with the path there, and the best of these is done. When no push helps, the first of the best
    pair of pushes is. Each push is planned from where the last one has ended, so that disturbances are corrected.

    Args:
        env: gym-pusht's environment.
        speed: Of the target between pushes, in px/step; people seldom move it faster than 27.
        push_speed: Of the target while pushing, in px/step.
        spacing: Between the points where a push may start, in px.
        clearance: Between the agent's edge and the block while walking around it, in px.
        tries: Pushes tried in the second simulator before one is chosen.

    Raises:
        UserError: The environment is not PushT, or a value can't be right.
    """

    def __init__(
        self,
        env: gym.Env,
        speed: PositiveFloat = 18.0,
        push_speed: PositiveFloat = 12.0,
        spacing: PositiveFloat = 10.0,
        clearance: Weight = 10.0,
        tries: Depth = 14,
    ) -> None:
        super().__init__(env)
        from gym_pusht.envs.pusht import PushTEnv  # here, since it opens pygame

        if not isinstance(env.unwrapped, PushTEnv):
            raise UserError(f"demonstrator=pusht demonstrates env=pusht, not {env.unwrapped}.", key="demonstrator")
        options = {"speed": speed, "push_speed": push_speed, "spacing": spacing, "tries": tries}
        for name, value in options.items():
            if not value > 0:
                raise UserError(f"demonstrator.{name}={value} must be above 0.", key=f"demonstrator.{name}")
        at_least(0, **{"demonstrator.clearance": clearance})
        self.speed, self.push_speed, self.spacing = float(speed), float(push_speed), float(spacing)
        self.clearance, self.tries = float(clearance), int(tries)
        self._targets: Iterator[tuple[float, float]] = iter(())

    def reset(self, rng: np.random.Generator) -> None:
        """Forget the last episode; each push is planned when its turn comes, and leaves nothing to chance."""
        pusht = self.env.unwrapped
        self.sandbox = SimulatedPush(pusht)
        self.outline = BlockShape(pusht)
        block = self.sandbox.block
        self._inertia = block.moment / block.mass
        self._cog = np.array(tuple(block.center_of_gravity))
        self._sites = self._push_sites()
        self._targets = iter(())
        self._target: tuple[float, float] | None = None

    def act(self) -> np.ndarray:
        """The target (2,) that continues the push, or starts the next one."""
        target = next(self._targets, None)
        if target is None:
            state = State.of(self.env.unwrapped)
            self._targets = iter(self._plan(state))
            target = next(self._targets)
        self._target = target
        return np.array(target, dtype=np.float32)

    def _plan(self, state: State) -> Path:
        """Targets up to the end of the next push."""
        error = self.outline.error(state.block, state.angle)
        fallback = None
        # Between the block and a wall there may only be room for less clearance; locked in, one has to shove.
        for clearance in (self.clearance, self.clearance / 2, 1.0, -RADIUS / 2, -RADIUS):
            pushes = self._best(state, self.tries, max(clearance, 1.0))
            targets = self._best_reachable(state, pushes, error - 0.3, clearance)
            if targets:
                return targets
            if fallback is None:
                pairs = self._pairs(state, pushes, max(clearance, 1.0))
                fallback = self._best_reachable(state, pairs, math.inf, clearance)
        return fallback or trapezoidal_trajectory([state.agent, MIDDLE], self.push_speed, 0.0)

    def _best_reachable(self, state: State, pushes: list[Push], limit: float, clearance: float) -> Path | None:
        """Of the first few pushes that can be reached, the best with the path there walked, as targets."""
        best, found, walked = limit, None, 0
        for push in pushes:
            if push.error > best or walked == WALKED:
                break
            targets = self._walk_and_push(state, push, clearance)
            if targets is None:
                continue
            walked += 1
            score = self._run(state, targets)
            if score < best:
                best, found = score, targets
        return found

    def _run(self, state: State, targets: Path) -> float:
        """The error after following targets, with a px for each 10 steps that it took; below 0 for success."""
        self.sandbox.set(state)
        block = self.sandbox.block
        error = math.inf
        for step, target in enumerate(targets):
            self.sandbox.step(target)
            error = self.outline.error(block.position, block.angle)
            if error < NEAR and self.sandbox.succeeded():
                return SUCCESS + 0.1 * step
        return error + 0.1 * len(targets)

    def _walk_and_push(self, state: State, push: Push, clearance: float) -> Path | None:
        path = shortest_path(state.agent, push.start, self.outline.polygon(state), RADIUS + clearance, BOUNDS)
        if path is None:
            return None
        walk = trapezoidal_trajectory([self._target or state.agent, *path], self.speed, self.push_speed)
        pushing = trapezoidal_trajectory([push.start, push.end], self.push_speed, 0.0, start_speed=self.push_speed)
        # The agent lags behind its target.
        return walk + pushing + [pushing[-1]] * 2

    def _push_sites(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Points of the outline and inward normals, both (2,), in the block's frame, that the agent can touch."""
        sites = []
        corners, shape = self.outline.corners, Polygon(self.outline.corners)
        for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            length = float(np.linalg.norm(b - a))
            along = (b - a) / length
            normal = np.array([along[1], -along[0]])
            if not shape.contains(Point(*((a + b) / 2 + normal))):
                normal = -normal
            count = max(2, math.ceil(length / self.spacing))
            for i in range(count):
                point = a + along * (3 + (length - 6) * i / (count - 1))
                if shape.distance(Point(*(point - normal * RADIUS))) > RADIUS - 1e-6:
                    sites.append((point, normal))
        return sites

    def _best(self, state: State, tries: int, clearance: float) -> list[Push]:
        """Single pushes from a state, those that end with the least error first."""
        missing = self.outline.missing(state)
        corners = self.outline.place(self.outline.corners, state.block, state.angle)
        cog = self.outline.place(self._cog[None], state.block, state.angle)[0]
        hopes = []
        gap = RADIUS + clearance + 0.5
        for point, normal in self._sites:
            p = self.outline.place(point[None], state.block, state.angle)[0]
            n = self.outline.place(normal[None], (0.0, 0.0), state.angle)[0]
            start = p - n * gap
            if not (BOUNDS[0] < start[0] < BOUNDS[2] and BOUNDS[1] < start[1] < BOUNDS[3]):
                continue
            arm = p - cog
            spin = (arm[0] * n[1] - arm[1] * n[0]) / self._inertia
            motion = n + spin * (corners - cog) @ np.array([[0, 1], [-1, 0]])
            gain = float((motion * missing).sum())
            if gain > 0:
                hopes.append((gain / math.sqrt(float((motion**2).sum())), tuple(start), tuple(n)))
        hopes.sort(reverse=True)
        return sorted((self._try(state, s, n) for _, s, n in hopes[:tries]), key=lambda push: push.error)

    def _try(self, state: State, start: tuple[float, float], direction: tuple[float, float]) -> Push:
        """The length at which a push is best."""
        self.sandbox.set(state.with_agent_at(start))
        agent, block = self.sandbox.agent, self.sandbox.block
        best, length, target = math.inf, 0.0, 0.0
        while target < 200:
            target += self.push_speed
            goal = (start[0] + target * direction[0], start[1] + target * direction[1])
            for _ in range(SUBSTEPS):
                self.sandbox.substep(goal)
                error = self.outline.error(block.position, block.angle)
                if error < best - 1e-6:
                    x, y = agent.position
                    best = error
                    length = (x - start[0]) * direction[0] + (y - start[1]) * direction[1]
            if error > best + 4:
                break
        return Push(start, direction, length, best)

    def _pairs(self, state: State, pushes: list[Push], clearance: float) -> list[Push]:
        """Pushes by what the best push after them would leave, also ones that make it worse for now."""
        pairs = []
        for push in pushes[:8]:
            for length in (push.length + 10, push.length + 25):
                longer = replace(push, length=length)
                self.sandbox.set(state.with_agent_at(push.start))
                for target in trapezoidal_trajectory([longer.start, longer.end], self.push_speed, 0.0):
                    self.sandbox.step(target)
                after = self._best(self.sandbox.state(), 4, clearance)
                if after:
                    pairs.append(replace(longer, error=after[0].error))
        return sorted(pairs, key=lambda push: push.error)


def trapezoidal_trajectory(path: Path, speed: float, end_speed: float, start_speed: float = 0.0) -> Path:
    """Points along a polyline, one a step, with a trapezoidal velocity profile.

    Args:
        path: The polyline (x, y); its first point is the start of the trajectory, and is left out.
        speed: The greatest distance between points, per step.
        end_speed: At the last point.
        start_speed: At the first point.
    """
    points = np.asarray(path, dtype=float)
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    total, done, current = float(lengths[-1]), 0.0, start_speed
    trajectory: Path = []
    while total - done > 1e-6:
        rest = total - done
        slow = math.sqrt(end_speed * end_speed + 2 * ACCELERATION * rest + ACCELERATION**2 / 4) - ACCELERATION / 2
        current = max(min(current + ACCELERATION, speed, slow), 2.0)
        done = total if current >= rest else done + current
        x, y = (float(np.interp(done, lengths, points[:, axis])) for axis in (0, 1))
        trajectory.append((x, y))
    return trajectory or [path[-1]]
