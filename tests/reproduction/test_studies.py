"""Studies are consistent: what they name exists, and what they train is a recipe that reads."""

import pytest

from phantom_mega.config_io import load_run_config
from phantom_mega.reproduction.arms import ARMS, PAIR
from phantom_mega.reproduction.assets import Workplace, data_sets, training
from phantom_mega.reproduction.cases import SIZES
from phantom_mega.reproduction.scale import SCALES
from phantom_mega.reproduction.score import METRICS
from phantom_mega.reproduction.studies import STUDIES
from phantom_mega.toyworld.captions import STYLES


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_a_study_names_only_what_exists(study):
    names = [condition.name for condition in study.conditions]
    assert len(set(names)) == len(names)
    assert set(study.metrics) <= METRICS.keys()
    for condition in study.conditions:
        assert condition.arm in ARMS and condition.style in STYLES
        assert condition.references in ("own", "shuffled", "pasted")
    for claim in study.claims:
        assert {claim.first, claim.second} <= set(names) and claim.metric in METRICS and claim.sign in (1, -1)


def test_conditions_of_one_name_are_the_same_everywhere():
    seen = {}
    for study in STUDIES.values():
        for condition in study.conditions:
            assert seen.setdefault(condition.name, condition) is condition or seen[condition.name].arm == condition.arm
            before = seen[condition.name]
            different = [name for name in vars(before) if getattr(before, name) != getattr(condition, name)]
            assert different in ([], ["title"]), condition.name


def test_the_papers_comparisons_are_covered():
    assert {"ablation", "copy_paste", "confusion", "multi_subject"} <= STUDIES.keys()


@pytest.mark.parametrize("arm", ARMS.values(), ids=list(ARMS))
def test_an_arm_differs_from_the_base_in_one_thing(arm, tmp_path):
    place = Workplace(tmp_path, SCALES["cpu"], "cpu")

    def config_of(arm):
        recipe, overrides = training(place, arm, 0).arguments[1], list(training(place, arm, 0).arguments[2:])
        return load_run_config(recipe, overrides)

    ours, base = config_of(arm), config_of(ARMS["base"])
    differ = [
        f"{section}.{name}"
        for section in ("model", "flow", "optimizer")
        for name, value in vars(getattr(ours, section)).items()
        if value != getattr(getattr(base, section), name)
    ]
    assert differ == [override.split("=")[0] for override in arm.overrides if not override.startswith("data.")]
    assert ours.data.aspect_ratios == [f"{SIZES[arm.world][1] // SIZES[arm.world][0]}:1"]


def test_keys_of_data_sets_that_train_together_differ():
    sets = data_sets(ARMS["pair"], SCALES["cpu"])
    assert len({settings.seed for settings in sets.values()}) == len(sets) == 2
    assert {settings.style for settings in sets.values()} == {"distinct", "vague"}
    assert ARMS["pair"].world == PAIR
