"""PushT's physics apart from the environment: what a push would do."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from shapely.geometry import Polygon

SUBSTEPS = 10
DT = 0.01
STIFFNESS, DAMPING = 100.0, 20.0
RADIUS = 15.0
"""The agent's, in px."""


@dataclass(frozen=True)
class State:
    """Agent and block, in px, px/s and rad."""

    agent: tuple[float, float]
    agent_velocity: tuple[float, float]
    block: tuple[float, float]
    angle: float
    block_velocity: tuple[float, float]
    spin: float

    @staticmethod
    def of(pusht: Any) -> "State":
        """The state of a gym-pusht environment."""
        agent, block = pusht.agent, pusht.block
        return State(
            tuple(agent.position),
            tuple(agent.velocity),
            tuple(block.position),
            float(block.angle),
            tuple(block.velocity),
            float(block.angular_velocity),
        )

    def with_agent_at(self, agent: tuple[float, float]) -> "State":
        """The same with everything at rest and the agent elsewhere."""
        return State(agent, (0.0, 0.0), self.block, self.angle, (0.0, 0.0), 0.0)


class BlockShape:
    """The T's corners, and how far it is from its goal.

    Attributes:
        corners: The outline's eight corners in the block's frame, (8, 2), in order around it.
        centre: Their mean, (2,).
        spread: Their mean squared distance from it.
    """

    def __init__(self, pusht: Any) -> None:
        bar, stem = (np.array([tuple(v) for v in shape.get_vertices()]) for shape in pusht._block_shapes)
        union = Polygon(bar).convex_hull.union(Polygon(stem).convex_hull)
        # Without the points where the two parts meet, from a corner that is always the same.
        self.corners = shapely.get_coordinates(union.simplify(1e-9).normalize())[:-1]
        self.centre = self.corners.mean(axis=0)
        self.spread = float(((self.corners - self.centre) ** 2).sum(axis=1).mean())
        x, y, self._goal_angle = (float(v) for v in pusht.goal_pose)
        self._goal = self.place(self.centre[None], (x, y), self._goal_angle)[0]

    @staticmethod
    def place(points: np.ndarray, position: tuple[float, float], angle: float) -> np.ndarray:
        """Points (N, 2) of the block's frame, in the world's."""
        c, s = math.cos(angle), math.sin(angle)
        return points @ np.array([[c, s], [-s, c]]) + np.asarray(position)

    def polygon(self, state: State) -> Polygon:
        """The block's outline in the world."""
        return Polygon(self.place(self.corners, state.block, state.angle))

    def error(self, position: tuple[float, float], angle: float) -> float:
        """Root of the corners' mean squared distance from where they are to be, in px."""
        c, s = math.cos(angle), math.sin(angle)
        dx = position[0] + c * self.centre[0] - s * self.centre[1] - self._goal[0]
        dy = position[1] + s * self.centre[0] + c * self.centre[1] - self._goal[1]
        return math.sqrt(dx * dx + dy * dy + 2 * (1 - math.cos(angle - self._goal_angle)) * self.spread)

    def missing(self, state: State) -> np.ndarray:
        """The way that each corner has yet to go, (8, 2)."""
        c, s = math.cos(self._goal_angle), math.sin(self._goal_angle)
        goal = (self.corners - self.centre) @ np.array([[c, s], [-s, c]]) + self._goal
        return goal - self.place(self.corners, state.block, state.angle)


class SimulatedPush:
    """A second PushT, to try pushes in; steps as the first one does, without images and rewards."""

    def __init__(self, pusht: Any) -> None:
        self._pusht = type(pusht)(obs_type="state", block_cog=pusht.block_cog, damping=pusht.damping)
        self._pusht._setup()
        self.agent, self.block = self._pusht.agent, self._pusht.block

    def set(self, state: State) -> None:
        """Go to a state."""
        agent, block, space = self.agent, self.block, self._pusht.space
        agent.position, agent.velocity = state.agent, state.agent_velocity
        # The angle first: it turns the block about its centre of gravity.
        block.angle = state.angle
        block.position = state.block
        block.velocity, block.angular_velocity = state.block_velocity, state.spin
        space.reindex_shapes_for_body(agent)
        space.reindex_shapes_for_body(block)

    def state(self) -> State:
        """Where the sandbox is."""
        return State.of(self._pusht)

    def substep(self, target: tuple[float, float]) -> None:
        """A hundredth of a second towards a target."""
        agent = self.agent
        (px, py), (vx, vy) = agent.position, agent.velocity
        agent.velocity = (
            vx + (STIFFNESS * (target[0] - px) - DAMPING * vx) * DT,
            vy + (STIFFNESS * (target[1] - py) - DAMPING * vy) * DT,
        )
        self._pusht.space.step(DT)

    def step(self, target: tuple[float, float]) -> None:
        """What the environment does at an action."""
        for _ in range(SUBSTEPS):
            self.substep(target)

    def succeeded(self) -> bool:
        """Whether the environment would call this state a success."""
        from gym_pusht.envs.pusht import pymunk_to_shapely  # here, since it opens pygame

        # The block's shapes in an order that is always the same, which the body's own are not.
        pusht, shapes = self._pusht, self._pusht._block_shapes
        goal = pymunk_to_shapely(pusht.get_goal_pose_body(pusht.goal_pose), shapes)
        covered = goal.intersection(pymunk_to_shapely(self.block, shapes)).area
        return covered / goal.area > pusht.success_threshold
