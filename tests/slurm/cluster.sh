#!/usr/bin/env bash
# A real Slurm cluster on this one machine, from Debian's packages, for tests/slurm: munge, slurmctld and one slurmd per
# node, all as plain processes (no systemd, no cgroups, no GPUs) that keep every file below one folder.
#
#   cluster.sh check        exit 0 if a cluster can run here, else 3 and the reason on the standard error
#   cluster.sh up           install what is missing (apt), start what is not running, print `export SLURM_CONF=...`
#   cluster.sh status       which daemons run, and what sinfo says
#   cluster.sh down         end the daemons (only those named by this folder's pid files) and the jobs they ran
#
# Environment: CLUSTER_DIR (/tmp/phantom_mega_slurm), NODES (2), CPUS of a node (4), PORT (26900, the first),
# SLURMD_TIMEOUT (300 s until a silent node counts as lost).
set -euo pipefail
DIR=${CLUSTER_DIR:-/tmp/phantom_mega_slurm}
NODES=${NODES:-2}
CPUS=${CPUS:-4}
PORT=${PORT:-26900}
CONF=$DIR/etc/slurm.conf
export SLURM_CONF=$CONF
PATH=$PATH:/usr/sbin:/sbin

missing_programs() {
    local program
    for program in slurmctld slurmd srun sbatch scontrol munged; do
        command -v "$program" >/dev/null || printf '%s ' "$program"
    done
}

check() {
    if [[ $(id -u) != 0 ]]; then
        echo "needs root: slurmd starts jobs as their owner" >&2
        return 3
    fi
    if [[ -n $(missing_programs) ]] && ! command -v apt-get >/dev/null; then
        echo "no $(missing_programs)and no apt-get to install them (Debian: slurmctld slurmd slurm-client munge)" >&2
        return 3
    fi
    if ! getent hosts "$(hostname -s)" >/dev/null; then
        echo "this machine's name $(hostname -s) does not resolve; add it to /etc/hosts" >&2
        return 3
    fi
}

install_packages() {
    [[ -z $(missing_programs) ]] && return
    echo "installing Slurm from Debian's packages: no $(missing_programs)yet" >&2
    export DEBIAN_FRONTEND=noninteractive
    local packages=(slurmctld slurmd slurm-client munge)
    if ! apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null 2>&1; then
        apt-get update -qq >&2
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
    fi
    if [[ -n $(missing_programs) ]]; then
        echo "still missing after the install: $(missing_programs)" >&2
        return 3
    fi
}

write_configuration() {
    mkdir -p "$DIR"/{etc,state,log,pid}
    chmod 755 "$DIR"
    if [[ ! -s $DIR/etc/munge.key ]]; then
        head -c 1024 /dev/urandom >"$DIR/etc/munge.key"
        chmod 400 "$DIR/etc/munge.key"
    fi
    # Nodes are named by loopback addresses, so that `scontrol show hostnames` gives names that resolve without an entry
    # in /etc/hosts. cred_expire is short because a requeued job waits for its old credential to expire (default 120 s).
    # FirstJobId keeps the rendezvous ports, made from job ids, apart from those of another cluster on this machine.
    cat >"$CONF" <<CONFIGURATION
ClusterName=phantom_mega_test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/munge.sock,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool.%n
SlurmctldPidFile=$DIR/pid/slurmctld.pid
SlurmdPidFile=$DIR/pid/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
FirstJobId=$((1000 + PORT % 1000 * 10))
ReturnToService=2
JobRequeue=1
KillWait=60
MinJobAge=3600
SlurmctldTimeout=120
SlurmdTimeout=${SLURMD_TIMEOUT:-300}
MessageTimeout=30
GresTypes=gpu
NodeName=127.0.0.[1-$NODES] NodeHostname=$(hostname -s) Port=$((PORT + 1))-$((PORT + NODES)) \\
    CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=test Nodes=127.0.0.[1-$NODES] Default=YES MaxTime=INFINITE DefaultTime=60 State=UP OverSubscribe=NO
CONFIGURATION
    : >"$DIR/etc/gres.conf"
    printf 'CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\nConstrainDevices=no\n' >"$DIR/etc/cgroup.conf"
}

alive() { # PID_FILE: the process that it names runs (a zombie does not)
    local pid
    [[ -s $1 ]] && pid=$(<"$1") && [[ -r /proc/$pid/stat ]] && [[ $(ps -o stat= -p "$pid") != Z* ]]
}

wait_for() { # SECONDS WHAT COMMAND...: poll until the command succeeds
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS > deadline)); then
            echo "$what: not within the time allowed. Last log lines:" >&2
            tail -n 8 "$DIR"/log/slurm*.log >&2
            return 1
        fi
        sleep 0.2
    done
}

controller_is_up() { timeout 5 scontrol ping | grep -q "is UP"; }

nodes_are_idle() {
    [[ $(timeout 5 sinfo -h -N -t idle,mix,alloc -o %N | sort -u | wc -l) == "$NODES" ]] && return
    timeout 5 scontrol update nodename="127.0.0.[1-$NODES]" state=resume
    return 1
}

up() {
    check
    install_packages
    write_configuration
    if ! alive "$DIR/pid/munged.pid"; then
        rm -f "$DIR"/munge.sock*
        munged --force --num-threads=2 --key-file="$DIR/etc/munge.key" --socket="$DIR/munge.sock" \
            --pid-file="$DIR/pid/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/state/munge.seed" \
            2>>"$DIR/log/munged.err"
    fi
    alive "$DIR/pid/slurmctld.pid" || slurmctld -f "$CONF" -i
    wait_for 30 "slurmctld" controller_is_up
    local i
    for ((i = 1; i <= NODES; i++)); do
        alive "$DIR/pid/slurmd.127.0.0.$i.pid" || slurmd -f "$CONF" -N "127.0.0.$i"
    done
    wait_for 60 "the nodes" nodes_are_idle
    echo "export SLURM_CONF=$CONF"
}

stop() { # PID_FILE
    local pid i
    alive "$1" || return 0
    pid=$(<"$1")
    kill "$pid" 2>/dev/null || true
    for ((i = 0; i < 50; i++)); do
        alive "$1" || break
        sleep 0.1
    done
    if alive "$1"; then kill -9 "$pid" 2>/dev/null || true; fi
    rm -f "$1"
}

no_job_is_left() { [[ -z $(timeout 5 squeue -h) ]]; }

down() {
    local file
    if alive "$DIR/pid/slurmctld.pid"; then
        timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
        wait_for 30 "the end of the jobs" no_job_is_left || true
    fi
    for file in "$DIR"/pid/slurmd.*.pid "$DIR/pid/slurmctld.pid" "$DIR/pid/munged.pid"; do
        if [[ -e $file ]]; then stop "$file"; fi
    done
}

status() {
    local file
    for file in "$DIR"/pid/*.pid; do
        [[ -e $file ]] || continue
        if alive "$file"; then echo "$(basename "$file" .pid): runs"; else echo "$(basename "$file" .pid): ended"; fi
    done
    timeout 10 sinfo
}

case ${1:-} in
check | up | down | status) "$1" ;;
*)
    sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//'
    exit 2
    ;;
esac
