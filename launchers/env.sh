#!/usr/bin/env bash
# The project's Python environment: finds a Python from 3.12 on, makes .venv, installs the pinned packages, checks them.
# A second call returns at once unless setup.cfg, pyproject.toml, constraints.txt, EXTRAS or its path changed.
#
#   bash launchers/env.sh          make or refresh the environment (quickstart.sh and test.sh do so themselves)
#
# Environment: VENV [.venv of the repository], BASE_PYTHON (the interpreter to make it from) [searched],
# EXTRAS [test]; EXTRAS=test,te adds Transformer Engine for NVIDIA GPUs.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$(realpath -m "${VENV:-$repo/.venv}")
export VENV

say() { echo "== $*" >&2; }

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

show_help() { # SCRIPT: its opening comment
    sed -n '2,/^set -/p' "$1" | sed '$d; s/^# \{0,1\}//'
}

is_new_enough() { # INTERPRETER
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 12))' 2>/dev/null
}

can_make_venv() { # INTERPRETER: Debian keeps these modules in a package of their own
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

find_python() { # print the first interpreter that will do; 3.12 first, because the pinned set was tested with it
    local candidate candidates=() without_venv=""
    if [[ -n ${BASE_PYTHON:-} ]]; then
        is_new_enough "$BASE_PYTHON" || fail "BASE_PYTHON=$BASE_PYTHON is no Python from 3.12 on"
        can_make_venv "$BASE_PYTHON" || fail "BASE_PYTHON=$BASE_PYTHON has no modules ensurepip and venv"
        echo "$BASE_PYTHON"
        return
    fi
    candidates=(python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python python3.13
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python python3.14 python3 python)
    if command -v uv >/dev/null; then
        candidates+=("$(uv python find --no-project '>=3.12' 2>/dev/null || echo uv-has-none)")
    fi
    for candidate in "${candidates[@]}"; do
        is_new_enough "$candidate" || continue
        if can_make_venv "$candidate"; then
            echo "$candidate"
            return
        fi
        without_venv=${without_venv:-$candidate}
    done
    if command -v uv >/dev/null; then
        say "no Python from 3.12 on yet; asking uv for one"
        if uv python install 3.12 >&2; then
            uv python find --no-project 3.12
            return
        fi
    fi
    if [[ -n $without_venv ]]; then
        fail "$without_venv cannot make environments; install its venv module" \
            "(Debian, Ubuntu: apt install python3-venv or python3.12-venv)"
    fi
    fail "no Python from 3.12 on was found (looked for python3.12, python3, pyenv's versions, uv). Get one with" \
        "'apt install python3.12 python3.12-venv' (Ubuntu 24.04), 'pyenv install 3.12', or 'uv python install 3.12'" \
        "(https://docs.astral.sh/uv), or name one: BASE_PYTHON=/path/to/python bash launchers/env.sh"
}

venv_is_sound() { # it runs, is new enough, has pip, and its commands name it (a moved checkout breaks them)
    is_new_enough "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1 &&
        head -n 2 "$VENV/bin/pip" | grep -qF "$VENV/bin/"
}

fingerprint() {
    echo "$repo $VENV ${EXTRAS:-test}"
    sha256sum "$repo/setup.cfg" "$repo/pyproject.toml" "$repo/constraints.txt" | cut -d' ' -f1
}

install_environment() {
    local stamp=$VENV/installed.stamp python
    if venv_is_sound; then
        [[ $(cat "$stamp" 2>/dev/null) != "$(fingerprint)" ]] || return 0
    else
        if [[ -e $VENV ]]; then
            [[ -f $VENV/pyvenv.cfg ]] || [[ -z $(ls -A "$VENV") ]] ||
                fail "$VENV is in the way: it is no Python environment; move it or set VENV"
            say "$VENV does not work (moved, or its Python is gone); making it anew"
            rm -rf "$VENV"
        fi
        python=$(find_python)
        say "making $VENV with $("$python" --version) ($python)"
        "$python" -m venv "$VENV"
    fi
    say "installing the pinned packages (6 GB with CUDA, some minutes)"
    (cd "$repo" && "$VENV/bin/python" -m pip install --disable-pip-version-check -c constraints.txt \
        -e ".[${EXTRAS:-test}]" >&2) || fail "pip could not install the packages (see above); run this again to go on"
    "$VENV/bin/python" -m pip check --disable-pip-version-check >&2 || fail "pip check found packages that do not fit"
    fingerprint >"$stamp"
}

ensure_environment() { # make $VENV ready; two calls at the same time take turns
    local lock
    lock=${TMPDIR:-/tmp}/phantom_mega-$(id -u)-$(sha256sum <<<"$VENV" | cut -c1-12).lock
    (
        if ! flock -n 9; then
            say "waiting for another install into $VENV"
            flock 9
        fi
        install_environment
    ) 9>"$lock"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    case ${1:-} in
    "")
        ensure_environment # not in a && list, where errors would not end it
        say "ready: $VENV"
        ;;
    *) show_help "$0" ;;
    esac
fi
