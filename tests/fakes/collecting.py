"""What robolearn-collect runs on in tests: the fake simulator and its demonstrator, as configuration files."""

from pathlib import Path

ENV = """\
# @package _global_
env:
  _target_: robolearn.envs.EnvFactory
  id: fake_env/Reach-v0
  package: fakes.fake_env
  fps: 10
  episode_length: 20
  features_map: {agent_pos: observation.state, pixels/top: observation.images.top}
  kwargs: {crash_in: null}
"""
DEMONSTRATOR = """\
_target_: fakes.fake_env.Reacher
_partial_: true
speed: 0.2
crash: false
"""


def write_conf(folder: Path) -> list[str]:
    """Write the files; returns the options that choose them."""
    for name, text in (("env/reach", ENV), ("demonstrator/reach", DEMONSTRATOR)):
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return ["--config-dir", str(folder), "env=reach"]
