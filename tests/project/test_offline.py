"""Nothing touches the network: training and evaluation with every way out blocked and written down."""

import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import torchvision
from fakes import processes
from fakes.cli import POLICIES
from fakes.datasets import write_dataset
from fakes.pi0 import write_tokenizer

# Python imports it at its start; what does not lead out of this machine may pass.
BLOCKED = """
import os
import socket

def refuse(name):
    def call(*arguments, **options):
        own = arguments[0] if arguments else None
        if isinstance(own, socket.socket) and own.family == socket.AF_UNIX:
            return real[name](*arguments, **options)
        with open(os.environ["ATTEMPTS"], "a") as file:
            file.write(f"{name} {arguments[1:] or arguments}\\n")
        raise OSError("this test has no network")
    return call

class Socket(socket.socket):
    connect = lambda self, *arguments: refuse("connect")(self, *arguments)
    connect_ex = lambda self, *arguments: refuse("connect_ex")(self, *arguments)
    sendto = lambda self, *arguments: refuse("sendto")(self, *arguments)

real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
socket.socket = Socket
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse(name))
"""


@pytest.fixture
def blocked(tmp_path: Path) -> dict[str, str]:
    """The environment of a process without a network, and with nothing fetched before."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(BLOCKED)
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    empty = {name: str(tmp_path / "empty") for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "ROBOLEARN_CACHE")}
    (tmp_path / "attempts").touch()
    return {
        **os.environ,
        **empty,
        "PYTHONPATH": os.pathsep.join(paths),
        "ATTEMPTS": str(tmp_path / "attempts"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def run(folder: Path, environment: dict[str, str], *command: str) -> CompletedProcess[str]:
    done = processes.run([sys.executable, *command], cwd=folder, env=environment)
    assert (folder / "attempts").read_text() == "", done.stderr
    return done


def test_the_block_holds(tmp_path: Path, blocked: dict[str, str]) -> None:
    script = "import urllib.request\ntry: urllib.request.urlopen('http://127.0.0.1:9')\nexcept OSError: pass"
    with pytest.raises(AssertionError):
        run(tmp_path, blocked, "-c", script)


@pytest.mark.slow
@pytest.mark.pusht
def test_training_and_evaluation_need_no_network(tmp_path: Path, blocked: dict[str, str]) -> None:
    write_dataset(tmp_path / "data", length=30)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    small = "env=pusht env.episode_length=3 eval.n_episodes=1 eval.batch_size=1 device=cpu batch_size=2 num_workers=0"
    small += " offline.steps=2 eval_freq=2 save_freq=2 log_freq=1 dataset.root=data"
    weights = "policy.pretrained_backbone_weights=resnet18.pth"
    act = "policy=act policy.dim_model=32 policy.n_heads=2 policy.dim_feedforward=32 policy.chunk_size=10"
    diffusion = "policy=diffusion policy.down_dims=[8,16] policy.num_inference_steps=2 policy.use_group_norm=false"
    pi0 = " ".join([*POLICIES["pi0"], f"policy.tokenizer={write_tokenizer(tmp_path / 'tokenizer')}"])
    policies = {"act": f"{act} policy.n_action_steps=5 {weights}", "diffusion": f"{diffusion} {weights}", "pi0": pi0}
    for name, options in policies.items():
        argv = [*options.split(), *small.split(), f"output_dir={name}"]
        done = run(tmp_path, blocked, "-m", "robolearn.cli.train", *argv)
        assert done.returncode == 0, done.stderr
    done = run(tmp_path, blocked, "-m", "robolearn.cli.evaluate", "checkpoint=act", "output_dir=again")
    assert "success_rate" in done.stdout, done.stderr
    # What is not here is not fetched either, unless that is asked for.
    done = run(tmp_path, blocked, "-m", "robolearn.cli.train", "dataset.root=null", "dataset.repo_id=lerobot/pusht")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
