"""Flicker, dynamic degree and motion smoothness: closed forms, real flow and interpolators, a real clip."""

import cv2
import numpy as np
import onnx
import pytest
import torch
from torchvision.models.optical_flow import raft_small

from phantom_mega.data.samples import decode_video, source_video
from phantom_mega.errors import UserError
from phantom_mega.evaluation import dynamic_degree, motion_smoothness, temporal_flickering
from phantom_mega.evaluation.dynamic_degree import DynamicDegree, moves, pad_to_eight, sampled, strong_flow
from phantom_mega.evaluation.motion_smoothness import MotionSmoothness, padding, smoothness
from phantom_mega.evaluation.temporal_flickering import steadiness
from tests.evaluation.items import drift, item, still, texture


def optical_flow(one, two):
    """DIS optical flow of OpenCV, in RAFT's place: real flow that needs no weights."""
    grey = [
        ((f[0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8).mean(2).astype(np.uint8)
        for f in (one, two)
    ]
    found = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)
    return torch.from_numpy(found).permute(2, 0, 1)[None]


class Average(torch.nn.Module):
    """Half of both frames; like AMT it takes multiples of 16 only."""

    def forward(self, one, two):
        assert one.shape[2] % 16 == 0 and one.shape[3] % 16 == 0
        return (one + two) / 2


class Small(torch.nn.Module):
    def forward(self, one, two):
        return one[..., ::2]


@pytest.fixture(scope="module")
def bikes():
    return decode_video(source_video("bikes"), 144)[:50]


@pytest.fixture(scope="module")
def average(tmp_path_factory):
    path = tmp_path_factory.mktemp("interpolator") / "average.pt"
    torch.jit.script(Average()).save(str(path))
    return str(path)


def smooth(path):
    return motion_smoothness.build(motion_smoothness.MotionSmoothnessSettings(path), "cpu")


# -- flicker


def test_a_still_video_does_not_flicker_and_one_between_black_and_white_does_nothing_else():
    metric = temporal_flickering.build(temporal_flickering.TemporalFlickeringSettings(), "cpu")
    assert metric.measure(item(still(texture()))).value == 1
    blinking = np.stack([np.full((8, 8, 3), 255 * (i % 2), np.uint8) for i in range(5)])
    assert metric.measure(item(blinking)).value == 0
    assert metric.measure(item(blinking[:1])).missing


def test_flicker_is_the_mean_step_of_pixels_in_255ths():
    steps = np.array([10, 13, 3, 3])[:, None, None, None] + np.zeros((4, 6, 6, 3))  # up by 3, down by 10, none
    assert steadiness(steps.astype(np.uint8)) == pytest.approx(1 - (3 + 10 + 0) / 3 / 255)


# -- dynamic degree


def test_about_eight_frames_a_second_are_looked_at():
    assert sampled(10, 8).tolist() == list(range(10))
    assert sampled(10, 24).tolist() == [0, 3, 6, 9]
    assert sampled(5, 5).tolist() == [0, 1, 2, 3, 4]


def test_the_strongest_twentieth_of_the_flow_counts():
    flow = np.zeros((2, 10, 20))
    flow[:, 0, :10] = np.array([3, 4])[:, None]  # 10 of 200 vectors, of length 5
    assert strong_flow(flow) == pytest.approx(5)
    flow[:, 1, :5] = np.array([6, 8])[:, None]  # 5 of length 10 push 5 of the others out
    assert strong_flow(flow) == pytest.approx(7.5)


def test_the_threshold_follows_the_frames_size_and_the_count_their_number():
    assert moves([6.1] * 4 + [0] * 11, 256, 400)  # 16 frames: 4 pairs
    assert not moves([6.1] * 3 + [0] * 12, 256, 400)
    assert not moves([6.1] * 4 + [0] * 11, 512, 400)  # 6 pixels of 256 are 9.4 of 400
    assert moves([6.1] * 4 + [0] * 11, 512, 256)  # the shorter side counts, whichever it is
    assert moves([6.1], 256, 256) and not moves([5.9], 256, 256)  # one pair: it alone decides


def test_frames_are_padded_to_multiples_of_eight_with_their_border():
    padded = pad_to_eight(torch.arange(9.0).expand(1, 3, 5, 9))
    assert padded.shape == (1, 3, 8, 16)
    assert padded[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8]


def test_only_what_moves_far_is_dynamic():
    metric, picture = DynamicDegree(optical_flow, "cpu"), texture(136, 182)
    found = metric.measure(item(still(picture)))
    assert found.value == 0 and found.detail["flow"] < 0.1
    fast = metric.measure(item(drift(picture, 5)))  # 136 pixels: the threshold is 3.2
    assert fast.value == 1 and fast.detail["flow"] == pytest.approx(5, abs=1.5)
    assert metric.measure(item(drift(picture, 2)[:, :, 16:])).value == 0


def test_a_street_is_dynamic_and_what_is_too_small_or_short_says_so(bikes):
    metric = DynamicDegree(optical_flow, "cpu")
    assert metric.measure(item(bikes, 25.0)).value == 1
    small = metric.measure(item(bikes[:, ::2, ::2], 25.0))
    assert small.value == 0 and "RAFT needs 128 pixels" in small.missing
    assert "1 frame" in metric.measure(item(bikes[:3], 25.0)).missing  # of three, one is looked at


def test_raft_of_torchvision_is_asked_for_its_last_flow(tmp_path):
    torch.manual_seed(0)
    raft = raft_small(weights=None).eval()
    torch.save(raft.state_dict(), tmp_path / "raft.pth")
    settings = dynamic_degree.DynamicDegreeSettings("raft_small", str(tmp_path / "raft.pth"))
    frames = drift(texture(130, 140), 3, 3)
    pixels = pad_to_eight(torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1)
    with torch.no_grad():
        flows = [raft(pixels[i : i + 1], pixels[i + 1 : i + 2], num_flow_updates=20)[-1][0].numpy() for i in (0, 1)]
    found = dynamic_degree.build(settings, "cpu").measure(item(frames))
    assert found.detail["flow"] == pytest.approx(np.mean([strong_flow(flow) for flow in flows]), rel=1e-3)


def test_rafts_that_cannot_be_used_are_named_with_where_to_get_them(tmp_path):
    build, settings = dynamic_degree.build, dynamic_degree.DynamicDegreeSettings
    with pytest.raises(UserError, match="raft_large or raft_small"):
        build(settings("raft"), "cpu")
    with pytest.raises(UserError, match=r"dynamic_degree\.weights='C_T'.*C_T_V1.*download\.pytorch\.org"):
        build(settings("raft_small", "C_T"), "cpu")
    torch.save({"a": torch.zeros(1)}, tmp_path / "raft.pth")
    with pytest.raises(UserError, match=r"dynamic_degree\.weights=.*Error.*raft_large_C_T_V1"):
        build(settings("raft_large", str(tmp_path / "raft.pth")), "cpu")


# -- motion smoothness


def test_every_second_frame_is_foretold_from_its_neighbours():
    frames = np.array([0, 30, 20, 90, 40, 99], np.uint8)[:, None, None, None] + np.zeros((6, 4, 4, 3), np.uint8)
    asked = []

    def between(one, two):
        asked.append((one[0, 0, 0], two[0, 0, 0]))
        return ((one.astype(int) + two) // 2).astype(np.uint8)

    assert smoothness(frames, between) == pytest.approx(1 - (20 + 60) / 2 / 255)
    assert asked == [(0, 20), (20, 40)]  # the last frame of an even number has no neighbour


def test_still_and_evenly_fading_videos_are_smooth_and_flicker_is_not(average):
    metric = smooth(average)
    assert metric.measure(item(still(texture(50, 70), 5))).value == 1
    fade = np.stack([np.full((50, 70, 3), 20 * i, np.uint8) for i in range(5)])
    assert metric.measure(item(fade)).value == 1
    blinking = np.stack([np.full((50, 70, 3), 255 * (i % 2), np.uint8) for i in range(5)])
    assert metric.measure(item(blinking)).value == 0
    assert "needs 3" in metric.measure(item(fade[:2])).missing


def test_a_real_clip_is_smoother_in_order_than_shuffled(average, bikes):
    shuffled = bikes[np.random.default_rng(0).permutation(len(bikes))]
    assert smooth(average).measure(item(bikes)).value > smooth(average).measure(item(shuffled)).value + 0.01


def test_an_onnx_interpolator_gives_what_torchscript_does(tmp_path, average, bikes):
    shape, kind = ["n", 3, "h", "w"], onnx.TensorProto.FLOAT
    helper = onnx.helper
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["sum", "half"], ["middle"])]
    graph = helper.make_graph(
        nodes, "average",
        [helper.make_tensor_value_info(name, kind, shape) for name in "ab"],
        [helper.make_tensor_value_info("middle", kind, shape)],
        [helper.make_tensor("half", kind, [1], [0.5])],
    )  # fmt: skip
    path = tmp_path / "average.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    assert smooth(str(path)).measure(item(bikes[:5])) == smooth(average).measure(item(bikes[:5]))


def test_padding_is_halved_and_taken_off_again():
    assert padding(50, 70) == (5, 5, 7, 7) and padding(64, 33) == (7, 8, 0, 0)
    frames = np.stack([texture(50, 70, seed) for seed in range(3)])
    metric = MotionSmoothness(lambda one, two: one, "cpu")  # the frame before, padded and unpadded
    assert metric.measure(item(frames)).value == smoothness(frames, lambda one, two: one)


def test_interpolators_that_cannot_be_used_are_named_with_where_to_get_them(tmp_path):
    for path in ("", str(tmp_path / "none.pt")):
        with pytest.raises(UserError, match=r"motion_smoothness\.interpolator.*MCG-NKU/AMT"):
            smooth(path)
    for name in ("a.pt", "a.onnx"):
        (tmp_path / name).write_bytes(b"no model")
        with pytest.raises(UserError, match=r"motion_smoothness\.interpolator=.*cannot be read.*MCG-NKU/AMT"):
            smooth(str(tmp_path / name))
    torch.jit.script(Small()).save(str(tmp_path / "small.pt"))
    with pytest.raises(UserError, match=r"interpolator=.*small\.pt.* frames of 80x64: it gives \[1, 3, 64, 40\]"):
        smooth(str(tmp_path / "small.pt")).measure(item(still(texture(50, 70), 3)))
