#!/usr/bin/env bash
# Putting a batch job back into the queue: one that stopped early, or that crashed and had come further since last time.
# Sourced within a job; messages begin with `requeue_says`.

job_is_running() { # false for a job that was cancelled: requeueing it would bring it back to life
    [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --states=all --format=%T) == RUNNING ]]
}

requeued_by_slurm() { # it lost a node, or somebody called `scontrol requeue`
    local restarts
    restarts=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | grep -o 'Restarts=[0-9]*' || true)
    ((${restarts#Restarts=} + 0 > ${SLURM_RESTART_COUNT:-0}))
}

requeue() { # WHY
    local restarts=${SLURM_RESTART_COUNT:-0} says=${requeue_says:-$0}
    if requeued_by_slurm; then
        echo "$says: $1; Slurm has requeued job $SLURM_JOB_ID (restart $((restarts + 1)))" >&2
    elif ! job_is_running; then
        echo "$says: job $SLURM_JOB_ID was cancelled, so it is not requeued; submit it again to continue" >&2
    elif ((restarts >= ${MAX_REQUEUES:-100})); then
        echo "$says: job $SLURM_JOB_ID was requeued $restarts times already (MAX_REQUEUES); it ends here" >&2
    else
        echo "$says: $1; requeueing job $SLURM_JOB_ID (restart $((restarts + 1)))" >&2
        scontrol requeue "$SLURM_JOB_ID"
        trap - TERM
        sleep 60 # Slurm ends this script as part of the requeue
    fi
}

requeue_crashed() { # FILE PLACE WHY: unless it has crashed MAX_CRASHES times in a row at one place
    local before="" crashes=0
    if [[ -s $1 ]]; then read -r before crashes <"$1" || true; fi
    [[ $before == "$2" ]] || crashes=0
    crashes=$((crashes + 1))
    echo "$2 $crashes" >"$1"
    if ((crashes >= ${MAX_CRASHES:-3})); then
        echo "${requeue_says:-$0}: $crashes crashes in a row without progress (MAX_CRASHES);" \
            "job $SLURM_JOB_ID ends here" >&2
    else
        requeue "$3"
    fi
}
