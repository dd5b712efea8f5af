#!/usr/bin/env bash
# Runs the tests in the project's environment (made on the first call). Arguments go to pytest.
#
#   bash launchers/test.sh                          everything
#   bash launchers/test.sh tests/test_windows.py    one file
#   bash launchers/test.sh -m "not slurm"           without the one-machine Slurm cluster
#   bash launchers/test.sh -m exhaustive            what takes many minutes and is else left out
#
# The whole suite is shared out to two pytest-xdist workers, whole files at a time (`-n 0` runs it in this process,
# `-n 4` with cores to spare): many tests start processes of their own and wait for them.
set -euo pipefail

# shellcheck source=launchers/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
case ${1:-} in -h | --help) show_help "$0" && exit ;; esac
ensure_environment
cd "$repo"
# One thread a process: the parallel tests would otherwise fight over the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
workers=(-n 2)
for argument in "$@"; do
    if [[ -e ${argument%%::*} ]]; then workers=(-n 0); fi
done
# -rs tells why a test was skipped; tests/conftest.py says who gets what.
exec "$VENV/bin/python" -m pytest -rs "${workers[@]}" --no-loadscope-reorder "$@"
