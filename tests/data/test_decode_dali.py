"""DALI gives what PyAV gives, chooses by codec, and loses no sample when another one fails."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from phantom_mega.config import DataConfig
from phantom_mega.data import decode_dali
from phantom_mega.data.decode import PyAVDecoder, probe_clip
from phantom_mega.data.decode_dali import CPU_CODECS, DaliDecoder
from tests.data.clips import (
    FRAMES,
    HEIGHT,
    WIDTH,
    damage_frame,
    make_item,
    reference_image,
    textured_frames,
    vp8_with_hidden_frames,
    write_clip,
    write_jpeg,
    write_png,
)
from tests.media import draw_frames, encode_clip

BT709, BT601, BT2020, LIMITED, FULL = 1, 5, 9, 1, 2
TARGETS = [(5, 48, 64), (9, 64, 48), (1, 32, 32), (13, 96, 96), (5, 80, 160)]


@pytest.fixture(scope="module")
def dali():
    return DaliDecoder(DataConfig(decode_threads=2), torch.device("cpu"), fallback=False)


def difference(first, second):
    """Mean absolute difference in levels of 255."""
    assert first.shape == second.shape and first.dtype == second.dtype == torch.float32
    return float((first.cpu() - second.cpu()).abs().mean() * 127.5) if first.numel() else 0.0


def both(dali, items):
    """Results of DALI and of PyAV, none failed."""
    results = dali.decode(items), PyAVDecoder(2).decode(items)
    assert [result.error for part in results for result in part] == [None] * 2 * len(items)
    return zip(*results, strict=True)


@pytest.mark.parametrize("codec", CPU_CODECS)
def test_both_decoders_give_the_same_frames_and_references(dali, clips, codec):
    references = [reference_image(), reference_image(97, 131), reference_image(20, 160)]
    items = [
        make_item(clips[codec], codec, key=f"k{i}{start}{stride}", target=target, start=start, stride=stride,
                  references=references[: i % 4])
        for i, target in enumerate(TARGETS)
        for start, stride in [(0, 1), (1, 1), (0, 3)]
        if (start + target[0] - 1) * stride < FRAMES
    ]  # fmt: skip
    for (ours, theirs), (sample, _) in zip(both(dali, items), items, strict=True):
        assert ours.video.shape == (3, sample.num_frames, sample.height, sample.width)
        assert difference(ours.video, theirs.video) < 0.5  # issue: at most 3
        assert difference(ours.references, theirs.references) < 0.5
        assert all(np.array_equal(a, b) for a, b in zip(ours.crops, theirs.crops, strict=True))
        assert ours.video.min() >= -1 and ours.video.max() <= 1 and ours.caption == theirs.caption


@pytest.mark.parametrize("size", [(48, 64), (50, 90), (63, 95), (144, 256)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_both_decoders_agree_at_many_sizes(dali, size, pixel_format):
    clip = write_clip(textured_frames(6, *size), pixel_format=pixel_format)
    for target in [(5, 48, 48), (5, 32, 80)]:
        [(ours, theirs)] = both(dali, [make_item(clip, source=(6, *size), target=target)])
        assert difference(ours.video, theirs.video) < 0.5


@pytest.mark.parametrize("matrix", [BT601, BT709, BT2020])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
def test_both_decoders_agree_on_colour_matrix_and_range(dali, frames, matrix, color_range):
    clip = write_clip(frames, colorspace=matrix, color_range=color_range)
    assert probe_clip(make_item(clip)[1]).colorspace == matrix
    [(ours, theirs)] = both(dali, [make_item(clip)])
    assert difference(ours.video, theirs.video) < 1.5


def test_frames_of_a_hidden_frame_clip_are_counted_alike(dali):
    clip = vp8_with_hidden_frames(textured_frames(40))
    items = [make_item(clip, "vp8", source=(40, HEIGHT, WIDTH), start=start) for start in (0, 17, 35)]
    for ours, theirs in both(dali, items):
        assert difference(ours.video, theirs.video) < 0.5


def test_stills_are_decoded_as_clips_of_one_frame(dali):
    picture = draw_frames(1, 90, 70)[0]
    turned = Image.Exif()
    turned[0x0112] = 6
    stills = [write_jpeg(Image.fromarray(picture)), write_jpeg(Image.fromarray(picture), exif=turned)]
    stills += [write_jpeg(Image.fromarray(picture).convert(mode)) for mode in ("L", "CMYK")] + [write_png(picture)]
    items = [make_item(still, "jpeg", ext="jpg", source=(1, 90, 70), target=(1, 48, 64)) for still in stills]
    for ours, theirs in both(dali, items):
        assert ours.video.shape == (3, 1, 48, 64) and difference(ours.video, theirs.video) < 0.5


@pytest.mark.parametrize("turn", range(1, 9))
def test_references_turned_by_exif_agree(dali, clips, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    reference = write_jpeg(Image.fromarray(draw_frames(1, 40, 70)[0]), exif=exif)
    [(ours, theirs)] = both(dali, [make_item(clips["vp9"], references=[reference])])
    assert np.array_equal(ours.crops[0], theirs.crops[0]) and difference(ours.references, theirs.references) < 0.5


def test_codecs_decide_who_decodes(dali, clips):
    auto = DaliDecoder(DataConfig(), torch.device("cpu"))
    item = make_item(clips["h264"], "h264")
    assert torch.equal(auto.decode([item])[0].video, PyAVDecoder().decode([item])[0].video)
    assert "DALI does not decode h264 on the CPU; use data.decoder=auto" in dali.decode([item])[0].error
    for codec, refused in {"vp9": False, "vp8": False, "mjpeg": False, "h264": True}.items():
        sample, raw = make_item(clips[codec], codec)
        assert bool(auto.refusal(sample, probe_clip(raw))) is refused


def test_what_dali_would_decode_wrongly_goes_to_pyav(dali, frames, clips):
    sample, raw = make_item(write_clip(frames, container="mp4", rotation=90), ext="mp4", source=(FRAMES, WIDTH, HEIGHT))
    assert "turn" in dali.refusal(sample, probe_clip(raw))
    sample, raw = make_item(write_clip(frames, pixel_format="gbrp"))
    assert "gbrp" in dali.refusal(sample, probe_clip(raw))
    sample, raw = make_item(clips["vp9"])
    uneven = dataclasses.replace(sample, frame_indices=(0, 1, 3, 4, 5))
    assert "evenly" in dali.refusal(uneven, probe_clip(raw)) and dali.refusal(sample, probe_clip(raw)) is None
    [ours], [theirs] = (
        DaliDecoder(DataConfig(), torch.device("cpu")).decode([(uneven, raw)]),
        PyAVDecoder().decode([(uneven, raw)]),
    )
    assert torch.equal(ours.video, theirs.video)


def test_when_dali_fails_the_sample_is_named_and_the_batch_kept(dali, clips):
    items = [make_item(clips["vp9"], key=f"k{i}", start=i) for i in range(6)]
    expected = dali.decode(items)
    items[2] = make_item(damage_frame(clips["vp9"], 4), key="k2")
    results = dali.decode(items)
    assert "sample k2: DALI cannot decode the clip" in results[2].error and not results[2].video.any()
    for i in (0, 1, 3, 4, 5):
        assert results[i].error is None and torch.equal(results[i].video, expected[i].video)
    again = dali.decode([make_item(clips["vp9"], key=f"k{i}", start=i) for i in range(6)])
    assert all(torch.equal(a.video, b.video) for a, b in zip(again, expected, strict=True))


def test_missing_frames_are_an_error_not_black(dali, clips):
    sample, raw = make_item(clips["vp9"], start=11)  # frames 11 to 15 of 14
    assert "of 5 planned frames" in dali.decode([(sample, raw)])[0].error
    assert "of 5 planned frames" in PyAVDecoder().decode([(sample, raw)])[0].error


def test_pyav_takes_over_with_a_warning_when_dali_fails(clips, monkeypatch, caplog):
    decoder = DaliDecoder(DataConfig(), torch.device("cpu"))
    inputs, noise = decode_dali._clip_inputs, {"encoded": np.arange(99, dtype=np.uint8)}
    monkeypatch.setattr(decode_dali, "_clip_inputs", lambda *args: inputs(*args) | noise)
    items = [make_item(clips["vp9"], key=f"k{i}", start=i) for i in range(2)]
    with caplog.at_level(logging.WARNING):
        results = decoder.decode(items)
    for result, expected in zip(results, PyAVDecoder().decode(items), strict=True):
        assert result.error is None and torch.equal(result.video, expected.video)
    assert "sample k0: DALI failed" in caplog.text and "sample k1: DALI failed" in caplog.text


def test_pipelines_are_built_once(dali, clips, monkeypatch):
    decoder = DaliDecoder(DataConfig(), torch.device("cpu"))
    decoder.decode([make_item(clips["vp9"], references=[reference_image()])])
    built = decoder._clips.pipeline, decoder._images.pipeline
    decoder.decode([make_item(clips["vp8"], "vp8", target=(9, 64, 48), references=[reference_image(90, 20)] * 3)] * 20)
    assert (decoder._clips.pipeline, decoder._images.pipeline) == built and None not in built


def test_batches_are_limited_by_decoded_bytes(clips, monkeypatch):
    monkeypatch.setattr(decode_dali, "MAX_BATCH_BYTES", 2 * 5 * HEIGHT * WIDTH * 3)
    decoder, sizes = DaliDecoder(DataConfig(), torch.device("cpu")), []
    run = decoder._clips._run_batch
    monkeypatch.setattr(decoder._clips, "_run_batch", lambda batch: sizes.append(len(batch)) or run(batch))
    results = decoder.decode([make_item(clips["vp9"], key=f"k{i}", start=i) for i in range(5)])
    assert sizes == [2, 2, 1] and [result.sample.key for result in results] == [f"k{i}" for i in range(5)]


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ["vp9", "vp8", "h264"])
def test_nvdec_gives_the_same_frames_on_the_gpu(codec):
    size = (FRAMES, 256, 448)  # NVDEC has a least size
    item = make_item(encode_clip(textured_frames(*size), codec), codec, source=size, target=(9, 128, 256), start=3,
                     references=[reference_image()])  # fmt: skip
    decoder = DaliDecoder(DataConfig(), torch.device("cuda", 0), fallback=False)
    [(ours, theirs)] = both(decoder, [item])
    assert ours.video.is_cuda and ours.references.is_cuda
    assert difference(ours.video, theirs.video) <= 3 and difference(ours.references, theirs.references) <= 3
