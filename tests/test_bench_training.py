"""The curve of the training benchmark; what it measures runs in processes of their own."""

import json
import subprocess

import pytest

from salign.bench import training
from salign.bench.workload import CURVE, Shape, bench_groups, read_shape
from salign.errors import ConfigError


def test_the_bound_is_the_ratio_of_the_layouts_tokens():
    for shape in CURVE:
        (group,) = bench_groups(shape, 1)
        assert group.num_tokens == shape.num_tokens
        naive = sum(len(group.query) + len(response) for response in group.responses)
        assert shape.bound == pytest.approx(naive / group.num_tokens)
        assert len(set(group.scores)) == shape.num_responses
        assert read_shape(str(shape)) == shape


@pytest.mark.parametrize("text", ["256x64", "256x64x1", "0x64x4", "256x-1x4", "256x64x4x1", "axbxc", ""])
def test_what_is_no_shape_is_said(text):
    with pytest.raises(ConfigError, match="is no shape: give tokens of the query"):
        read_shape(text)


def test_the_curve_sets_processor_time_against_tokens(monkeypatch, tmp_path):
    asked = []

    def run(command, **_):
        asked.append(command[-4:])
        cost = {"seconds": 1.0, "cpu": 8.0 if "naive" in command else 2.0, "peak": 300.0, "loaded": 100.0}
        return subprocess.CompletedProcess(command, 0, json.dumps(cost), "")

    monkeypatch.setattr(subprocess, "run", run)
    shapes = [Shape(1024, 32, 8), Shape(64, 512, 2)]
    far, near = training.measure(tmp_path, shapes, ["curve"], lambda _: None)
    assert asked[:2] == [["packed", "1024x32x8", "1", "1"], ["naive", "1024x32x8", "1", "1"]]
    assert far.value == pytest.approx(4 / (8 * 1056 / 1280))
    assert far.to_reach == ">= 0.95"
    assert not near.to_reach  # a bound of 1.06: hardly anything to gain
    assert far.note.startswith("4.00x the naive layout; 640 tokens/s; peaks above the loaded model 200 and 200 MiB")
