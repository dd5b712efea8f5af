"""The judge: its truth, its voting, its file, and that a short training beats chance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from phantom_mega.errors import UserError
from phantom_mega.toyworld import identity_training
from phantom_mega.toyworld import judge as judging
from phantom_mega.toyworld import judge_training as training
from phantom_mega.toyworld.identity_network import IdentityNetwork
from phantom_mega.toyworld.judge import Judge, find_subjects
from phantom_mega.toyworld.judge_accuracy import judge_accuracy, paste
from phantom_mega.toyworld.judge_network import FRAMES, JudgeNetwork, cell_places
from phantom_mega.toyworld.latents import fit_vae
from phantom_mega.toyworld.render import render, render_masks
from phantom_mega.toyworld.samples import make_sample
from phantom_mega.toyworld.scenes import MOTIONS
from phantom_mega.toyworld.spoiling import blur
from tests.toyworld.ideal import RED_STAR, two_actors


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained():
    """A judge after 60 steps on small batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CLIPS", 6)
        patch.setattr(training, "REFERENCES", 1)
        patch.setattr(identity_training, "SCENES", 8)
        return training.train_judge(seed=0, steps=60, progress=False)


def vote_for(places, rows=16, columns=16):
    """Cover of one block of 4x4 cells around each place and votes for it, in all frames."""
    grid = cell_places(rows, columns).numpy()
    covered, votes = np.zeros((FRAMES, rows, columns)), np.zeros((FRAMES, rows, columns, 2))
    for place in places:
        inside = (abs(grid - place) < 2 / rows).all(-1)
        covered[:, inside], votes[:, inside] = 1, place
    return covered, votes


def test_cells_that_vote_for_one_place_are_one_subject():
    covered, votes = vote_for([(-0.25, 0.0), (0.25, 0.0), (0.0, 0.375)])
    masks = find_subjects(covered, votes)
    assert len(masks) == 3 and masks.sum((1, 2, 3)).tolist() == [16 * FRAMES] * 3
    assert masks.sum(0).max() == 1 and (masks.any(0) == (covered > 0)).all()


def test_touching_subjects_are_told_apart_by_their_votes():
    covered, votes = vote_for([(-0.125, 0.0), (0.125, 0.0)])
    masks = find_subjects(covered, votes)
    assert len(masks) == 2
    assert masks[0, 0].any(0)[:8].sum() == 4 or masks[1, 0].any(0)[:8].sum() == 4


def test_a_subject_that_moves_is_one_as_long_as_its_cells_vote_for_its_middle():
    covered, votes = np.zeros((FRAMES, 16, 16)), np.zeros((FRAMES, 16, 16, 2))
    for frame in range(FRAMES):
        covered[frame, 6:10, 2 * frame : 2 * frame + 4] = 1
    assert len(find_subjects(covered, votes)) == 1


def test_specks_and_empty_pictures_are_no_subjects():
    covered, votes = vote_for([(0.0, 0.0)])
    covered[1:] = 0
    covered[0, :, :8] = 0  # 8 cells in one frame of five
    assert len(find_subjects(covered, votes)) == 0
    assert len(find_subjects(np.zeros((FRAMES, 16, 16)), votes)) == 0


def test_truth_tells_where_an_actor_is_seen():
    scene = two_actors()
    masks = render_masks(scene, FRAMES, 128, 128)
    truth = training.make_truth([(scene, masks, (0.0, 0.0, 1.0))], 1.0)
    grid = cell_places(64, 64).numpy()
    centre = truth.numbers["centre"][0].numpy()
    for number in range(2):
        for frame in range(FRAMES):
            seen = grid[truth.cover[0, frame, number].numpy() > 0.5]
            # The body's centre is inside of what is seen, near its middle: parts reach out by a third of the body.
            assert np.linalg.norm(seen.mean(0) - centre[frame, number]) < 0.35 * 0.35
    assert truth.motion[0].tolist() == [MOTIONS.index("jumps"), MOTIONS.index("moves right"), -1, -1]
    assert truth.cover[0, :, 2:].max() == 0 and truth.numbers["size"][0, :, 2:].isnan().all()


def test_what_cannot_be_seen_is_not_taught():
    scene = two_actors()
    disk = replace(RED_STAR, shape="circle", part="none", texture="plain")
    scene = replace(scene, actors=(replace(scene.actors[0], subject=disk),))
    truth = training.make_truth([(scene, render_masks(scene, FRAMES), (0.0, 0.0, 1.0))], 1.0)
    assert truth.numbers["angle"].isnan().all()
    assert truth.numbers["size"][0, :, 0].isfinite().all()


def test_a_crop_moves_and_scales_what_it_shows():
    scene = two_actors()
    masks = render_masks(scene, FRAMES)
    whole, half = (training.make_truth([(scene, masks, crop)], 1.0) for crop in ((0.0, 0.0, 1.0), (-0.25, 0.0, 0.5)))
    assert torch.allclose(half.numbers["size"][0, :, 0], 2 * whole.numbers["size"][0, :, 0])
    moved = 2 * (whole.numbers["centre"][0, :, 0] - torch.tensor([-0.25, 0.0]))
    assert torch.allclose(half.numbers["centre"][0, :, 0], moved)


def test_batches_are_functions_of_seed_and_step():
    first, again, other = training.make_batch(3, 5), training.make_batch(3, 5), training.make_batch(3, 6)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1].cover, again[1].cover)
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


def test_a_vae_blurs_some_of_the_clips_and_no_reference_image():
    vae = fit_vae(8, videos=4)
    changed = []
    for step in range(4):
        sharp, blurred = training.make_batch(3, step)[0], training.make_batch(3, step, vae)[0]
        changed += (sharp != blurred).flatten(1).any(1)[: training.CLIPS].tolist()
        assert torch.equal(sharp[training.CLIPS :], blurred[training.CLIPS :])
    assert 0.1 < np.mean(changed) < 0.7


def test_blur_keeps_what_is_even_and_spreads_what_is_not():
    flat = torch.full((FRAMES, 3, 16, 16), 7.0)
    assert torch.allclose(blur(flat, 0.8), flat)
    point = torch.zeros(FRAMES, 3, 16, 16)
    point[..., 8, 8] = 1
    spread = blur(point, 0.8)
    assert torch.allclose(spread.sum((2, 3)), torch.ones(FRAMES, 3), atol=1e-5) and spread.max() < 0.4


def test_the_loss_of_one_batch_falls_and_reaches_every_weight(monkeypatch):
    monkeypatch.setattr(training, "CLIPS", 3)
    monkeypatch.setattr(training, "REFERENCES", 1)
    videos, truth = training.make_batch(0, 1)
    videos = videos / 127.5 - 1
    torch.manual_seed(0)
    network = JudgeNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        loss = training.judge_loss(network, videos, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_a_short_training_beats_chance_and_reads_any_video(trained):
    report = judge_accuracy(trained, n=24, seed=1)
    assert report["sharp"]["background"]["low"] > 1 / 6
    assert report["sharp"]["count"]["low"] > 1 / 5
    assert set(report) == {"sharp", "blurred", "reference", "copying"}
    video = render(make_sample(1, 3).scene)
    for odd in (video[:1], video[:3], np.repeat(video, 2, 1).repeat(2, 2), video[:, :, :20], video * 0, video[:, :7]):
        reading = trained.read([odd])[0]
        assert reading.background.sum() == pytest.approx(1, abs=1e-4)
        assert all(len(subject.track.seen) == FRAMES for subject in reading.subjects)


def test_readings_do_not_depend_on_what_is_read_beside(trained):
    videos = [render(make_sample(1, number, actors=2).scene) for number in range(3)]
    videos.append(render(make_sample(1, 3, actors=2, width=64).scene, 17, 32, 64))
    for alone, beside in zip((trained.read([video])[0] for video in videos), trained.read(videos)):
        assert alone.count == beside.count
        assert np.allclose(alone.background, beside.background, atol=1e-4)


def test_a_judge_is_saved_whole_and_loaded_alike(trained, tmp_path):
    trained.save(tmp_path / "judge.safetensors")
    video = render(make_sample(1, 0).scene)
    first, second = trained.read([video])[0], Judge.load(tmp_path / "judge.safetensors").read([video])[0]
    assert np.array_equal(first.background, second.background) and first.count == second.count
    assert [path.name for path in tmp_path.iterdir()] == ["judge.safetensors"]


def test_what_is_no_judge_or_no_video_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="make_toy_models"):
        Judge.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="no judge"):
        Judge.load(tmp_path / "bad.safetensors")
    judge = Judge(JudgeNetwork(), IdentityNetwork())
    for bad in (np.zeros((32, 32, 3), np.uint8), np.zeros((5, 32, 32, 3)), np.zeros((0, 32, 32, 3), np.uint8)):
        with pytest.raises(UserError, match="video 0 is"):
            judge.read([bad])


def test_a_pasted_video_holds_its_reference_on_white():
    image = make_sample(1, 0).references[0].image
    video = paste([image], 5, 32, 64)
    assert video.shape == (5, 32, 64, 3) and (video == video[:1]).all()
    assert (video[:, :, :10] == 255).all() and not (video[:, :, 20:44] == 255).all()


def test_uniform_frames_are_the_first_and_the_last_and_even_between():
    video = np.arange(17, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3)
    frames = judging._prepare(video, "video")
    assert ((frames[:, 0, 0, 0] + 1) * 127.5).round().tolist() == [0, 4, 8, 12, 16]
