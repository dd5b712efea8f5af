#!/usr/bin/env bash
# Runs the tests in the project's environment (made on the first call). Arguments go to pytest.
#
#   bash launchers/test.sh                          everything
#   bash launchers/test.sh tests/test_windows.py    one file
#   bash launchers/test.sh -m "not slurm"           without the one-machine Slurm cluster
#
# Tests run one after the other: those in tests/parallel and tests/slurm start several processes each. With cores to
# spare, `-n 4` (pytest-xdist) works too.
set -euo pipefail

# shellcheck source=launchers/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
case ${1:-} in -h | --help) show_help "$0" && exit ;; esac
ensure_environment
cd "$repo"
# One thread a process: the parallel tests would otherwise fight over the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# -rs tells why a test was skipped.
exec "$VENV/bin/python" -m pytest -rs "$@"
