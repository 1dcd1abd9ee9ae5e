"""The commands of README.md and docs/, each in a form that takes seconds."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```bash\n(.*?)```", re.DOTALL)

# A network and episodes so small that a command takes seconds; what a command says itself is not touched.
SMALL = {
    "policy.down_dims": "[8,16]",
    "policy.crop_shape": "[64,64]",
    "policy.spatial_softmax_num_keypoints": "4",
    "policy.num_inference_steps": "2",
    "offline.steps": "2",
    "batch_size": "4",
}
SMALL_EVALUATION = {"env.episode_length": "3", "eval.n_episodes": "1", "eval.batch_size": "1", "eval.n_videos": "1"}


def commands(page: Path) -> list[str]:
    """The lines of a page's bash blocks that are to be run."""
    blocks = [block for skipped, block in BLOCK.findall(page.read_text()) if not skipped]
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def smaller(command: str) -> str:
    if command.startswith("robolearn-collect"):
        return re.sub(r"episodes=\d+", "episodes=2", command)
    if not command.startswith("robolearn-train") or "--help" in command or "--cfg" in command:
        return command
    options = SMALL if "env=none" in command else SMALL | SMALL_EVALUATION
    if "dataset=pusht_keypoints" in command:
        options = {key: value for key, value in options.items() if "crop" not in key}
    if "policy.path=" in command:  # whose sizes are the checkpoint's
        options = {key: value for key, value in options.items() if not key.startswith("policy.")}
    return " ".join([command, *(f"{k}={v}" for k, v in options.items() if f" {k}=" not in command)])
