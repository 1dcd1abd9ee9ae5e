"""Statistics of one episode, as LeRobot records them; without torch, since processes that record have none."""

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def column_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of numbers (n, *shape) over n, with ``count`` and quantiles; those of scalars have shape (1,)."""
    values = values.reshape(len(values), 1) if values.ndim == 1 else values
    exact = values.astype(np.float64)
    quantiles = np.quantile(exact, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": exact.mean(axis=0),
        "std": exact.std(axis=0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def image_stats(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of uint8 images (n, C, H, W) per channel, (C, 1, 1), for values in [0, 1]; ``count`` is n."""
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(channel.reshape(-1), minlength=256) for channel in frames.swapaxes(0, 1)])
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    shares = counts.cumsum(axis=1) / total[:, None]
    found = {
        "min": levels[(counts > 0).argmax(axis=1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0)),
        **{name: levels[(shares >= share).argmax(axis=1)] for name, share in QUANTILES.items()},
    }
    return {name: value.reshape(-1, 1, 1) for name, value in found.items()} | {"count": np.array([len(frames)])}
