"""pi0 with random weights: one training step and one chunk of actions, in time and memory, beside what they must cost.

    python benchmarks/pi0.py [size=full|tiny] [device=cuda] [batch_size=8] [cameras=1] [words=16] [compile=true]
        [graph=true] [repeats=10] [variants=all,all+checkpointing,expert]

A step is forward, backward, clipping and fused AdamW; ``all`` trains everything but SigLIP, ``expert`` the action
expert alone. A chunk is one observation read and ten steps of the flow. The floor adds the arithmetic at the GPU's
peak to the bytes that the optimizer moves, or takes the weights' bytes where these need longer than the arithmetic;
recomputation by checkpointing is no part of it. Prints a table and, as its last line, all figures as JSON.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from robolearn.policies.pi0 import Pi0Policy
from robolearn.types import Batch, Feature, Spec

DEFAULTS = {
    "size": "full",
    "device": "cuda",
    "batch_size": 8,
    "cameras": 1,
    "words": 16,
    "compile": True,
    "graph": True,
    "attention": "sdpa",
    "repeats": 10,
    "variants": "all,all+checkpointing,expert",
    "peak_tflops": 989.0,  # of an H100 SXM in bfloat16, without sparsity
    "peak_tb_per_s": 3.35,
}
TINY = {
    "vision": {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
    "language": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 300},
    "expert": {"intermediate_size": 48},
    "proj_width": 16,
}
GB = 1e9


def main() -> None:
    """Measure every variant of training, then acting."""
    config: Any = OmegaConf.merge(DEFAULTS, OmegaConf.from_dotlist(sys.argv[1:]))
    device = torch.device(config.device)
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {config.attention} attention, {config.cameras} camera(s)")
    print(f"{'':28} {'ms':>9} {'floor':>9} {'ratio':>6} {'peak GB':>8}")
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, **OmegaConf.to_container(config)}  # type: ignore[dict-item]
    for variant in str(config.variants).split(","):
        result[f"train {variant}"] = report(f"step, {variant}", *train(config, variant, device))
    result["act"] = report("chunk, batch 1", *act(config, device))
    print(json.dumps(result))


def report(name: str, seconds: float, floor: float, peak: float, first: float) -> dict[str, float]:
    """Print a row and return its figures."""
    print(f"{name:28} {1e3 * seconds:9.2f} {1e3 * floor:9.2f} {seconds / floor:6.2f} {peak:8.2f}", flush=True)
    figures = {
        "ms": 1e3 * seconds,
        "floor_ms": 1e3 * floor,
        "ratio": seconds / floor,
        "peak_gb": peak,
        "first_s": first,
    }
    return {key: float(f"{value:.4g}") for key, value in figures.items()}


def train(config: Any, variant: str, device: torch.device) -> tuple[float, float, float, float]:
    """Seconds of a step, its floor, the peak of memory in GB, and seconds until the first step was done."""
    start = time.perf_counter()
    what, _, checkpointing = variant.partition("+")
    policy = build(config, device, train_expert_only=what == "expert", gradient_checkpointing=bool(checkpointing))
    batch = make_batch(policy, config.batch_size, config.words, device)
    trained = [p for p in policy.parameters() if p.requires_grad]
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=2.5e-5, fused=True, capturable=on_gpu)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = policy.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 10.0)
        optimizer.step()
        return loss

    run = captured(step) if config.graph and on_gpu else step
    run()
    wait(device)
    first = time.perf_counter() - start
    seconds = measure(run, config.repeats, device)
    assert run().isfinite()
    floor = floor_of_step(config, policy, config.batch_size, what)
    return seconds, floor, peak_memory(device), first


def act(config: Any, device: torch.device) -> tuple[float, float, float, float]:
    """As `train`, for one chunk of one robot."""
    start = time.perf_counter()
    policy = build(config, device).eval()
    batch = make_batch(policy, 1, config.words, device)
    with torch.inference_mode():

        def chunk() -> Tensor:
            return policy.act(batch, {})[0]

        run = captured(chunk) if config.graph and device.type == "cuda" else chunk
        run()
        wait(device)
        first = time.perf_counter() - start
        seconds = measure(run, config.repeats, device)
        assert run().isfinite().all()
    return seconds, floor_of_chunk(config, policy), peak_memory(device), first


def build(config: Any, device: torch.device, **options: Any) -> Pi0Policy:
    """A policy for Aloha, made where it computes; what the last one left is freed."""
    gc.collect()
    if device.type == "cuda":
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    images = {f"observation.images.{i}": Feature("VISUAL", (3, 480, 640)) for i in range(config.cameras)}
    spec = Spec({**images, "observation.state": Feature("STATE", (14,))}, Feature("ACTION", (14,)), 50.0)
    sizes: dict[str, Any] = TINY if config.size == "tiny" else {}
    torch.manual_seed(0)
    with torch.device(device):
        policy = Pi0Policy(spec, attention_implementation=config.attention, **sizes, **options)
    if config.compile:
        # Apart, so that the ten steps of acting share one.
        policy.encode_prefix = torch.compile(policy.encode_prefix)  # type: ignore[method-assign]
        policy.flow = torch.compile(policy.flow)  # type: ignore[method-assign]
    return policy


def make_batch(policy: Pi0Policy, size: int, words: int, device: torch.device) -> Batch:
    """Noise in the shape of a normalised batch."""
    chunk = len(policy.spec.window.action)
    batch = {key: torch.rand(size, 1, 3, 480, 640, device=device) for key in policy.cameras}
    vocabulary = policy.paligemma.words.num_embeddings
    return batch | {
        "observation.state": torch.randn(size, 1, 14, device=device),
        "action": torch.randn(size, chunk, 14, device=device),
        "action_is_pad": torch.zeros(size, chunk, dtype=torch.bool, device=device),
        "task_tokens": torch.randint(0, vocabulary, (size, words), device=device),
        "task_mask": torch.ones(size, words, dtype=torch.bool, device=device),
    }


def captured(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The function as one CUDA graph, after calls that compile it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def measure(run: Callable[[], Tensor], repeats: int, device: torch.device) -> float:
    """The median of the seconds that a call takes."""
    for _ in range(2):
        run()
    seconds = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """GB that PyTorch held at most since the policy was built."""
    return torch.cuda.max_memory_reserved(device) / GB if device.type == "cuda" else 0.0


class Work:
    """Arithmetic and bytes of the parts of a forward pass, for one robot.

    Args:
        policy: Of any size.
        cameras: Images of one observation.
        words: Tokens of the task.
    """

    def __init__(self, policy: Pi0Policy, cameras: int, words: int) -> None:
        vision, language, expert = policy.paligemma.vision, policy.paligemma.language, policy.expert
        patches = vision.get_submodule("embeddings.position_embedding").get_parameter("weight").shape[0]
        seen, chunk = cameras * patches, len(policy.spec.window.action)
        prefix, suffix = seen + words, 1 + chunk
        last = language.layers[-1]
        used = matrices(language) - matrices(last) + matrices(last.self_attn.k_proj) + matrices(last.self_attn.v_proj)
        width = sum(p.shape[0] for name, p in last.named_parameters() if name.endswith("q_proj.weight"))
        layers = len(language.layers)
        self.vision_bytes = 2 * (matrices(vision) + matrices(policy.paligemma.projector))
        self.language_bytes, self.expert_bytes = 2 * used, 2 * matrices(expert)
        hidden, depth = policy.paligemma.projector.in_features, len(vision.get_submodule("encoder.layers"))  # type: ignore[arg-type]
        self.vision_flops = seen * self.vision_bytes + 4 * seen * patches * hidden * depth
        self.language_flops = prefix * self.language_bytes + 4 * prefix**2 * width * (layers - 1)
        self.expert_flops = suffix * self.expert_bytes + 4 * suffix * (prefix + suffix) * width * layers


def matrices(module: nn.Module) -> int:
    """Numbers of all matrices that tokens are multiplied with; each costs two operations a token."""
    return sum(p.numel() for name, p in module.named_parameters() if p.dim() > 1 and "position" not in name)


def floor_of_step(config: Any, policy: Pi0Policy, batch_size: int, what: str) -> float:
    """Seconds that a training step takes at least: a backward pass costs two forward passes of what is trained."""
    work = Work(policy, config.cameras, config.words)
    language = 3 if what == "all" else 1
    flops = batch_size * (work.vision_flops + language * work.language_flops + 3 * work.expert_flops)
    # Fused AdamW reads weight, gradient and two moments, and writes all but the gradient.
    moved = sum(7 * p.numel() * p.element_size() for p in policy.parameters() if p.grad is not None)
    return flops / (config.peak_tflops * 1e12) + moved / (config.peak_tb_per_s * 1e12)


def floor_of_chunk(config: Any, policy: Pi0Policy) -> float:
    """Seconds that a chunk takes at least: each part as long as its arithmetic or its weights need."""
    work = Work(policy, config.cameras, config.words)
    parts = [
        (work.vision_flops, work.vision_bytes, 1),
        (work.language_flops, work.language_bytes, 1),
        (work.expert_flops, work.expert_bytes, policy.num_steps),
    ]
    flops, speed = config.peak_tflops * 1e12, config.peak_tb_per_s * 1e12
    return sum(times * max(operations / flops, moved / speed) for operations, moved, times in parts)


if __name__ == "__main__":
    main()
