#!/usr/bin/env bash
# Stage 1 of the recipe: 50k iterations at 256p and 480p, from random weights or those of LOAD.
#
#   DATA_INDEX=/data/phantom/train sbatch slurm/stage1_256p.sh                       from the repository's root
#   DATA_INDEX=... MODEL=phantom_7b sbatch --nodes=32 --time=12:00:00 slurm/stage1_256p.sh train.save_interval=500
#   DATA_INDEX=... bash slurm/stage1_256p.sh                                         on this machine, without Slurm
#
# Five minutes before its time limit the job writes a checkpoint and goes back into the queue, until training is done.
# Trailing arguments go to launchers/train.py. Environment: DATA_INDEX (needed), VALID_INDEX (held-out
# samples), RECIPE [stage1_256p], MODEL (phantom_3b, phantom_7b) [the recipe's], RUN_DIR [runs/RECIPE-MODEL], LOAD, and
# all of launchers/run.sh --help.
# From a pre-trained model (docs/base_models.md): MODEL=seedvr_7b LOAD=runs/seedvr ... train.finetune=true.
#SBATCH --job-name=stage1_256p
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=runs/%x-%j.out
set -euo pipefail

# sbatch runs a copy of this script in a spool folder; the repository is where sbatch was called.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -f slurm/common.sh ]] || cd "${SLURM_SUBMIT_DIR:-.}"
if [[ ! -f slurm/common.sh ]]; then
    echo "$PWD is not the repository's root; submit from there: cd phantom_mega && sbatch slurm/stage1_256p.sh" >&2
    exit 2
fi
# shellcheck source=slurm/common.sh
source slurm/common.sh
case ${1:-} in -h | --help) show_help slurm/stage1_256p.sh && exit ;; esac

run_stage "${RECIPE:-stage1_256p}" "" "$@"
