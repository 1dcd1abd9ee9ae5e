#!/usr/bin/env python
"""Write a checkpoint in LeRobot's layout: config.json, model.safetensors and the processor files of its newer releases.

    python scripts/export_lerobot.py CHECKPOINT OUT

CHECKPOINT is a run's folder, one of its checkpoints, or a folder of LeRobot's, which is brought to the newer layout.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch

from robolearn.checkpoints.lerobot.export import export
from robolearn.checkpoints.load import PretrainedCheckpoint
from robolearn.checkpoints.locate import locate
from robolearn.config.build import load_policy
from robolearn.errors import UserError


def main() -> int:
    """Export one checkpoint; 2 when it cannot be."""
    logging.basicConfig(format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    arguments = parser.parse_args()
    try:
        folder = locate("CHECKPOINT", arguments.checkpoint)
        policy, normalizer = load_policy(folder, torch.device("cpu"))
        export(folder, arguments.out, policy, normalizer, PretrainedCheckpoint(folder).spec())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.out} holds the policy in LeRobot's layout.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
