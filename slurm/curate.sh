#!/usr/bin/env bash
# Curates videos on a Ray cluster that is started inside of the job, one node of it on each node of the job.
#
#   INPUT=/data/films OUTPUT=/data/curated sbatch slurm/curate.sh                    from the repository's root
#   INPUT=... OUTPUT=... sbatch --nodes=16 --gpus-per-node=8 slurm/curate.sh captions.caption_backend=transformers
#   INPUT=... OUTPUT=... bash slurm/curate.sh                                        on this machine, without Slurm
#
# Five minutes before its time limit the job ends and goes back into the queue, until all is done; it goes on with what
# is left. Trailing arguments go to launchers/curate.py. Environment: INPUT (folder of videos, a video, or a list) and
# OUTPUT (both needed, on a file system that all nodes see), RECIPE [default], VENV [.venv], PYTHON, CPUS_PER_NODE and
# GPUS_PER_NODE [what Slurm gave and Ray finds], OBJECT_STORE_MB [256], RAY_START_SECONDS [300] for all nodes to join,
# RAY_TMP [/tmp] for sockets and logs (a short path), REQUEUE [1], MAX_REQUEUES [100], MAX_CRASHES [3].
#SBATCH --job-name=curate
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
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
    echo "$PWD is not the repository's root; submit from there: cd phantom_mega && sbatch slurm/curate.sh" >&2
    exit 2
fi
# shellcheck source=slurm/common.sh
source slurm/common.sh
# shellcheck source=slurm/requeue.sh
source slurm/requeue.sh
case ${1:-} in -h | --help) show_help slurm/curate.sh && exit ;; esac
readonly ex_tempfail=75 kill_seconds=30 requeue_says=curate

check_number() { # NAME
    [[ ${!1} =~ ^[1-9][0-9]*$ ]] || fail "$1 must be a number from 1, not '${!1}'"
}

check_settings() {
    local recipes=phantom_mega/curation/recipes example="INPUT=/data/films OUTPUT=/data/curated sbatch slurm/curate.sh"
    [[ -n ${INPUT:-} ]] ||
        fail "INPUT is not set: a folder of videos, a video, or a text file of paths. Example: $example"
    [[ -e $INPUT ]] || fail "INPUT: there is nothing at '$INPUT' (looked from $PWD)"
    [[ -n ${OUTPUT:-} ]] || fail "OUTPUT is not set: the folder of all that is made. Example: $example"
    [[ -z ${CONTAINER_IMAGE:-} ]] || fail "CONTAINER_IMAGE: only the training scripts start in containers"
    : "${RECIPE:=default}"
    [[ ($RECIPE == *.yaml && -f $RECIPE) || -f $recipes/$RECIPE.yaml ]] ||
        fail "RECIPE: no recipe '$RECIPE' (there are: $(basename -s .yaml -a $recipes/*.yaml | paste -sd ' '))"
    : "${OBJECT_STORE_MB:=256}" "${RAY_START_SECONDS:=300}" "${RAY_TMP:=/tmp}"
    export OBJECT_STORE_MB RAY_START_SECONDS RAY_TMP
    check_number OBJECT_STORE_MB && check_number RAY_START_SECONDS
    [[ -z ${CPUS_PER_NODE:-} ]] || check_number CPUS_PER_NODE
    # Ray's sockets lie some sixty characters below, and the system allows 107.
    ((${#RAY_TMP} <= 24)) || fail "RAY_TMP=$RAY_TMP is too long for the paths of sockets; use 24 characters at most"
    python=${PYTHON:-${VENV:-.venv}/bin/python}
    command -v "$python" >/dev/null ||
        fail "no environment at $python; make it with 'bash launchers/env.sh', or set VENV or PYTHON"
    mkdir -p "$OUTPUT" || fail "OUTPUT: '$OUTPUT' cannot be made"
}

# --- One node of the Ray cluster, within a step of the job -----------------------------------------------------------

run_node() { # as RAY_ROLE says: `head`, or `worker` of the one at RAY_ADDRESS; until SIGUSR1
    local folder code=0 pid
    [[ -e $INPUT && -d $OUTPUT ]] ||
        fail "node ${SLURMD_NODENAME:-?} sees no '$INPUT' or no '$OUTPUT';" \
            "both must lie on a file system that all nodes see"
    folder=$(node_folder "$RAY_ROLE")
    local command=("$python" -m ray.scripts.scripts start --block --disable-usage-stats --temp-dir="$folder"
        --num-cpus="${CPUS_PER_NODE:-${SLURM_CPUS_ON_NODE:-$(nproc)}}"
        # Only the numbers of parts and their counts pass through it.
        --object-store-memory="$((OBJECT_STORE_MB << 20))"
        # Any that are free: another job's cluster may be on this node.
        --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)
    [[ -z ${GPUS_PER_NODE:-} ]] || command+=(--num-gpus="$GPUS_PER_NODE")
    # Where nodes are named by addresses, two may be on one machine, and only these tell them apart.
    [[ ! ${SLURMD_NODENAME:-} =~ ^[0-9.]+$ ]] || command+=(--node-ip-address="$SLURMD_NODENAME")
    if [[ $RAY_ROLE == head ]]; then
        command+=(--head --port=0 --include-dashboard=false --ray-client-server-port="$(free_port)") # takes no 0
    else
        command+=(--address="$RAY_ADDRESS")
    fi
    # Of an earlier start of this job that was killed.
    rm -rf "$folder"
    mkdir -m 700 "$folder"
    stopping=""
    trap 'stopping=1' USR1 TERM
    "${command[@]}" >"$folder/start.log" 2>&1 &
    pid=$!
    wait "$pid" || code=$?
    if [[ -z $stopping ]]; then
        echo "curate: Ray's $RAY_ROLE on node ${SLURMD_NODENAME:-?} ended (exit code $code); its last words:" >&2
        tail -n 15 "$folder/start.log" >&2
    fi
    trap '' USR1 TERM
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || true
    rm -rf "$folder"
    [[ -n $stopping ]] || exit 71
}

free_port() {
    "$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

node_folder() { # ROLE: short, and of no other node of the job, should two be on one machine
    local number=0
    [[ $1 == head ]] || number=$((SLURM_NODEID + 1)) # the workers' step counts from 0 again
    echo "$RAY_TMP/ray.$SLURM_JOB_ID.$number"
}

# --- The cluster, in the batch script --------------------------------------------------------------------------------

start_step() { # ROLE NODES FIRST: set `step`, a process that lives as long as the Ray nodes of this step
    RAY_ROLE=$1 srun --overlap --nodes="$2" --ntasks="$2" --ntasks-per-node=1 --relative="$3" --cpu-bind=none \
        --kill-on-bad-exit=0 bash slurm/curate.sh </dev/null &
    step=$!
    steps+=("$step")
}

start_cluster() { # export RAY_ADDRESS, of a cluster that all nodes have joined; else end with 71
    local file deadline=$((SECONDS + RAY_START_SECONDS)) step waiter
    # A token of this job's own: others on the network cannot run anything here.
    RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
    export RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
    file=$(node_folder head)/ray_current_cluster
    rm -f "$file"
    start_step head 1 0
    until [[ -s $file || -n $stopped ]]; do
        still_starting "$step" || return 0
        ((SECONDS < deadline)) || no_cluster "Ray's head did not start within $RAY_START_SECONDS s"
        sleep 0.5
    done
    [[ -z $stopped ]] || return 0
    RAY_ADDRESS=$(<"$file")
    export RAY_ADDRESS
    ((SLURM_NNODES == 1)) || start_step worker $((SLURM_NNODES - 1)) 1
    "$python" slurm/wait_for_ray.py "$SLURM_NNODES" $((deadline - SECONDS)) &
    waiter=$!
    while kill -0 "$waiter" 2>/dev/null && [[ -z $stopped ]]; do
        if ! still_starting "$step"; then
            kill "$waiter" 2>/dev/null || true
            return 0
        fi
        sleep 0.5
    done
    if [[ -n $stopped ]]; then
        kill "$waiter" 2>/dev/null || true
    else
        wait "$waiter" || no_cluster "the Ray cluster is not complete"
    fi
}

still_starting() { # STEP
    [[ -z $stopped ]] || return 1
    kill -0 "$1" 2>/dev/null || no_cluster "a node could not start Ray (see above)"
}

no_cluster() { # WHY
    echo "curate: $1" >&2
    stop_cluster
    finish 71
}

stop_cluster() {
    local step i
    for step in "${steps[@]}"; do
        kill -USR1 "$step" 2>/dev/null || true # srun hands it on to all processes of the step
    done
    for ((i = 0; i < 2 * kill_seconds; i++)); do
        [[ -n $(jobs -rp) ]] || return 0
        sleep 0.5
    done
    for step in "${steps[@]}"; do
        kill -KILL "$step" 2>/dev/null || true
    done
}

# --- The run ---------------------------------------------------------------------------------------------------------

# shellcheck disable=SC2317  # called by a trap
request_stop() { # SIGNAL
    [[ -z $stopped ]] || return 0
    stopped=$1
    echo "curate: $1 received; what is done is kept" >&2
    if [[ -n $driver ]]; then end_driver; fi
}

end_driver() { # every row that is made is on disk already: nothing is lost if it does not listen
    kill -INT "$driver" 2>/dev/null || true
    (sleep "$kill_seconds" && kill -KILL "$driver") >/dev/null 2>&1 &
    killer=$!
    disown "$killer"
}

run_driver() { # ARGUMENTS: set `code`
    (
        trap - INT # which the shell would have background processes ignore
        exec "$python" -u launchers/curate.py --input "$INPUT" --output "$OUTPUT" --config "$RECIPE" "$@"
    ) </dev/null &
    driver=$!
    while kill -0 "$driver" 2>/dev/null; do
        wait "$driver" || true # a signal ends the wait, not the driver
    done
    code=0
    wait "$driver" || code=$?
    if [[ -n $killer ]]; then kill "$killer" 2>/dev/null || true; fi
    driver=""
}

finish() { # CODE: of the run; end, or go back into the queue
    local code=$1 crashes=$OUTPUT/.crashes.${SLURM_JOB_ID:-}
    trap '' USR1 TERM INT
    if [[ -n $stopped && $code != 0 ]]; then
        code=$ex_tempfail
        if [[ -n ${SLURM_JOB_ID:-} && ${REQUEUE:-1} == 1 ]]; then requeue "stopped early"; fi
    elif [[ $code != 0 && $code != 2 && -n ${SLURM_JOB_ID:-} && ${REQUEUE:-1} == 1 ]]; then
        # Bad input (2) would end the same way again.
        requeue_crashed "$crashes" "$(find "$OUTPUT/tables" -name '*.parquet' 2>/dev/null | wc -l)-parts" \
            "the run ended with exit code $code"
    else
        rm -f "$crashes"
    fi
    exit "$code"
}

main() {
    check_settings
    if [[ -n ${RAY_ROLE:-} ]]; then
        run_node
        exit
    fi
    stopped="" driver="" killer="" code=0 steps=()
    trap 'request_stop SIGUSR1' USR1
    trap 'request_stop SIGTERM' TERM
    trap 'request_stop SIGINT' INT
    unset RAY_ADDRESS # of another cluster
    if [[ -n ${SLURM_JOB_ID:-} ]]; then start_cluster; fi
    if [[ -z $stopped ]]; then run_driver "$@"; else code=$ex_tempfail; fi
    if [[ -n ${SLURM_JOB_ID:-} ]]; then stop_cluster; fi
    finish "$code"
}

main "$@"
