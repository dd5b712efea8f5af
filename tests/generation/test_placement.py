"""Which process generates what, by the variables of torchrun and of srun."""

import pytest
import torch

from phantom_mega.errors import UserError
from phantom_mega.generation.placement import Placement

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_PROCID",
             "SLURM_LOCALID")  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return lambda **given: [monkeypatch.setenv(name, value) for name, value in given.items()]


def test_alone_torchrun_and_srun_are_told_apart(environment):
    assert Placement.from_environment() == Placement(0, 1, 0, 1)
    environment(SLURM_STEP_ID="0", SLURM_NTASKS="16", SLURM_PROCID="9", SLURM_LOCALID="1")
    assert Placement.from_environment(2) == Placement(9, 16, 1, 2)
    environment(RANK="3", WORLD_SIZE="4", LOCAL_RANK="3")
    assert Placement.from_environment() == Placement(3, 4, 3, 1)


def test_a_batch_script_of_a_job_with_many_tasks_is_still_one_process(environment):
    environment(SLURM_NTASKS="16", SLURM_PROCID="0", SLURM_LOCALID="0")
    assert Placement.from_environment().world == 1


def test_every_case_has_one_group_and_one_writer():
    places = [Placement(rank, 6, rank, 2) for rank in range(6)]
    cases = list(range(10))
    taken = [case for place in places if place.leads for case in cases[place.group :: place.groups]]
    assert sorted(taken) == cases and sum(place.leads for place in places) == 3
    assert places[4].group == places[5].group == 2


def test_groups_that_do_not_divide_the_processes_are_refused(environment):
    environment(RANK="0", WORLD_SIZE="6", LOCAL_RANK="0")
    with pytest.raises(UserError, match="--ranks-per-video 4 does not divide 6 processes; try 3"):
        Placement.from_environment(4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without GPU")
def test_a_missing_gpu_is_told(environment):
    place = Placement.from_environment()
    assert place.device() == place.device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"process 0 has no GPU: 0 GPU\(s\)"):
        place.device("cuda")
    with pytest.raises(UserError, match="--device gpu is unknown"):
        place.device("gpu")
    with pytest.raises(UserError, match="needs torchrun"):
        place.open_group(torch.device("cpu"))
