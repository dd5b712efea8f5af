"""Memory that a process can take: of the machine, and within cgroups."""

import psutil
import pytest

from phantom_mega.memory import available

GIB = 1 << 30


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@pytest.mark.parametrize(
    ("line", "root", "names"), [("0::/slurm/job_7", "", V2), ("4:cpu,memory:/slurm/job_7", "memory", V1)]
)
def test_the_narrowest_cgroup_around_a_process_counts_without_its_file_cache(tmp_path, line, root, names):
    (tmp_path / "groups").write_text(f"9:name=systemd:/\n{line}\n")
    for folder, limit in (("slurm", 1 << 20), ("slurm/job_7", 4 << 20)):
        group = tmp_path / "mount" / root / folder
        group.mkdir(parents=True)
        for name, value in zip((*names[:2], "memory.stat"), (limit, 300_000, f"{names[2]} 100000\n"), strict=True):
            (group / name).write_text(str(value))
    assert available(tmp_path / "groups", tmp_path / "mount") == (1 << 20) - 200_000
    (tmp_path / "mount" / root / "slurm" / names[0]).write_text("max\n")
    assert available(tmp_path / "groups", tmp_path / "mount") == (4 << 20) - 200_000


def test_without_a_cgroup_the_machine_counts(tmp_path):
    (tmp_path / "groups").write_text("0::/elsewhere\n")
    for groups in (tmp_path / "groups", tmp_path / "nothing"):
        assert abs(available(groups, tmp_path) - psutil.virtual_memory().available) < 2 * GIB
    assert 0 < available() <= psutil.virtual_memory().total
