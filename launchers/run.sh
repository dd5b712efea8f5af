#!/usr/bin/env bash
# Starts a Python script on every GPU of the job: in a Slurm allocation by srun, one torchrun per node; elsewhere by one
# torchrun on this machine. Stops are graceful: the first signal becomes "checkpoint and exit" on all ranks.
#
#   launchers/run.sh SCRIPT.py [arguments of the script]
#   launchers/run.sh launchers/train.py --config tiny_stage1 data.index_path=[runs/quickstart/curated/shards/train]
#   NPROC_PER_NODE=4 GPUS_PER_NODE=0 launchers/run.sh launchers/train.py --config tiny_stage1 ...       (4 CPU ranks)
#
# SIGUSR1, SIGTERM or Ctrl-C: every rank gets SIGUSR1, writes a checkpoint and leaves; this script then exits 75
# (stopped early), or requeues its batch job if REQUEUE=1. A second Ctrl-C kills. Exit code 0: the script finished.
#
# Environment (docs/slurm.md tells more):
#   GPUS_PER_NODE    GPUS of a node [what Slurm or nvidia-smi says]; 0 runs on CPU
#   NPROC_PER_NODE   ranks of a node [GPUS_PER_NODE, or 1 on CPU]
#   MASTER_ADDR, MASTER_PORT   rendezvous [first node of the job, a port made from the job id]
#   TORCHRUN_ARGS, SRUN_ARGS   more options, split at spaces
#   VENV, PYTHON     environment folder [.venv], or the interpreter itself
#   CONTAINER_IMAGE, CONTAINER_MOUNTS   run the ranks in a container (pyxis); mounts besides the repository, a:b,c:d
#   OMP_NUM_THREADS  threads of a rank [cores / ranks, at most 8]
#   REQUEUE, MAX_REQUEUES      requeue a batch job that stopped early or crashed [0], at most so often [100]
#   MAX_CRASHES      give up after so many crashes in a row without a new checkpoint [3]
#   PRINT_ONLY=1     print the command and leave
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repo ex_tempfail=75 resend_seconds=5

fail() {
    echo "run.sh: $*" >&2
    exit 2
}

find_interpreter() { # set `python`
    local venv=${VENV:-$repo/.venv}
    if [[ -n ${PYTHON:-} ]]; then
        python=$PYTHON
    elif [[ -n ${CONTAINER_IMAGE:-} && -z ${VENV:-} ]]; then
        python=python3 # the image brings its own packages
    elif [[ -x $venv/bin/python ]]; then
        python=$venv/bin/python
    else
        fail "no environment at $venv; make it with 'bash launchers/env.sh', or set VENV or PYTHON"
    fi
}

count_gpus() {
    if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
        echo "$SLURM_GPUS_ON_NODE"
    elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
    elif command -v nvidia-smi >/dev/null; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
    else
        echo 0
    fi
}

# --- What is started -------------------------------------------------------------------------------------------------

build_srun_command() { # set `command` to an srun that starts this script once on every node
    if [[ -z ${MASTER_ADDR:-} ]]; then
        local hosts
        mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
        ((${#hosts[@]} > 0)) || fail "scontrol names no host for the node list '$SLURM_JOB_NODELIST'"
        MASTER_ADDR=${hosts[0]}
    fi
    # Below the range that Linux gives to outgoing connections, and unlike that of another job on the same node.
    : "${MASTER_PORT:=$((10000 + SLURM_JOB_ID % 20000))}"
    export MASTER_ADDR MASTER_PORT RUN_SH_ROLE=node
    local more=()
    read -ra more <<<"${SRUN_ARGS:-}"
    command=(srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1
        # torchrun itself binds nothing, and one task would be pinned to one core.
        --cpu-bind=none
        # A node that fails would leave the others waiting in a collective until it times out.
        --kill-on-bad-exit=1)
    if [[ -n ${CONTAINER_IMAGE:-} ]]; then
        command+=(--container-image="$CONTAINER_IMAGE" --container-workdir="$repo"
            --container-mounts="$repo:$repo${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}")
    fi
    command+=("${more[@]}" bash "$repo/launchers/run.sh" "$@")
}

build_torchrun_command() { # set `command` to the torchrun of this node
    local gpus ranks cores more=()
    gpus=${GPUS_PER_NODE:-$(count_gpus)}
    [[ $gpus =~ ^[0-9]+$ ]] || fail "GPUS_PER_NODE must be a number, not '$gpus'"
    ranks=${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))}
    [[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "NPROC_PER_NODE must be a number from 1, not '$ranks'"
    ((gpus == 0 || ranks <= gpus)) || fail "NPROC_PER_NODE=$ranks, but the node has $gpus GPU(s)"
    if ((gpus == 0)); then export CUDA_VISIBLE_DEVICES=""; fi
    cores=$(nproc)
    local threads=$((cores / ranks))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads < 1 ? 1 : threads > 8 ? 8 : threads))}
    export PYTHONUNBUFFERED=1
    find_interpreter
    read -ra more <<<"${TORCHRUN_ARGS:-}"
    # torchrun gives its workers 30 s after SIGTERM or SIGINT, too short for a checkpoint. With only SIGHUP handled (and
    # the others ignored, see `start`), the workers decide themselves when they are done.
    command=("$python" "$repo/launchers/_torchrun.py" --nproc-per-node="$ranks" --max-restarts=0
        --signals-to-handle=SIGHUP)
    if [[ $role == node ]]; then
        command+=(--nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID"
            --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT")
    else
        command+=(--standalone --nnodes=1)
    fi
    command+=("${more[@]}" "$repo/launchers/_rank.py" "$@")
}

# --- Signals ---------------------------------------------------------------------------------------------------------

signal_ranks() { # SIGUSR1 to every rank: the direct children of torchrun
    local status
    for status in $(grep -lE "^PPid:[[:space:]]+$child\$" /proc/[0-9]*/status 2>/dev/null || true); do
        status=${status#/proc/}
        kill -USR1 "${status%/status}" 2>/dev/null || true
    done
}

forward_stop() {
    if [[ $role == batch ]]; then
        kill -USR1 "$child" 2>/dev/null || true # srun hands it on to the processes of its step
    else
        signal_ranks
    fi
}

# A rank that still imports its packages has no handler yet and ignores the signal, so it is sent until all have left.
request_stop() {
    interrupted=1
    if [[ -z ${child:-} || -n ${forwarder:-} ]]; then
        stop_pending=1
        return 0 # a bare return gives the status of the interrupted `wait`
    fi
    echo "run.sh: $1 received; every rank writes a checkpoint and leaves" >&2
    (
        trap '' USR1 TERM INT
        while kill -0 "$child" 2>/dev/null; do
            forward_stop
            sleep "$resend_seconds"
        done
    ) >/dev/null 2>&1 &
    forwarder=$!
    disown "$forwarder"
}

# shellcheck disable=SC2317  # called by a trap
request_interrupt() {
    if [[ -n ${forwarder:-} && $role != batch ]]; then
        echo "run.sh: interrupted again; killing the ranks" >&2
        kill -HUP "$child" 2>/dev/null || true
        interrupted=1
        return 0
    fi
    request_stop SIGINT
    [[ $role == batch ]] || echo "run.sh: press Ctrl-C again to kill without a checkpoint" >&2
}

start() { # run "${command[@]}" to its end, with signals turned into a graceful stop; set `code`
    child="" forwarder="" stop_pending="" interrupted=""
    trap 'request_stop SIGUSR1' USR1
    trap 'request_stop SIGTERM' TERM
    trap request_interrupt INT
    if [[ $role == batch ]]; then
        "${command[@]}" </dev/null &
    else
        # Ignored signals stay ignored in torchrun and, until train.py sets its handlers, in the ranks: Slurm signals
        # every process of the step, and an unhandled SIGUSR1 would kill torchrun.
        (
            trap '' USR1 TERM INT
            exec "${command[@]}"
        ) &
    fi
    child=$!
    [[ -z $stop_pending ]] || request_stop "an early signal"
    while true; do
        interrupted="" code=0
        wait "$child" || code=$?
        [[ -n $interrupted ]] || break # else the trap ended the wait, not the child
    done
    trap '' USR1 TERM INT
    if [[ -n $forwarder ]]; then kill -KILL "$forwarder" 2>/dev/null || true; fi
}

# --- The end of a run ------------------------------------------------------------------------------------------------

requeue_says=run.sh
# shellcheck source=slurm/requeue.sh
source "$repo/slurm/requeue.sh"

# A rank that died, a node that hung: the next start may well go on from the last checkpoint. Bad input will not.
requeue_ranks() {
    if [[ -e $REFUSED_FILE ]]; then
        rm -f "$REFUSED_FILE"
        code=2
        return
    fi
    local folder=${RUN_DIR:-$repo/runs} place
    place=$(cat "$folder/checkpoints/latest_checkpointed_iteration.txt" 2>/dev/null || echo none)
    mkdir -p "$folder"
    requeue_crashed "$folder/.crashes.$SLURM_JOB_ID" "$place" "the ranks crashed (exit code $code)"
}

main() {
    (($# > 0)) || fail "no script given: launchers/run.sh launchers/train.py --config tiny_stage1 ..."
    case $1 in
    -h | --help)
        sed -n '2,/^set -/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'
        exit 0
        ;;
    esac
    [[ -f $1 ]] || fail "no such script: $1"
    role=${RUN_SH_ROLE:-}
    if [[ -z $role ]]; then
        role=local
        [[ -z ${SLURM_JOB_ID:-} ]] || role="batch"
        # Seen by all nodes of the job, and by no other run.
        export STOPPED_FILE=${RUN_DIR:-$repo/runs}/.stopped_early.${SLURM_JOB_ID:-$$}
        export REFUSED_FILE=${RUN_DIR:-$repo/runs}/.refused.${SLURM_JOB_ID:-$$}
    fi
    if [[ $role == batch ]]; then build_srun_command "$@"; else build_torchrun_command "$@"; fi
    if [[ -n ${PRINT_ONLY:-} ]]; then
        printf '%q ' "${command[@]}"
        echo
        exit 0
    fi
    if [[ $role != node ]]; then rm -f "$STOPPED_FILE" "$REFUSED_FILE"; fi
    start
    if [[ $role != node && $code == 0 && -e $STOPPED_FILE ]]; then
        rm -f "$STOPPED_FILE"
        code=$ex_tempfail
        if [[ $role == batch && ${REQUEUE:-0} == 1 ]]; then requeue "stopped early with a checkpoint"; fi
    elif [[ $role == batch && $code != 0 && ${REQUEUE:-0} == 1 ]]; then
        requeue_ranks
    elif [[ $role != node ]]; then
        rm -f "$REFUSED_FILE"
    fi
    exit "$code"
}

main "$@"
