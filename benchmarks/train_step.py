"""How fast a policy is trained: the plain loop, and what each of our fast paths adds, in one run.

    python benchmarks/train_step.py [policy=diffusion] [batch_size=64] [variants=loader,eager,fast] [steps=200] [...]

Every key of `robolearn-train` may be given. Without ``dataset.root`` (or ``dataset.repo_id``) frames are random
numbers in the shapes of the policy's usual robot (``robot=pusht``, ``aloha`` or ``xarm``). Variants:

    loader   the plain loop: eager, float32 (TF32), items decoded before and collated by a DataLoader of 4 workers
    eager    the same, batches gathered by `Loader`
    bf16     and bfloat16 autocast
    compile  and torch.compile
    graph    bfloat16, and the whole update in a CUDA graph, not compiled
    fast     all of it: what use_amp=true gives on a GPU

``profile=N`` prints the N kernels that take most of the last variant's time. Prints a table and, as its last line,
the figures as JSON.
"""

import json
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robolearn.config.build import build, build_policy, plain
from robolearn.config.devices import pick_device
from robolearn.data import BatchSampler, Loader
from robolearn.normalize import Normalizer
from robolearn.system.paths import conf_dir
from robolearn.training.metrics import TrainMetrics
from robolearn.training.optim import build_param_groups
from robolearn.training.update import Update
from robolearn.types import Batch, Feature, Spec, Window

OWN = {"batch_size": "64", "variants": "loader,eager,fast", "steps": "200", "robot": "", "profile": "0", "frames": ""}
"""The benchmark's own keys."""

OPTIONS: dict[str, dict[str, Any]] = {
    "loader": {},
    "eager": {},
    "bf16": {"amp_dtype": torch.bfloat16},
    "compile": {"amp_dtype": torch.bfloat16, "compile": True},
    "graph": {"amp_dtype": torch.bfloat16, "cuda_graph": True},
    "fast": {"amp_dtype": torch.bfloat16, "compile": True, "cuda_graph": True},
}

ROBOTS = {"pusht": ((96, 96), 2, 2, "observation.image"), "xarm": ((84, 84), 4, 4, "observation.image")}
ROBOTS["aloha"] = ((480, 640), 14, 14, "observation.images.top")


class RandomFrames:
    """A dataset of random numbers: as `LeRobotDataset` it serves batches, and items to a DataLoader."""

    def __init__(self, robot: str, frames: int, device: torch.device) -> None:
        (height, width), state, action, camera = ROBOTS[robot]
        self.device, self.count = device, frames
        features = {camera: Feature("VISUAL", (3, height, width)), "observation.state": Feature("STATE", (state,))}
        self.spec = Spec(features, Feature("ACTION", (action,)), 10.0)
        self.data = {
            camera: torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, device=device),
            "observation.state": torch.rand(frames, state, device=device),
            "action": torch.rand(frames, action, device=device) * 2 - 1,
            "next.reward": torch.rand(frames, device=device),
        }
        limits = {"mean": 0.5, "std": 0.3, "min": 0.0, "max": 1.0}
        self.stats = {
            key: {name: torch.full((3, 1, 1) if f.kind == "VISUAL" else f.shape, v) for name, v in limits.items()}
            for key, f in {**features, "action": self.spec.action}.items()
        }

    def valid_indices(self, drop_n_last_frames: int) -> Tensor:
        """All frames that have every offset before and after them."""
        return torch.arange(10, self.count - 120)

    def batch(self, indices: Tensor, window: Window, *, pin: bool = False) -> Batch:
        """As `LeRobotDataset.batch`."""
        source = indices.pin_memory() if self.device.type == "cuda" else indices
        indices = source.to(self.device, non_blocking=True)
        result: Batch = {"index": indices}
        for key, values in self.data.items():
            offsets = {"action": window.action, "next.reward": window.reward}.get(key, window.observation)
            if offsets:
                rows = indices[:, None] + torch.arange(offsets[0], offsets[-1] + 1, device=self.device)
                result[key] = values[rows]
                result[f"{key}_is_pad"] = torch.zeros_like(rows, dtype=torch.bool)
        return result


class Items(Dataset):
    """The frames of a dataset in main memory, one by one."""

    def __init__(self, dataset: Any, window: Window) -> None:
        self.dataset, self.window, self.indices = dataset, window, dataset.valid_indices(0)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Batch:
        torch.set_num_threads(1)
        batch = self.dataset.batch(self.indices[number : number + 1], self.window)
        return {key: value[0] for key, value in batch.items()}


def main() -> None:
    """Measure every variant at every batch size."""
    own = dict(OWN)
    overrides = []
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        else:
            overrides.append(argument)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=["env=none", "job_name=benchmark", "output_dir=unused", *overrides])
    device = pick_device(cfg.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", "torch", torch.__version__)
    print(f"{'variant':>10} {'batch':>6} {'ms/step':>9} {'samples/s':>10} {'of first':>9} {'start s':>8} {'GB':>6}")
    rows = []
    for size in map(int, own["batch_size"].split(",")):
        first = None
        for variant in own["variants"].split(","):
            row = measure(cfg, own, variant, size, device)
            first = first or row["samples_per_s"]
            row["times_first"] = round(row["samples_per_s"] / first, 2)
            rows.append(row)
            print(
                f"{variant:>10} {size:>6} {row['ms_per_step']:>9.2f} {row['samples_per_s']:>10.0f} "
                f"{row['times_first']:>8.2f}x {row['start_s']:>8.1f} {row['gpu_gb']:>6.2f}",
                flush=True,
            )
    best = max(rows, key=lambda row: row["samples_per_s"])
    policy = cfg.policy._target_.rpartition(".")[2]
    print(json.dumps({"samples_per_s": best["samples_per_s"], "policy": policy, "rows": rows}))


def measure(cfg: DictConfig, own: dict[str, str], variant: str, size: int, device: torch.device) -> dict[str, Any]:
    """Train a fresh policy for some steps; the first ones, which compile and capture, are timed apart."""
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    update, loader = make_update(cfg, own, variant, size, device)
    batches = by_items(loader, update, size) if variant == "loader" else loader.iter_from(0)
    metrics = TrainMetrics(device)
    metrics.start()
    started = time.perf_counter()
    run(update, metrics, batches, range(10))
    start = time.perf_counter() - started
    steps = int(own["steps"])
    started = time.perf_counter()
    run(update, metrics, batches, range(10, 10 + steps))
    seconds = (time.perf_counter() - started) / steps
    if int(own["profile"]) and variant == own["variants"].split(",")[-1]:
        profile(update, metrics, batches, int(own["profile"]))
    batches.close()
    scalars = metrics.read(10 + steps)
    return {
        "variant": variant,
        "batch_size": size,
        "ms_per_step": round(1e3 * seconds, 3),
        "samples_per_s": round(size / seconds, 1),
        "start_s": round(start, 2),
        "gpu_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else 0.0,
        "data_wait": round(scalars["train/data_wait"], 4),
        "loss": round(scalars["train/loss"], 4),
    }


def run(update: Update, metrics: TrainMetrics, batches: Iterator[Batch], steps: range) -> None:
    """Some updates, until the device has done them."""
    for step, batch in zip(steps, metrics.time_data(batches), strict=False):
        metrics.add(len(batch["index"]), update([batch], step))
    if update.device.type == "cuda":
        torch.cuda.synchronize(update.device)


def make_update(
    cfg: DictConfig, own: dict[str, str], variant: str, size: int, device: torch.device
) -> tuple[Update, Loader]:
    """A fresh policy's update, and the loader of its batches."""
    torch.manual_seed(0)
    home = torch.device("cpu") if variant == "loader" else device
    robots = {"ActPolicy": "aloha", "TdmpcPolicy": "xarm"}
    robot = own["robot"] or robots.get(cfg.policy._target_.rpartition(".")[2], "pusht")
    frames = int(own["frames"] or {"aloha": 1000, "pusht": 10000}.get(robot, 5000))
    if cfg.dataset.root or (cfg.dataset.repo_id and "repo_id" in " ".join(sys.argv)):
        dataset = build("dataset", cfg).load(home)
    else:
        dataset = RandomFrames(robot, frames, home)
    policy = build_policy(cfg, dataset.spec).to(device)
    normalizer = Normalizer(dataset.spec, policy.spec.normalization_mapping, dataset.stats).to(device)
    optimizer = build("optimizer", cfg, build_param_groups(policy.param_groups(), plain(cfg)["param_groups"]))
    sampler = BatchSampler(dataset.valid_indices(policy.spec.drop_n_last_frames), size, seed=0)
    update = Update(
        policy,
        normalizer,
        optimizer,
        build("scheduler", cfg, optimizer, num_training_steps=100_000),
        device,
        ema=build("ema", cfg, policy) if cfg.use_ema else None,
        grad_clip_norm=cfg.grad_clip_norm,
        **OPTIONS[variant],
    )
    return update, Loader(dataset, sampler, policy.spec.window, device, cfg.num_workers)


def by_items(loader: Loader, update: Update, size: int) -> Generator[Batch, None, None]:
    """What the plain loop gets its batches from."""
    items = Items(loader.dataset, update.policy.spec.window)
    pin = update.device.type == "cuda"
    collated = DataLoader(
        items, size, shuffle=True, num_workers=4, drop_last=True, pin_memory=pin, persistent_workers=True
    )
    while True:
        for batch in collated:
            yield {key: value.to(update.device, non_blocking=True) for key, value in batch.items()}


def profile(update: Update, metrics: TrainMetrics, batches: Iterator[Batch], count: int) -> None:
    """Print which kernels take the time of ten updates."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if update.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiled:
        run(update, metrics, batches, range(10))
    kind = "self_device_time_total" if update.device.type == "cuda" else "self_cpu_time_total"
    events = [e for e in profiled.key_averages() if getattr(e, kind) > 0]
    if update.device.type == "cuda":
        events = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: getattr(event, kind), reverse=True)
    total = sum(getattr(event, kind) for event in events)
    print(f"kernels of a step: {total / 1e4:.2f} ms in {sum(e.count for e in events) / 10:.0f} launches")
    for event in events[:count]:
        spent = getattr(event, kind)
        print(f"{spent / 1e4:8.3f} ms {spent / total:6.1%} {event.count / 10:6.1f} x {event.key[:100]}")


if __name__ == "__main__":
    main()
