"""Stages on a real Ray: what is done is left alone, what changed is made again, and a crash costs one row."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from phantom_mega.curation.engine.run import locked, ray_session, run_stage
from phantom_mega.curation.engine.stage import Rejection, Stage, verdict
from phantom_mega.curation.engine.tables import Table
from phantom_mega.errors import SetupError, UserError
from tests.training.conftest import REPOSITORY

PARTS = 4


@dataclass
class Halving:
    """Settings of a stage."""

    calls: str = ""  # file that gets a line for every row that is computed
    crash_at: int = -1
    fail_at: int = -1
    wait: float = 0.0


def numbers(count):
    return [{"name": f"n{i:03d}", "value": i} for i in range(count)]


def open_half(settings):
    def half(row):
        if settings.calls:
            with open(settings.calls, "a") as file:
                file.write(f"{row['name']}\n")
        time.sleep(settings.wait)
        if row["value"] == settings.crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if row["value"] == settings.fail_at:
            raise ZeroDivisionError("no such number")
        if row["value"] % 2:
            raise Rejection("odd", row["value"])
        return [{"name": row["name"], "half": row["value"] // 2, "bytes": bytes([row["value"]])}]

    return half


def open_small(settings):
    def small(row):
        if row["half"] < settings:
            raise Rejection("too small", row["half"])
        return [{"name": row["name"], "sum": row["half"] + row["value"]}]

    return small


def open_total(settings):
    def total(tables):
        return [{"what": "total", "value": sum(tables["small"]["sum"].to_pylist())}]

    return total


def open_halves(settings):
    half = open_half(settings)

    def halves(rows):
        with open(f"{settings.calls}.batches", "a") as file:
            file.write(f"{len(rows)}\n")
        return [half(row) for row in rows]

    return halves


def stages(count=20, least=5, **halving):
    name, number = pa.field("name", pa.string()), pa.int64()
    return [
        Stage("numbers", (name, pa.field("value", number)), {}, count, None, source=numbers),
        Stage("half", (name, pa.field("half", number), pa.field("bytes", pa.binary())), {"numbers": ("name", "value")},
              Halving(**halving), open_half),
        Stage("small", (name, pa.field("sum", number)), {"half": ("name", "half"), "numbers": ("name", "value")}, least,
              open_small),
        Stage("total", (pa.field("what", pa.string()), pa.field("value", number)), {"small": ("name", "sum")}, None,
              open_total, whole=True),
    ]  # fmt: skip


def run(folder, retry=False, **settings):
    return {stage.name: run_stage(stage, folder, PARTS, retry, quiet=True) for stage in stages(**settings)}


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def ray():
    with ray_session(num_cpus=2):
        yield


def test_rows_go_through_or_are_kept_with_the_reason(ray, tmp_path):
    results = run(tmp_path)
    assert (results["half"].rows, results["half"].accepted, results["half"].reasons) == (20, 10, {"odd": 10})
    assert (results["small"].rows, results["small"].accepted) == (10, 5)
    table = Table(tmp_path, "small", PARTS)
    accepted = table.read(["name", "sum"], accepted=True).to_pylist()
    assert sorted(row["sum"] for row in accepted) == [15, 18, 21, 24, 27]
    rejected = table.read(["name", "reason", "score"], accepted=False).sort_by("name").to_pylist()
    assert rejected[1] == {"name": "n002", "reason": "too small", "score": 1.0}
    assert Table(tmp_path, "total", PARTS).read(["value"])["value"].to_pylist() == [105]
    assert Table(tmp_path, "half", PARTS).read(["bytes"], accepted=True)["bytes"].to_pylist().count(b"\x04") == 1
    assert "10 of 20 rows accepted" in results["half"].line() and "odd 10" in results["half"].line()


def test_what_is_done_is_left_alone_and_a_changed_threshold_recomputes_no_row_before_it(ray, tmp_path):
    calls = tmp_path / "calls"
    run(tmp_path / "work", calls=str(calls))
    before = files(tmp_path / "work")
    again = run(tmp_path / "work", calls=str(calls))
    assert all(result.parts_made == 0 for name, result in again.items() if name != "numbers")
    assert files(tmp_path / "work") == before and len(calls.read_text().split()) == 20
    looser = run(tmp_path / "work", calls=str(calls), least=3)
    assert looser["half"].parts_made == 0 and looser["small"].accepted == 7 and looser["total"].parts_made == PARTS
    assert len(calls.read_text().split()) == 20


def run_batches(folder, calls, batch=3, retry=False, count=20, **halving):
    """The first two stages, the second one in batches; its result, and the sizes of the batches."""
    first, second, *_ = stages(count, calls=str(calls), **halving)
    run_stage(first, folder, PARTS, quiet=True)
    second = dataclasses.replace(second, open=open_halves, batch=batch)
    result = run_stage(second, folder, PARTS, retry, quiet=True)
    sizes = [int(line) for line in Path(f"{calls}.batches").read_text().split()]
    Path(f"{calls}.batches").unlink()
    return result, sizes


def rows_of(folder):
    paths = sorted((folder / "half").glob("*.parquet"))
    return {path.name: pq.read_table(path).drop_columns(["_input"]) for path in paths}


def test_batches_give_the_same_rows_and_a_bad_row_does_not_spoil_the_others_of_its_batch(ray, tmp_path):
    run(tmp_path / "one", calls=str(tmp_path / "calls"), fail_at=4)
    result, sizes = run_batches(tmp_path / "many", tmp_path / "calls", fail_at=4)
    assert (result.rows, result.accepted, result.reasons) == (20, 9, {"odd": 10, "failed": 1})
    assert max(sizes) == 3 and sizes.count(1) >= 20 - 2 * PARTS, "odd rows are in all batches: made one by one"
    one, many = rows_of(tmp_path / "one"), rows_of(tmp_path / "many")
    assert one == many and sum(map(len, many.values())) == 20
    again, _ = run_batches(tmp_path / "many", tmp_path / "calls", fail_at=4, count=21)
    assert again.made == 1, "known rows are not made again, and do not fill batches"


def test_a_row_that_kills_its_worker_takes_no_other_of_its_batch_with_it(ray, tmp_path):
    result, sizes = run_batches(tmp_path, tmp_path / "calls", batch=20, crash_at=6)
    assert result.reasons == {"odd": 10, "crashes the worker": 1} and result.accepted == 9 and result.rows == 20
    crashed = Table(tmp_path, "half", PARTS).read(["name", "reason"]).filter(pc.field("reason") == "crashes the worker")
    assert crashed["name"].to_pylist() == ["n006"] and max(sizes) > 1


def test_a_batch_without_a_result_for_each_row_is_a_failure_of_each(ray, tmp_path):
    first, second, *_ = stages(4)
    run_stage(first, tmp_path, 1, quiet=True)
    second = dataclasses.replace(second, open=open_too_few, batch=4)
    assert run_stage(second, tmp_path, 1, quiet=True).reasons == {"failed": 4}


def open_too_few(settings):
    return lambda rows: []


def open_squares(as_table):
    """All numbers' squares, the odd ones rejected: as rows, or as a table in pieces."""

    def squares(tables):
        rows = [
            {"name": row["name"], "square": row["value"] ** 2, "texts": [row["name"], "é"] * (row["value"] % 3)}
            | (verdict({}, "odd", row["value"]) if row["value"] % 2 else {} if as_table else verdict({}, None))
            for row in tables["numbers"].to_pylist()[::-1]
        ]
        if not as_table:
            return rows
        rows = [{"accepted": True, "reason": None, "score": None} | row for row in rows]
        schema = pa.schema(
            [
                ("score", pa.float64()),
                ("name", pa.string()),
                ("square", pa.int64()),
                ("texts", pa.list_(pa.string())),
                ("accepted", pa.bool_()),
                ("reason", pa.string()),
            ]
        )
        pieces = [
            pa.Table.from_pylist([{k: row[k] for k in schema.names} for row in rows[i : i + 7]], schema)
            for i in range(0, len(rows), 7)
        ]
        return pa.concat_tables(pieces) if pieces else schema.empty_table()

    return squares


def run_squares(folder, as_table, count=20):
    columns = (pa.field("name", pa.string()), pa.field("square", pa.int64()), pa.field("texts", pa.list_(pa.string())))
    stage = Stage("squares", columns, {"numbers": ("name", "value")}, None, None, whole=True)
    run_stage(stages(count)[0], folder, PARTS, quiet=True)
    return run_stage(dataclasses.replace(stage, open=lambda _: open_squares(as_table)), folder, PARTS, quiet=True)


@pytest.mark.parametrize("count", [0, 1, 20])
def test_a_whole_stage_may_give_a_table_and_its_files_are_those_of_the_same_rows(tmp_path, count):
    by_rows, by_table = (run_squares(tmp_path / str(as_table), as_table, count) for as_table in (False, True))
    by_rows.seconds = by_table.seconds = 0
    assert by_rows == by_table and by_rows.rows == count and by_rows.parts_made == PARTS
    assert files(tmp_path / "False") == files(tmp_path / "True")
    assert run_squares(tmp_path / "True", True, count).parts_made == 0


def test_a_table_of_accepted_rows_alone_needs_no_verdict_and_no_other_columns(tmp_path):
    run_stage(stages(9)[0], tmp_path, PARTS, quiet=True)
    columns = (pa.field("name", pa.string()), pa.field("square", pa.int64()))

    def renamed(names):
        return lambda tables: tables["numbers"].select(["name"]).rename_columns(names)

    def only(*names):
        return Stage("only", columns, {"numbers": ("name", "value")}, names, renamed, whole=True)

    assert run_stage(only("name"), tmp_path, PARTS, quiet=True).accepted == 9
    rows = Table(tmp_path, "only", PARTS).read().to_pylist()
    assert {(row["square"], row["accepted"], row["reason"]) for row in rows} == {(None, True, None)}
    with pytest.raises(TypeError, match="column 'nome' that it does not declare"):
        run_stage(only("nome"), tmp_path, PARTS, quiet=True)


def test_new_rows_are_computed_and_known_ones_are_not(ray, tmp_path):
    calls = tmp_path / "calls"
    run(tmp_path / "work", calls=str(calls))
    more = run(tmp_path / "work", calls=str(calls), count=24)
    assert more["half"].made == 4
    assert len(calls.read_text().split()) == 24
    fewer = run(tmp_path / "fewer", calls=str(calls), count=24)
    assert fewer["half"].rows == 24 and files(tmp_path / "fewer") == files(tmp_path / "work")


def test_a_row_that_kills_its_worker_is_recorded_and_the_rest_is_done(ray, tmp_path):
    results = run(tmp_path, crash_at=7)
    assert results["half"].reasons == {"odd": 9, "crashes the worker": 1} and results["half"].accepted == 10


def test_a_row_that_fails_is_recorded_and_made_again_when_asked(ray, tmp_path):
    results = run(tmp_path, fail_at=4)
    assert results["half"].reasons == {"odd": 10, "failed": 1}
    rows = Table(tmp_path, "half", PARTS).read(["name", "reason", "detail"]).to_pylist()
    assert {"name": "n004", "reason": "failed", "detail": "ZeroDivisionError: no such number"} in rows
    assert run(tmp_path, fail_at=4)["half"].parts_made == 0
    assert run(tmp_path, fail_at=4, retry=True)["half"].made == 1


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    whole, broken, calls = tmp_path / "whole", tmp_path / "broken", tmp_path / "calls"
    code = (
        "import sys; from pathlib import Path; from phantom_mega.curation.engine.run import ray_session;"
        "from tests.curation.engine.test_run import run\n"
        "with ray_session(2): run(Path(sys.argv[1]), wait=0.2, calls=sys.argv[2])"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([*command, str(broken), str(calls)], cwd=REPOSITORY, env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not calls.exists() or len(calls.read_text().split()) < 7):
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(3)  # Ray's workers notice that their driver is gone
    begun = len(calls.read_text().split())
    assert 7 <= begun < 20
    subprocess.run([*command, str(broken), str(calls)], cwd=REPOSITORY, env=environment, check=True, timeout=120)
    assert len(calls.read_text().split()) <= 20 + 2, "two workers lost the row that they were at"
    subprocess.run([*command, str(whole), str(calls)], cwd=REPOSITORY, env=environment, check=True, timeout=120)
    assert files(whole) == files(broken)


def test_the_journal_of_a_part_that_is_done_is_removed_and_that_of_another_is_used(ray, tmp_path):
    run(tmp_path)
    left = [tmp_path / f"half/.part-{part:05d}.journal" for part in range(2)]
    for path in left:
        path.write_text("")
    (tmp_path / "half/part-00001.parquet").unlink()
    assert run(tmp_path)["half"].parts_made == 1
    assert not any(path.exists() for path in left)


def open_never(settings):
    raise UserError("no such model")


def open_locked(settings):
    def refuse(row):
        raise SetupError("the key is refused")

    return refuse


@pytest.mark.parametrize(("opened", "message"), [(open_never, "no such model"), (open_locked, "the key is refused")])
def test_what_every_row_would_fail_at_ends_the_run_and_marks_no_row(ray, tmp_path, opened, message):
    first, second, *_ = stages()
    run_stage(first, tmp_path, PARTS, quiet=True)
    with pytest.raises(UserError, match=message):
        run_stage(dataclasses.replace(second, open=opened), tmp_path, PARTS, quiet=True)
    assert not any((tmp_path / "half").glob("*.parquet"))
    assert run_stage(second, tmp_path, PARTS, quiet=True).accepted == 10


def test_mistakes_are_told(ray, tmp_path):
    with pytest.raises(UserError, match="stage half needs stage numbers, which has not run"):
        run_stage(stages()[1], tmp_path, PARTS, quiet=True)
    run(tmp_path)
    (tmp_path / "numbers/part-00001.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(UserError, match=r"numbers/part-00001.parquet is damaged; remove it"):
        run_stage(stages()[1], tmp_path, PARTS, quiet=True)
    with locked(tmp_path), pytest.raises(UserError, match="another run is at work"), locked(Path(tmp_path)):
        pass


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path):
    left = tmp_path / "deep/.part-00000.parquet.123.writing"
    left.parent.mkdir()
    left.touch(), (tmp_path / "deep/notes.writing").touch()
    with locked(tmp_path):
        assert left.exists(), "the last run here was not killed"
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    code = "import os; from pathlib import Path; from phantom_mega.curation.engine.run import locked\n"
    code += f"with locked(Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    with locked(tmp_path):
        assert left.exists(), "it ended by itself"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    with locked(tmp_path):
        assert not left.exists() and (tmp_path / "deep/notes.writing").exists()
