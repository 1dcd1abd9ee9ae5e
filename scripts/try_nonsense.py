#!/usr/bin/env python
"""Give every command nonsense values, and see that each runs or is refused in one sentence with nothing left on disk.

    python scripts/try_nonsense.py [--tries 200] [--seed 0] [--only TEXT] [--out FILE.json]

Walks the leaves of composed configurations (training of each policy with each environment, evaluation, collection,
sweeps, datasets), draws pairs of a leaf and a value that makes no sense for it, and runs the command in a process of
its own. A try is an offence when the command takes longer than --limit, ends with another status than 0 and 2, prints
a traceback, says more than one sentence, does not name the key, leaves files although it refused, writes JSON that is
none, or accepts a number that is not finite. With --out every try is written down.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

Main = Callable[[Sequence[str] | None], None]
MEMORY = 24 << 30  # of address space, so that what nobody can have ends as a MemoryError here, not by the kernel

RUN = "device=cpu batch_size=2 num_workers=0 log_freq=1 save_freq=100 offline.steps=2"
EVALUATION = "env.episode_length=4 eval.n_episodes=2 eval.batch_size=2 eval.n_videos=0 eval_freq=2"
POLICIES = {
    "act": "policy.chunk_size=4 policy.n_action_steps=4 policy.dim_model=16 policy.n_heads=2 policy.dim_feedforward=16 "
    "policy.n_encoder_layers=1 policy.n_vae_encoder_layers=1 policy.latent_dim=4",
    "diffusion": "policy.down_dims=[8,16] policy.diffusion_step_embed_dim=8 policy.spatial_softmax_num_keypoints=4 "
    "policy.num_inference_steps=2 policy.crop_shape=[64,64] scheduler.num_warmup_steps=0",
    "pi0": "policy.chunk_size=4 policy.n_action_steps=4 policy.num_steps=2 policy.proj_width=16 "
    "policy.tokenizer_max_length=80 policy.resize_imgs_with_padding=[28,28] policy.expert={intermediate_size:32} "
    "policy.vision={hidden_size:24,intermediate_size:48,num_hidden_layers:2,num_attention_heads:2,image_size:28,"
    "patch_size:14} policy.language={hidden_size:32,intermediate_size:64,num_hidden_layers:2,num_attention_heads:2,"
    "num_key_value_heads:1,head_dim:16,vocab_size:300}",
    "tdmpc": "policy.horizon=3 policy.image_encoder_hidden_dim=4 policy.state_encoder_hidden_dim=8 policy.mlp_dim=8 "
    "policy.latent_dim=6 policy.q_ensemble_size=3 policy.cem_iterations=2 policy.n_gaussian_samples=6 "
    "policy.n_pi_samples=2 policy.n_elites=3",
    "vqbet": "policy.n_obs_steps=2 policy.n_action_pred_token=2 policy.action_chunk_size=3 policy.crop_shape=[64,64] "
    "policy.n_vqvae_training_steps=1 policy.vqvae_n_embed=4 policy.vqvae_embedding_dim=6 policy.gpt_n_layer=1 "
    "policy.vqvae_enc_hidden_dim=8 policy.gpt_input_dim=8 policy.gpt_output_dim=8 policy.gpt_hidden_dim=8 "
    "policy.gpt_n_head=2 policy.spatial_softmax_num_keypoints=4 scheduler.num_warmup_steps=1 scheduler.num_cycles=0",
}
ENVS = ("pusht", "xarm_lift", "aloha_transfer_cube", "aloha_insertion")
ONLINE = "online=default online.steps=1 online.steps_between_rollouts=1 online.env_seed=0 online.buffer_capacity=50"

LONG, UNICODE = "x" * 5000, "żółć-ロボット"
NOT_FINITE = ("nan", "inf", "-inf", "1e400")
INTEGERS = ("-3", "0", "1000000", "1000000000", "99999999999999999999", "1.5", "true")
NUMBERS = ("-1.5", "0", "2", "1e9", "1e30", "true")
STRINGS = (repr(UNICODE), "nonsense", LONG, "''", "'../../x'")
CONTAINERS = ("[]", "[1]", "{a:1}", "{}", "[[nan]]")
SWEPT = ("range(0)", "range(1,100000)", "choice()", "1,1", "glob(*)", "interval(0,1)")
LARGE = {"1000000", "1000000000", "1e9", "1e30", "99999999999999999999"}


@dataclass
class Base:
    """A command that runs, and the values of its keys."""

    name: str
    main: Main
    argv: list[str]
    leaves: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Try:
    """A base with one nonsense value."""

    base: str
    key: str
    value: str
    argv: tuple[str, ...]


@dataclass
class Outcome:
    """How a try ended; `offences` is empty where that was right."""

    status: int | None  # None: it did not end
    seconds: float
    text: str
    offences: list[str] = field(default_factory=list)


def main() -> int:
    """Run the tries and print what they came to; 1 when there was an offence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=15.0, help="seconds until a command must have ended")
    parser.add_argument("--only", default="", help="tries whose base, key and value contain this")
    parser.add_argument("--policies", default="", help="train these only, such as act,diffusion")
    parser.add_argument("--envs", default="", help="and with these environments only")
    parser.add_argument("--out", type=Path, help="write every try down, as JSON")
    arguments = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        bases = make_bases(scratch, arguments.policies.split(",") if arguments.policies else list(POLICIES),
                           arguments.envs.split(",") if arguments.envs else list(ENVS))  # fmt: skip
        tries = draw(bases, arguments.tries, arguments.seed, arguments.only)
        results = []
        for number, one in enumerate(tries):
            outcome = judge(one, bases[one.base], scratch / "work", arguments.limit)
            results.append((one, outcome))
            for offence in outcome.offences:
                print(
                    f"[{number}] {offence}: {one.base}: {one.key}={shown(one.value)}: {shown(outcome.text)}", flush=True
                )
    if arguments.out:
        lines = [{**asdict(one), **asdict(outcome)} for one, outcome in results]
        arguments.out.write_text(json.dumps(lines, indent=1) + "\n")
    return report([outcome for _, outcome in results])


def report(outcomes: Sequence[Outcome]) -> int:
    """Print the counts; 1 when there was an offence."""
    counts = collections.Counter(offence for outcome in outcomes for offence in outcome.offences)
    ended = collections.Counter(outcome.status for outcome in outcomes)
    print(f"{len(outcomes)} tries: {ended[2]} refused, {ended[0]} ran, {sum(counts.values())} offences")
    for offence, number in counts.most_common():
        print(f"  {number:5d} {offence}")
    return int(bool(counts))


def shown(text: str, width: int = 300) -> str:
    """On one line, shortened."""
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[:80]} ... {text[-width + 85 :]}"


def preload() -> None:
    """Import what the commands import, once for all tries."""
    import robolearn.collecting.demonstration_workers
    import robolearn.config.build
    import robolearn.config.preflight
    import robolearn.policies
    import robolearn.runs.logger
    import robolearn.sweeps.page  # noqa: F401


def make_bases(scratch: Path, policies: Sequence[str], envs: Sequence[str]) -> dict[str, Base]:
    """Every command on small data, which is made here, with the leaves of its configuration."""
    from robolearn.cli import collect, dataset, evaluate, sweep, train

    bases = []
    for env in envs:
        data = scratch / "data" / env
        argv = ["env=" + env, "episodes=2", f"out={data}", "workers=1", "video=false", *_small(env)]
        prepare(collect.main, argv, scratch)
        bases.append(Base(f"collect {env}", collect.main, [*argv[:2], "out=new", *argv[3:]]))
    tokenizer = write_tokenizer(scratch / "tokenizer")
    for policy in policies:
        own = [f"policy={policy}", *POLICIES[policy].split(), *RUN.split()]
        own += [f"policy.tokenizer={tokenizer}"] * (policy == "pi0")
        for env in envs:
            keys = [*own, *_root(scratch, env), f"env={env}", *EVALUATION.split(), *_small(env)]
            bases.append(Base(f"train {policy} {env}", train.main, keys))
            if policy == "tdmpc":
                bases.append(Base(f"train {policy} {env} online", train.main, [*keys, *ONLINE.split()]))
        bases.append(Base(f"train {policy} none", train.main, [*own, *_root(scratch, envs[0]), "env=none"]))
    first = next(base for base in bases if base.main is train.main and "eval_freq=2" in base.argv)
    run, data = scratch / "run", scratch / "data" / envs[0]
    prepare(train.main, [*first.argv, f"output_dir={run}"], scratch)
    bases.append(Base("eval", evaluate.main, [f"checkpoint={run}", "device=cpu"]))
    bases.append(Base("multirun", train.main, ["-m", *first.argv]))
    fill_leaves(bases)
    sweep_of_two = ["-m", *first.argv, "seed=1,2", f"hydra.sweep.dir={scratch / 'sweep'}"]
    prepare(train.main, sweep_of_two, scratch)
    options = {"show --episode": 0, "show --out": "", "convert --to": "", "info": None, "verify": None, "convert": ""}
    bases += [Base(f"dataset {option}", dataset.main, [option.split()[0], str(data)], {option.split()[-1]: value})
              for option, value in options.items()]  # fmt: skip
    for option in ("--csv", "--json", "--html", "--metric", "FOLDER"):
        bases.append(Base(f"sweep {option}", sweep.main, [str(scratch / "sweep")], {option: ""}))
    return {base.name: base for base in bases}


def _root(scratch: Path, env: str) -> list[str]:
    return [f"dataset.root={scratch / 'data' / env}", f"dataset.cache_dir={scratch / 'cache'}"]


def _small(env: str) -> list[str]:
    sizes = {"pusht": 96, "xarm_lift": 84}
    size = sizes.get(env, 96)
    return [f"env.observation_width={size}", f"env.observation_height={size}"]


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of single bytes, as pi0 needs one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<bos>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>").save_pretrained(folder)
    return folder


def prepare(command: Main, argv: Sequence[str], scratch: Path) -> None:
    """Run a command that must succeed."""
    status, _, text = run(command, argv, scratch, limit=600)
    if status:
        raise SystemExit(f"{' '.join(argv)}\n{text}")


def fill_leaves(bases: Sequence[Base]) -> None:
    """Compose each configuration in a process of its own, and note its leaves."""
    for base in bases:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "leaves.json")
            prepare(lambda argv, base=base, out=out: _write_leaves(base, out), [], Path(folder))
            base.leaves = json.loads(out.read_text())


def _write_leaves(base: Base, out: Path) -> None:
    from omegaconf import OmegaConf

    from robolearn.cli import collect, evaluate, train
    from robolearn.config.compose import compose, parse

    name = {train.main: "train", collect.main: "collect", evaluate.main: "evaluate"}[base.main]
    if name == "evaluate":
        folder = Path(base.argv[0].removeprefix("checkpoint="), "checkpoints/last")
        evaluate.register(evaluate.read_config(folder))
    job = compose(parse([text for text in base.argv if text != "-m"], name), name)[0]
    tree = OmegaConf.to_container(job.cfg, resolve=True)
    assert isinstance(tree, dict)
    out.write_text(json.dumps(dict(leaves_of("", tree)), default=str))


def leaves_of(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a list is one leaf."""
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from leaves_of(f"{key}.{name}" if key else str(name), child)
    elif not key.endswith("_partial_"):
        yield key, node


def nonsense(value: Any) -> list[str]:
    """Values that make no sense for a leaf of this type, in Hydra's grammar."""
    own: Sequence[str]
    if isinstance(value, bool):
        own = ("3", "maybe")
    elif isinstance(value, int):
        own = (*INTEGERS, *NOT_FINITE)
    elif isinstance(value, float):
        own = (*NUMBERS, *NOT_FINITE)
    elif isinstance(value, list):
        own = ("3", "[[[1]]]", "[-1]", "[nan]", f"[{','.join(['1'] * 500)}]", "[1000000000]", "['']", "[null]")
    else:
        own = ("-3", "nan", "1e400")
    return list(dict.fromkeys([*own, *STRINGS, *CONTAINERS, "null"]))


def draw(bases: Mapping[str, Base], count: int, seed: int, only: str) -> list[Try]:
    """Tries drawn without replacement, every base and every leaf of it with the same probability."""
    rng = random.Random(seed)
    pool: dict[str, list[Try]] = {}
    for base in bases.values():
        for key, value in base.leaves.items():
            values = SWEPT if base.name == "multirun" else nonsense(value)
            tries = [Try(base.name, key, text, tuple(arguments(base, key, text))) for text in values]
            tries = [one for one in tries if only in f"{one.base}: {one.key}={one.value}"]
            rng.shuffle(tries)
            if tries:
                pool.setdefault(base.name, []).extend(tries)
    for tries in pool.values():
        rng.shuffle(tries)
    drawn = []
    while pool and len(drawn) < count:
        for name in list(pool):
            if len(drawn) < count:
                drawn.append(pool[name].pop())
            if not pool[name]:
                del pool[name]
    return drawn


def arguments(base: Base, key: str, text: str) -> list[str]:
    """The command line of a base with one value."""
    if base.name.startswith(("dataset", "sweep")):
        text = text.strip("'")
        if key in ("FOLDER", "info", "verify", "show"):
            return [*base.argv[:-1], text]
        return [*base.argv, key, text] if key.startswith("--") else [*base.argv, text, "--to", "v3.0"]
    plus = "" if key in base.leaves else "+"
    return [*(one for one in base.argv if not one.startswith(f"{key}=")), f"{plus}{key}={text}"]


def run(command: Main, argv: Sequence[str], folder: Path, limit: float) -> tuple[int | None, float, str]:
    """Run a command in a forked process; its status (None: it was ended at the limit), seconds and output."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            _child(command, argv, folder, output.fileno())
        status: int | None = None
        while status is None and time.monotonic() - started < limit:
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(code)
            else:
                time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what the command left running, too
        if status is None:
            os.waitpid(pid, 0)
        output.seek(0)
        return status, time.monotonic() - started, output.read().decode(errors="replace")


def _child(command: Main, argv: Sequence[str], folder: Path, output: int) -> None:
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.argv[1:] = argv
        command(list(argv))
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def judge(one: Try, base: Base, folder: Path, limit: float) -> Outcome:
    """Run a try in an empty folder and look at what it did."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    outcome = Outcome(*run(base.main, one.argv, folder, limit))
    lines = [line for line in outcome.text.splitlines() if line.strip()]
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    checks = {
        "does not end": outcome.status is None and not (one.value in LARGE and is_training(folder)),
        "traceback": "Traceback (most recent" in outcome.text,
        "status": outcome.status not in (0, 1, 2, None) or (outcome.status == 1 and one.base != "dataset verify"),
        "more than a sentence": outcome.status == 2 and len(lines) != 1,
        "key not named": outcome.status == 2 and not names(one, outcome.text),
        "files left": outcome.status == 2 and bool(left),
        "no JSON": outcome.status == 0 and not all(map(is_json, folder.rglob("*.json*"))),
        "not finite, accepted": outcome.status == 0 and one.value in NOT_FINITE and is_number(base, one.key),
    }
    outcome.offences = [name for name, is_so in checks.items() if is_so]
    return outcome


def is_number(base: Base, key: str) -> bool:
    """Whether a leaf's own value is a number."""
    return isinstance(base.leaves[key], (int, float)) and not isinstance(base.leaves[key], bool)


def is_training(folder: Path) -> bool:
    """Whether a run began there: steps and episodes may be as many as someone has patience for."""
    return any(json.loads(file.read_text()).get("state") == "running" for file in folder.rglob("status.json"))


def names(one: Try, text: str) -> bool:
    """Whether a message names the key, or the value that a command of plain arguments was given."""
    if one.base.startswith(("dataset", "sweep")):
        return one.key in text or one.value.strip("'")[:40] in text
    return one.key in text


def is_json(path: Path) -> bool:
    """Whether a file, or each of its lines, is JSON without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    if path.suffix not in (".json", ".jsonl"):
        return True
    texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    try:
        for text in texts:
            json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
