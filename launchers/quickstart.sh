#!/usr/bin/env bash
# From a fresh clone to a generated video: makes the environment, curates a film and two clips to training triplets, trains
# stage 1 and stage 2 of the tiny recipe (on the GPU if there is one), draws the loss and the training samples, exports
# stage 2 for diffusers, and generates videos of subjects that were held out.
# Everything lies in runs/quickstart. About seven minutes on two cores, after the install.
#
#   bash launchers/quickstart.sh             run, or go on where an earlier run stopped
#   bash launchers/quickstart.sh --fresh     remove runs/quickstart and start over
set -euo pipefail

# shellcheck source=launchers/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$repo"
out=runs/quickstart

latest_iteration() { # RUN
    cat "$1/checkpoints/latest_checkpointed_iteration.txt" 2>/dev/null || echo 0
}

train() { # NAME ARGUMENTS...
    local run=$out/$1 config=tiny_$1 before after code=0
    shift
    before=$(latest_iteration "$run")
    say "training $config ($run)"
    "$VENV/bin/python" launchers/train.py --config "$config" "data.index_path=[$out/curated/shards/train]" \
        "train.save=$run" "$@" || code=$?
    if [[ $code == 75 ]]; then
        fail "stopped early; a checkpoint is written. Run this script again to go on"
    elif [[ $code != 0 ]]; then
        exit "$code"
    fi
    after=$(latest_iteration "$run")
    if [[ $after == "$before" ]]; then say "$config was finished already, at iteration $after"; fi
}

main() {
    case ${1:-} in
    "") ;;
    --fresh) rm -rf "$out" ;;
    -h | --help) show_help "$0" && exit ;;
    *) fail "unknown argument '$1' (see --help)" ;;
    esac
    ensure_environment
    mkdir -p "$out"
    local python=$VENV/bin/python
    say "sample videos"
    "$python" tools/fetch_samples.py --output "$out/sources"
    say "curation: from videos to triplets with references from other shots ($out/curated/report.html)"
    "$python" launchers/curate.py --input "$out/sources" --output "$out/curated" --config sample \
        --annotations "$out/sources/annotations.jsonl"
    train stage1
    train stage2 "train.load=$out/stage1/checkpoints"
    say "pictures"
    "$python" tools/plot_loss.py "$out/stage1" "$out/stage2" --output "$out/loss.png"
    "$python" tools/contact_sheet.py --data "$out/curated/shards/train" --output "$out/contact_sheet.png"
    say "export"
    "$python" tools/export_hf.py "$out/stage2" "$out/export" --overwrite
    say "videos of held-out subjects"
    "$python" tools/make_cases.py --data "$out/curated/shards/validation" --output "$out/cases" --limit 3
    # Lower than the paper's 3 and 7.5, which are for a model that has seen millions of videos.
    "$python" launchers/generate.py --checkpoint "$out/export" --cases "$out/cases/cases.json" --output "$out/videos" \
        --size 160*96 --frame-num 17 --sample-steps 20 --sample-guide-scale-img 1.5 --sample-guide-scale-text 2.5 \
        --overwrite
    cat <<LIST

Done. In $out:
  loss.png            loss of both stages
  contact_sheet.png   the training samples: references beside frames, captions under them
  videos/             a video of each held-out case (MP4), and contact_sheet.png of all; after 400 iterations a
                      model of 4.0M parameters draws blocks of colour, and no subject yet
  export/             the trained model as a diffusers folder
  stage1/ stage2/     of each stage: log, TensorBoard events, checkpoints/
  curated/            report.html: what became of the videos; shards/: the triplets, WebDataset shards and index.parquet
Look at the curves with: $VENV/bin/tensorboard --logdir $out
Train on your own data: see README.md; start over: bash launchers/quickstart.sh --fresh
LIST
}

main "$@"
