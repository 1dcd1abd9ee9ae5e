"""The shortest path around one obstacle."""

import heapq
import itertools
import math

import shapely
from shapely.geometry import LineString, Point, Polygon, box
from shapely.ops import nearest_points

Point2 = tuple[float, float]
Path = list[Point2]


def shortest_path(
    start: Point2,
    goal: Point2,
    obstacle: Polygon,
    clearance: float,
    bounds: tuple[float, float, float, float],
) -> Path | None:
    """The shortest polyline that keeps its distance from an obstacle, by the visibility graph of its outline.

    Where the start is too close, the path first leaves by the nearest free point.

    Args:
        start: Where the path begins, (x, y).
        goal: Where it ends.
        obstacle: What to keep away from.
        clearance: Distance to keep, in the units of the points.
        bounds: Where corners of the path may lie: (least x, least y, greatest x, greatest y).

    Returns:
        The points after the start, the goal last; None where no path leads there.
    """
    grown = obstacle.buffer(clearance, join_style="mitre", mitre_limit=2.0)
    inside = grown.buffer(-0.5)
    field = box(*bounds)
    path: Path = []
    here, there = start, goal
    if inside.contains(Point(here)):
        exit = nearest_points(grown.exterior, Point(here))[0]
        here = (exit.x, exit.y)
        path.append(here)
    corners = [c for c in grown.exterior.coords[:-1] if field.covers(Point(c))]
    nodes = [here, there, *corners]
    pairs = list(itertools.combinations(range(len(nodes)), 2))
    blocked = shapely.intersects(inside, [LineString((nodes[a], nodes[b])) for a, b in pairs])
    edges: dict[int, list[tuple[int, float]]] = {}
    for (a, b), wall in zip(pairs, blocked, strict=True):
        if not wall:
            length = math.dist(nodes[a], nodes[b])
            edges.setdefault(a, []).append((b, length))
            edges.setdefault(b, []).append((a, length))
    found = _dijkstra(edges, 0, 1)
    return None if found is None else path + [nodes[i] for i in found[1:]]


def _dijkstra(edges: dict[int, list[tuple[int, float]]], start: int, goal: int) -> list[int] | None:
    queue: list[tuple[float, list[int]]] = [(0.0, [start])]
    seen: set[int] = set()
    while queue:
        length, visited = heapq.heappop(queue)
        node = visited[-1]
        if node == goal:
            return visited
        if node in seen:
            continue
        seen.add(node)
        for other, cost in edges.get(node, ()):
            if other not in seen:
                heapq.heappush(queue, (length + cost, [*visited, other]))
    return None
