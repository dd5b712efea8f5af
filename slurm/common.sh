#!/usr/bin/env bash
# What the Slurm scripts share: settings from the environment, their checks, and the start of launchers/train.py.
# Sourced by a stage script that stands in the repository's root; it calls `run_stage RECIPE LOAD-RECIPE [arguments]`.

fail() {
    echo "$(basename "${SLURM_JOB_NAME:-$0}"): $*" >&2
    exit 2
}

show_help() { # SCRIPT: its opening comment, without the #SBATCH lines
    sed -n '2,/^set -/p' "$1" | grep -v -e '^#SBATCH' -e '^set -' | sed 's/^# \{0,1\}//'
}

has_argument() { # SECTION.FIELD ARGUMENTS...: a field is set in either spelling (data.index_path=, --index-path)
    local field=${1#*.} name=$1 argument
    shift
    for argument in "$@"; do
        case $argument in
        "$name="* | "--${field//_/-}" | "--${field//_/-}="*) return 0 ;;
        esac
    done
    return 1
}

holds_checkpoint() { # FOLDER: a run's, its `checkpoints`, or a checkpoint's own (iter_0000100, or of tools/import_hf.py)
    [[ -s $1/latest_checkpointed_iteration.txt || -s $1/checkpoints/latest_checkpointed_iteration.txt ||
        -s $1/trainer_state.json ]]
}

check_data_index() { # VARIABLE: paths of data sets joined by commas
    local path
    for path in ${!1//,/ }; do
        [[ -f $path || -f $path/index.parquet ]] ||
            fail "$1: no data set at '$path' (looked for it and for $path/index.parquet from $PWD)"
    done
}

mount_outside_repository() { # PATH...: add absolute paths outside the repository to CONTAINER_MOUNTS
    local path
    for path in "$@"; do
        case $path in
        "$PWD"/* | "") ;;
        /*) CONTAINER_MOUNTS=${CONTAINER_MOUNTS:+$CONTAINER_MOUNTS,}$path:$path ;;
        esac
    done
    export CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-}
}

recipe_with_model() { # RECIPE: name a recipe of the same training with the model preset MODEL, written to RUN_DIR
    local recipe=$1 presets=phantom_mega/recipes/model
    [[ -f $presets/$MODEL.yaml ]] ||
        fail "MODEL: no preset '$MODEL' (there are: $(basename -s .yaml -a $presets/*.yaml | paste -sd ' '))"
    [[ $recipe != *.yaml ]] || recipe=$(realpath "$recipe")
    mkdir -p "$RUN_DIR"
    printf '# Written by slurm/common.sh from RECIPE and MODEL.\nbase: ["%s", "model/%s"]\n' \
        "$recipe" "$MODEL" >"$RUN_DIR/recipe.yaml"
    realpath "$RUN_DIR/recipe.yaml"
}

run_stage() { # RECIPE LOAD-RECIPE ARGUMENTS...: LOAD-RECIPE is empty for a stage that starts from nothing
    local recipe=$1 load_recipe=$2
    shift 2
    local suffix=${MODEL:+-$MODEL}
    export RUN_DIR=${RUN_DIR:-runs/$(basename "$recipe" .yaml)$suffix}
    local load=${LOAD:-} arguments=()
    [[ -n $load || -z $load_recipe ]] || load=runs/$load_recipe$suffix/checkpoints

    if [[ -n ${DATA_INDEX:-} ]]; then
        check_data_index DATA_INDEX
        arguments+=("data.index_path=[$DATA_INDEX]")
    elif [[ $recipe != *.yaml ]] && ! has_argument data.index_path "$@"; then
        fail "DATA_INDEX is not set: the folder of the training data's index.parquet, or several joined by commas." \
            "Example: DATA_INDEX=/data/phantom/train sbatch slurm/stage1_256p.sh." \
            "Sample data: launchers/quickstart.sh makes runs/quickstart/curated/shards/train"
    fi
    if [[ -n ${VALID_INDEX:-} ]]; then
        check_data_index VALID_INDEX
        arguments+=("data.valid_index_path=[$VALID_INDEX]")
    fi
    if [[ -n $load ]] && ! has_argument train.load "$@"; then
        holds_checkpoint "$load" || holds_checkpoint "$RUN_DIR" ||
            fail "LOAD: no checkpoint in '$load' (no latest_checkpointed_iteration.txt from $PWD)." \
                "Let this job wait for the one that writes it (sbatch --dependency=afterok:JOB), or set LOAD"
        arguments+=("train.load=$load")
    fi
    if [[ -n ${MODEL:-} ]]; then recipe=$(recipe_with_model "$recipe"); fi
    [[ -z ${CONTAINER_IMAGE:-} ]] || mount_outside_repository "$RUN_DIR" "$load" \
        ${DATA_INDEX:+${DATA_INDEX//,/ }} ${VALID_INDEX:+${VALID_INDEX//,/ }}

    # A batch job that stops early is put back into the queue; a script run by hand just ends (exit code 75).
    export REQUEUE=${REQUEUE:-$([[ -n ${SLURM_JOB_ID:-} ]] && echo 1 || echo 0)}
    # exec: Slurm sends --signal=B:USR1 to the process of the batch script, which run.sh is from here on.
    exec bash launchers/run.sh launchers/train.py --config "$recipe" "train.save=$RUN_DIR" "${arguments[@]}" "$@"
}
