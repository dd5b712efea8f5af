"""A study from nothing to its report, by the commands that users call; interrupted and run again, it goes on."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phantom_mega.errors import UserError
from phantom_mega.reproduction.assets import Workplace
from phantom_mega.reproduction.run import arms_of, measure_study, prepare, read_values, trainings_of
from phantom_mega.reproduction.scale import SCALES
from phantom_mega.reproduction.score import METRICS
from phantom_mega.reproduction.studies import STUDIES

LAUNCHER = Path(__file__).resolve().parents[2] / "launchers" / "reproduce.py"


def reproduce(*arguments):
    return subprocess.run(
        [sys.executable, str(LAUNCHER), *map(str, arguments)], capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("reproduce") / "work"
    result = reproduce("copy_paste", "--device", "cpu", "--scale", "smoke", "--output", root)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return root, result


def test_a_study_leaves_a_report_with_a_row_for_every_condition_and_claim(done):
    root, result = done
    report = root / "reports" / "copy_paste.md"
    assert result.stdout.splitlines()[-1] == str(report)
    text, study = report.read_text(), STUDIES["copy_paste"]
    for words in (*(condition.title for condition in study.conditions), *(claim.text for claim in study.claims)):
        assert words in text
    assert "launchers/reproduce.py copy_paste" in text and "CPU cores" in text and study.paper in text
    assert re.search(r"\| in pairs \(references cut from the clip\) \| 4 \| \d\.\d{4} \| \d+\.\d \|", text)
    assert (root / "reports" / "copy_paste.png").stat().st_size > 1000


def test_trainings_ran_to_their_end_and_differ_by_the_arm(done):
    root, _ = done
    losses = {}
    for arm in ("base", "in_pair"):
        lines = (root / "runs" / f"{arm}_seed0" / "metrics.jsonl").read_text().splitlines()
        losses[arm] = [json.loads(line)["loss"] for line in lines]
        assert len(losses[arm]) == SCALES["smoke"].train_iters and np.isfinite(losses[arm]).all()
    assert losses["base"] != losses["in_pair"]


def test_every_metric_of_every_case_is_kept(done):
    place = Workplace(done[0], SCALES["smoke"], "cpu")
    for condition in STUDIES["copy_paste"].conditions:
        values = read_values(condition, place)
        assert values.keys() == METRICS.keys()
        assert all(value.shape == (1, SCALES["smoke"].cases) for value in values.values())


def test_running_it_again_makes_nothing_anew(done):
    root, _ = done

    def times():
        return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}

    before = times()
    place = Workplace(root, SCALES["smoke"], "cpu")
    prepare([STUDIES["copy_paste"]], place)
    measure_study(STUDIES["copy_paste"], place)
    changed = [path.name for path, time in times().items() if time != before.get(path)]
    assert set(changed) <= {"report.json"}


def test_a_folder_of_another_scale_is_refused(done):
    with pytest.raises(UserError, match=r"another scale: train_samples 64 \(now 8000\)"):
        prepare([STUDIES["copy_paste"]], Workplace(done[0], SCALES["cpu"], "cpu"))


def test_studies_share_their_trainings_and_first_seeds_come_first(tmp_path):
    arms = arms_of([STUDIES["ablation"], STUDIES["copy_paste"]])
    assert [arm.name for arm in arms] == ["base", "no_vae", "no_clip", "in_pair"]
    names = [one.folder.name for one in trainings_of(arms, Workplace(tmp_path, SCALES["cpu"], "cpu"))]
    assert names == [f"{arm.name}_seed{seed}" for seed in range(3) for arm in arms]


def test_wrong_words_are_told_in_one_line():
    result = reproduce("ablate")
    assert result.returncode == 2 and "invalid choice: 'ablate'" in result.stderr
    result = reproduce("ablation", "--device", "cuda")
    assert result.returncode == 2 and "there is no GPU" in result.stderr and "Traceback" not in result.stderr
