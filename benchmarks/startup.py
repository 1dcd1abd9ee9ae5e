"""How long a run takes from the command to its first updates, with cold and with warm caches.

    python benchmarks/startup.py dataset.root=DIR [policy=diffusion] [use_amp=true] [steps=5] [...]

Every key of `robolearn-train` may be given. The command runs twice, evaluates nothing and saves nothing: first with an
empty cache of compiled kernels and decoded frames, then with what the first one left there. Five steps are what it
takes until updates are replayed as a CUDA graph. Prints a table and, as its last line, the figures as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Run the command with both caches."""
    steps, overrides = "5", []
    for argument in sys.argv[1:]:
        if argument.startswith("steps="):
            steps = argument.removeprefix("steps=")
        else:
            overrides.append(argument)
    print(f"{'caches':>7} {'seconds':>8}")
    result = {}
    with tempfile.TemporaryDirectory() as temporary:
        for caches in ("cold", "warm"):
            seconds = run([*overrides, f"offline.steps={steps}"], Path(temporary), caches)
            result[f"{caches}_s"] = round(seconds, 2)
            print(f"{caches:>7} {seconds:>8.1f}", flush=True)
    print(json.dumps({**result, "steps": int(steps)}))


def run(overrides: list[str], folder: Path, name: str) -> float:
    """Seconds from the command to its end."""
    off = ["eval_freq=0", "save_checkpoint=false", f"output_dir={folder / name}"]
    code = "from robolearn.cli.train import main; main()"
    environ = {**os.environ, "ROBOLEARN_CACHE": str(folder / "cache")}
    environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *overrides, *off], env=environ, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return seconds


if __name__ == "__main__":
    main()
