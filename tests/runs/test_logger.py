"""Curves: the same scalars as lines of JSON and in TensorBoard."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.training import Counting, trained

from robolearn.runs.logger import MAX_FRAMES, MAX_WIDTH, Logger


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def values(folder: Path) -> list[Any]:
    """The values of all summaries, with their step."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    read = [event for file in sorted((folder / "tensorboard").iterdir()) for event in EventFileLoader(str(file)).Load()]
    return [(event.step, value) for event in read for value in event.summary.value]


def test_both_hold_the_same_scalars(tmp_path: Path) -> None:
    logger = Logger(tmp_path)
    logger.scalars(3, {"train/loss": 0.5, "eval/success_rate": 1.0})
    logger.close()
    assert {(step, v.tag, v.tensor.float_val[0]) for step, v in values(tmp_path)} == {
        (3, "train/loss", 0.5),
        (3, "eval/success_rate", 1.0),
    }
    (line,) = lines(tmp_path)
    assert line.pop("time") > 0
    assert line == {"step": 3, "train/loss": 0.5, "eval/success_rate": 1.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_in_json(tmp_path: Path, value: float) -> None:
    Logger(tmp_path, tensorboard=False).scalars(1, {"train/grad_norm": value})
    assert lines(tmp_path)[0]["train/grad_norm"] is None


def test_without_tensorboard_there_are_lines_alone(tmp_path: Path) -> None:
    logger = Logger(tmp_path, tensorboard=False)
    logger.scalars(1, {"a": 1.0})
    logger.text("config", "seed: 0")
    logger.video(1, "eval/video", np.zeros((2, 4, 4, 3), np.uint8), 10.0)
    logger.hparams({"seed": 0}, {"a": 1.0})
    logger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_video_is_an_animation_of_bounded_size(tmp_path: Path) -> None:
    from PIL import Image

    logger = Logger(tmp_path)
    frames = np.random.default_rng(0).integers(0, 255, (2 * MAX_FRAMES, 8, 2 * MAX_WIDTH, 3), np.uint8)
    logger.video(4, "eval/video", frames, fps=10.0)
    logger.close()
    ((step, value),) = values(tmp_path)
    (tmp_path / "a.gif").write_bytes(value.tensor.string_val[2])
    picture: Any = Image.open(tmp_path / "a.gif")
    assert (step, value.tag) == (4, "eval/video")
    assert picture.n_frames <= MAX_FRAMES
    assert picture.width <= MAX_WIDTH
    assert picture.info["duration"] == 200


def test_the_page_of_hyperparameters_shows_the_final_metrics(tmp_path: Path) -> None:
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    metric = trained(tmp_path, log=3, evaluate=3, evaluator=Counting(), tensorboard=True).last_evaluation
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    page = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    states = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING]
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=10, allowed_statuses=states)
    (group,) = list_session_groups.Handler(context.RequestContext(), page, "", request).run().session_groups
    assert group.hparams["offline.steps"].number_value == 12
    shown = {value.name.tag: value.value for value in group.metric_values}
    assert shown == pytest.approx({"eval/success_rate": metric["success_rate"]})
