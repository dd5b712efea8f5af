#!/usr/bin/env bash
# Stage 2 of the recipe: 20k more iterations with 720p mixed in, from stage 1's last checkpoint.
#
#   job=$(DATA_INDEX=/data/phantom/train sbatch --parsable slurm/stage1_256p.sh)
#   DATA_INDEX=/data/phantom/train sbatch --dependency=afterok:$job slurm/stage2_720p.sh
#   DATA_INDEX=... LOAD=runs/other/checkpoints bash slurm/stage2_720p.sh             on this machine, without Slurm
#
# Five minutes before its time limit the job writes a checkpoint and goes back into the queue, until training is done.
# Trailing arguments go to launchers/train.py. Environment: DATA_INDEX (needed), VALID_INDEX (held-out
# samples), RECIPE [stage2_720p], MODEL (phantom_3b, phantom_7b) [the recipe's], RUN_DIR [runs/RECIPE-MODEL], LOAD
# [stage 1's default RUN_DIR/checkpoints], and all of launchers/run.sh --help.
#SBATCH --job-name=stage2_720p
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
    echo "$PWD is not the repository's root; submit from there: cd phantom_mega && sbatch slurm/stage2_720p.sh" >&2
    exit 2
fi
# shellcheck source=slurm/common.sh
source slurm/common.sh
case ${1:-} in -h | --help) show_help slurm/stage2_720p.sh && exit ;; esac

recipe=${RECIPE:-stage2_720p}
case $recipe in
stage2_720p) stage1=stage1_256p ;;
tiny_stage2) stage1=tiny_stage1 ;;
*)
    stage1=""
    [[ -n ${LOAD:-} ]] || fail "LOAD is not set: with RECIPE=$recipe, name the folder of stage 1's checkpoints"
    ;;
esac
run_stage "$recipe" "$stage1" "$@"
