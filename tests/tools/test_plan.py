"""tools/plan.py on the command line: its report, its JSON, both phases, and mistakes in one line."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from phantom_mega.errors import UserError
from tests.scripts import run_script

REPOSITORY = Path(__file__).parents[2]


def tool(*words):
    return run_script("tools/plan.py", *words)


def script():
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("plan", REPOSITORY / "tools/plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(capsys, *words):
    """What the tool prints, in this process."""
    script().main([str(word) for word in words])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    done = tool("--config", "stage1_256p", "--nodes", 16, "--gpu", "h100", "--json", path, "--top", 3)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout, json.loads(path.read_text())


def test_the_report_says_what_is_assumed_and_holds_all_parts(plan):
    text, _ = plan
    for part in (
        "stage1_256p on 16 x 8 h100", "5.09B parameters", "assumed: sizes of the recipe", "assumed, not measured",
        "arXiv 2307.08691", "the recipe's own layout: TP 2 x CP 1 x PP 1 x DP 64", "gradient reduction", "workspace",
        "the 3 fastest of", "GPU-hours", "use it: --tensor-model-parallel-size", "refused: ",
    ):  # fmt: skip
        assert part in text, part


def test_the_json_holds_the_same_numbers(plan):
    text, content = plan
    own = content["own"]
    memory = {name: size for name, size in own["memory"].items() if name not in ("total", "host")}
    assert sum(memory.values()) == pytest.approx(own["memory"]["total"])
    seconds = {name: part for name, part in own["seconds"].items() if name != "total"}
    assert sum(seconds.values()) == pytest.approx(own["seconds"]["total"])
    assert f"{own['gpu_hours']:,.0f} GPU-hours for 50,000 iterations" in text
    assert own["gpu_hours"] == pytest.approx(own["seconds"]["total"] * 50_000 * 128 / 3600)
    assert f"the 3 fastest of {len(content['ranked'])} layouts" in text
    assert not content["rates"]["measured"]


def test_the_words_under_use_it_are_flags_of_the_launcher(plan):
    from phantom_mega.config_io import load_run_config

    words = re.search(r"use it: (.*)", plan[0]).group(1).split()
    parallel = load_run_config("stage1_256p", words).parallel
    best = plan[1]["ranked"][0]["layout"]
    assert {name: getattr(parallel, name) for name in best} == best


def test_both_phases_are_added_up_beside_the_papers_number(capsys):
    text = run(capsys, "--phases", "--nodes", 16, "--gpu", "a100-80", "--top", 1)
    found = re.findall(r"([\d,]+) GPU-hours  \(TP|both +([\d,]+)", text)
    hours = [int((phase or both).replace(",", "")) for phase, both in found]
    assert len(hours) == 3 and abs(hours[0] + hours[1] - hours[2]) <= 1
    assert "about 30,000 A100-hours" in text and "assumed rates" in text


def test_measured_rates_come_from_a_file(tmp_path, capsys):
    path = tmp_path / "rates.json"
    rates = {"linear_bf16": 500.0, "attention_bf16": 400.0, "linear_fp8": 700.0}
    path.write_text(json.dumps({"rates": rates, "device": "NVIDIA H100 80GB HBM3"}))
    text = run(capsys, "--config", "tiny_stage1", "--rates", path, "--global-batch-size", 8, "--references", 1)
    assert "500 TFLOP/s in linear layers, 400 in attention: measured" in text


def test_what_is_small_is_shown_in_a_unit_in_which_it_can_be_read(plan, capsys):
    assert re.search(r" optimizer +<0.001 ", plan[0]) and "seconds of an iteration" in plan[0]
    text = run(capsys, "--config", "tiny_stage1", "--global-batch-size", 8, "--references", 1)
    assert "milliseconds of an iteration" in text and re.search(r" total +0\.[0-9]*[1-9]", text)
    assert not re.search(r" 0\.000 +[1-9]", text + plan[0])


def test_settings_of_the_launcher_change_the_plan(capsys):
    text = run(capsys, "--config", "tiny_stage1", "--nodes", 1, "--num-layers", 6, "--refused", "--references", 1)
    assert "6 dual-stream blocks" in text
    assert re.search(r"TP 1 CP 1 PP 1: train.global_batch_size=2 is not a multiple", text)


def test_json_alone_goes_to_the_standard_output(capsys):
    content = json.loads(run(capsys, "--config", "tiny_stage1", "--global-batch-size", 8, "--json", "-"))
    assert content["recipe"] == "tiny_stage1" and content["ranked"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--config", "stage1_256"], "there is no recipe 'stage1_256'; did you mean stage1_256p?"),
        (["--config", "stage1_256p", "--gpu", "h10"], "--gpu h10 is unknown"),
        (["--config", "stage1_256p", "--nodes", 0], "--nodes 0 must be at least 1"),
        (["--config", "stage1_256p", "--margin", 1], r"--margin 1.0 must lie in \[0, 1\)"),
        (["--config", "stage1_256p", "--references", 9], "--references 9 must lie in 0..4"),
        (["--config", "stage1_256p", "--rates", "/nowhere"], "--rates /nowhere cannot be read"),
        (["--config", "stage1_256p", "--tensor-model-paralel-size", 2], "did you mean --tensor-model-parallel-size"),
        (["--config", "stage1_256p", "--index-path", "[/nowhere]"], "/nowhere"),
        (["--config", "tiny_stage1", "--attention-backend", "tritn"], "attention_backend='tritn' is unknown"),
        (["--config", "stage1_256p", "--fp8", "hybrd"], "precision.fp8='hybrd' is unknown; use one of hybrid, e4m3"),
        (["--config", "tiny_stage1", "--global-batch-size", 0], "train.global_batch_size=0 must be at least 1"),
        (["--config", "tiny_stage1", "--json", "/nowhere/plan.json"], "/nowhere/plan.json could not be written"),
    ],
)
def test_a_mistake_is_told_with_what_would_be_right(words, message):
    with pytest.raises(UserError, match=message):
        script().main([str(word) for word in words])


def test_a_mistake_ends_the_command_with_one_line():
    done = tool("--config", "stage1_256")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("plan: there is no recipe 'stage1_256'")


def test_help_has_examples_and_no_config_is_an_error():
    done = tool("--help")
    assert done.returncode == 0 and "python tools/plan.py --config stage1_256p --nodes 16 --gpu h100" in done.stdout
    assert "--config is needed" in tool("--nodes", 1).stderr
    assert "leave out --config, or --phases" in tool("--phases", "--config", "tiny_stage1").stderr
