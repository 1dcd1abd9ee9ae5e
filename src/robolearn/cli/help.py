"""The text of ``--help``, from the files that are there; fast, because nothing is composed."""

from pathlib import Path

from robolearn.config.schema import CONFIG_GROUPS
from robolearn.system.paths import conf_dir

TRAIN = """\
robolearn-train trains a policy from demonstrations and evaluates it.

Usage:
  robolearn-train [OPTION] [GROUP=NAME] [KEY=VALUE] [+experiment=NAME]

Examples:
  robolearn-train policy=diffusion env=pusht
  robolearn-train env=none dataset.repo_id=me/folding dataset.root=data/folding batch_size=64
  robolearn-train +experiment=diffusion_pusht_fast optimizer.lr=1e-4
  robolearn-train optimizer=sgd optimizer.momentum=0.9 offline.steps=20000
  robolearn-train policy.path=outputs/a                      starts from a checkpoint's weights, ours or LeRobot's
  robolearn-train -m seed=1,2,3 optimizer.lr=1e-4,3e-4       a sweep of six runs, in multirun/
  robolearn-train -m hydra/launcher=slurm seed=1,2,3         a sweep as one SLURM array
  robolearn-sweep multirun/<date>/<time>                     how its runs stand
  robolearn-train --config-dir my/conf policy=mine           an option from a folder of your own
  robolearn-train output_dir=outputs/a                       again: resumes where it was stopped

Groups (GROUP=NAME, the default is marked *):
{groups}
Also:
  +experiment=NAME        settings that belong together: {experiments}
  hydra/launcher=NAME     where the runs of a sweep work: {launchers}

Options:
  --cfg job               show the configuration, with a comment for every key in {conf}
  --cfg job -p policy     show one part of it
  -m, --multirun          a run for every combination of values separated by commas
  --config-dir FOLDER     a folder of your own beside the files that come with robolearn
  --config-name NAME      another primary configuration than train
  --info defaults         which files a configuration is made of, and in which order
  -sc install=bash        shell completion: eval "$(robolearn-train -sc install=bash)" (also zsh, fish)
  --hydra-help            Hydra's own options

Precedence: command line > +experiment > policy preset (its optimizer and scheduler) > group default.
"""

EVALUATE = """\
robolearn-eval evaluates a checkpoint in the simulator of its run.

Usage:
  robolearn-eval checkpoint=FOLDER_OR_HUB_ID [KEY=VALUE]

Examples:
  robolearn-eval checkpoint=outputs/a                              its newest checkpoint
  robolearn-eval checkpoint=outputs/a/checkpoints/00020000 eval.n_episodes=200 seed=7
  robolearn-eval checkpoint=outputs/a/checkpoints/best device=cpu
  robolearn-eval checkpoint=lerobot/diffusion_pusht env=pusht download=true   one of LeRobot's, from the hub
  robolearn-eval checkpoint=outputs/a policy.num_inference_steps=10

Keys, with the values of the checkpoint's run unless given:
  checkpoint              a run's folder, one of its checkpoints, a folder of LeRobot's, or a hub id
  seed                    decides the episodes
  device                  cuda, mps or cpu
  use_amp, amp_dtype      mixed precision
  compile, cuda_graph     how predictions are launched on a GPU
  policy.*                how the policy acts; sizes cannot be changed
  env.*, eval.*           the simulator, and how it evaluates; env=NAME takes another simulator:
{groups}
  output_dir              where the videos and eval.json go
  download                true: fetch a hub id

Without overrides the figures are those of the run's own evaluation at that step.

Options:
  --cfg job               show the configuration
  --config-dir FOLDER     a folder of your own beside the files that come with robolearn
  --hydra-help            Hydra's own options
"""

COLLECT = """\
robolearn-collect records demonstrations of a script, or episodes of a trained policy, as a LeRobot dataset.

Usage:
  robolearn-collect out=FOLDER [env=NAME] [episodes=N] [KEY=VALUE]

Examples:
  robolearn-collect env=pusht episodes=200 out=data/pusht          again: resumes where it was stopped
  robolearn-collect env=pusht env.obs_type=environment_state_agent_pos episodes=200 out=data/pusht_keypoints
  robolearn-collect out=data/noisy action_noise=10                 noisy actions; the clean ones are the labels
  robolearn-collect out=data/rollouts policy.path=outputs/a keep_failures=true action_label=executed

Groups (GROUP=NAME, the default is marked *):
{groups}
Every key has a comment in {conf}.

Options:
  --cfg job               show the configuration
  --config-dir FOLDER     a folder of your own beside the files that come with robolearn
  --hydra-help            Hydra's own options
"""


def collect(own: str | None) -> str:
    """The help of ``robolearn-collect``."""
    lines = []
    for group, default in (("env", "pusht"), ("demonstrator", "that of the env")):
        names = ", ".join(f"{name}*" if name == default else name for name in _options(group, own))
        lines.append(f"  {group:<18}{names}{'' if group == 'env' else ' (default: that of the env)'}\n")
    return COLLECT.format(groups="".join(lines), conf=conf_dir() / "collect.yaml")


def train(own: str | None) -> str:
    """The help of ``robolearn-train``, with the options of a user's own folder."""
    defaults = _defaults()
    lines = []
    for group, text in CONFIG_GROUPS.items():
        names = [f"{name}*" if name == defaults.get(group) else name for name in _options(group, own)]
        lines.append(f"  {group:<18}{text}\n  {'':<18}  {', '.join(names)}\n")
    return TRAIN.format(
        groups="".join(lines),
        experiments=", ".join(_options("experiment", own)),
        launchers=", ".join(["basic*", *_options("hydra/launcher", own)]),
        conf=conf_dir() / "train.yaml",
    )


def evaluate(own: str | None) -> str:
    """The help of ``robolearn-eval``."""
    groups = "\n".join(f"    {group}: {', '.join(_options(group, own))}" for group in ("env", "eval"))
    return EVALUATE.format(groups=groups)


def _options(group: str, own: str | None) -> list[str]:
    folders = [conf_dir(), *([Path(own)] if own else [])]
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def _defaults() -> dict[str, str]:
    import yaml

    items = yaml.safe_load((conf_dir() / "train.yaml").read_text())["defaults"]
    return {key: str(value) for item in items if isinstance(item, dict) for key, value in item.items()}
