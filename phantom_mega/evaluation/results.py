"""What was measured, as numbers of a table: means with intervals by subject, by track, and comparisons of methods.

Every case counts in every metric that applies to it: a video that is not there, cannot be read or failed has the worst
value, and what a metric did not find is zero. A metric applies or not by the case, alike for all methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from phantom_mega.errors import UserError
from phantom_mega.evaluation import opens2v
from phantom_mega.evaluation.config import EvaluationConfig
from phantom_mega.evaluation.records import Record
from phantom_mega.evaluation.registry import METRICS, TABLES, applies, says_no, track_of
from phantom_mega.evaluation.run import Task
from phantom_mega.evaluation.statistics import Comparison, Interval, compare, group_means, mean_interval
from phantom_mega.evaluation.videos import NO_VIDEO, UNREADABLE, Method
from phantom_mega.generation.cases import Case

ALL = "all"


@dataclass(frozen=True)
class Value:
    """A metric of a video.

    Attributes:
        value: that counts.
        missing: why it is zero or the worst; "" where all was found.
        applies: whether the case counts in the metric.
        detail: further numbers by name.
        failed: whether the metric could not be measured, and will be tried again.
    """

    value: float
    missing: str = ""
    applies: bool = True
    detail: dict[str, float] = field(default_factory=dict)
    failed: bool = False

    @property
    def broken(self) -> bool:
        """Whether there is no video, it cannot be read, or the metric failed on it."""
        return self.failed or self.missing == NO_VIDEO or self.missing.startswith(UNREADABLE)


@dataclass(frozen=True)
class Summary:
    """A metric of a method over some cases.

    Attributes:
        interval: of the means of subjects; None where the metric applies to no case.
        videos: that it averages over.
        mean_of_videos: the plain mean, subjects with many videos weighing more.
        missing: videos in which something was not found.
    """

    interval: Interval | None
    videos: int
    mean_of_videos: float
    missing: int


@dataclass
class Results:
    """All values.

    Attributes:
        cases: in their order.
        methods: in their order.
        metrics: names of those that were measured.
        skipped: those that were not, and why.
        values: by method, metric, and case.
    """

    cases: list[Case]
    methods: list[Method]
    metrics: list[str]
    skipped: dict[str, str]
    values: dict[str, dict[str, dict[str, Value]]]

    def tracks(self) -> list[str]:
        """Tracks of the cases, `all` first."""
        return [ALL, *sorted({track_of(case) for case in self.cases})]

    def counted(self, method: str, metric: str, track: str = ALL) -> dict[str, float]:
        """Value of each case of a track that the metric applies to."""
        values = self.values[method][metric]
        ids = [case.id for case in self.cases if track in (ALL, track_of(case))]
        return {id: values[id].value for id in ids if values[id].applies}

    def incomplete(self) -> int:
        """Videos that are not there, cannot be read, or failed in a metric."""
        broken = {
            (method, id)
            for method, metrics in self.values.items()
            for values in metrics.values()
            for id, value in values.items()
            if value.broken
        }
        return len(broken)

    def subject(self, id: str) -> str:
        """What a case shows: its references; cases of one subject are not independent."""
        return self._subjects[id]

    def __post_init__(self):
        self._subjects = {case.id: "+".join(case.images) or case.id for case in self.cases}


def collect(
    methods: Sequence[Method],
    cases: Sequence[Case],
    config: EvaluationConfig,
    tasks: Sequence[Task],
    records: dict[str, dict[str, Record]],
    skipped: dict[str, str],
) -> Results | None:
    """All values; None where some are not measured yet.

    Args:
        methods, cases: of the evaluation.
        config: of it.
        tasks: of `run.plan`.
        records: of `records.read_records`.
        skipped: metrics that are left out, and why.
    """
    metrics = [name for name in config.evaluation.metrics if name not in skipped]
    by_path = {task.path: task for task in tasks}
    values: dict[str, dict[str, dict[str, Value]]] = {}
    for method in methods:
        values[method.name] = {name: {} for name in metrics}
        for case in cases:
            task = by_path.get(method.videos.get(case.id))
            for name in metrics:
                found = _value(name, task, records)
                if found is None:
                    return None
                values[method.name][name][case.id] = found
    for name in metrics:
        _leave_out(name, cases, [of_method[name] for of_method in values.values()])
    return Results(list(cases), list(methods), metrics, dict(skipped), values)


def _value(name: str, task: Task | None, records: dict[str, dict[str, Record]]) -> Value | None:
    if task is None:
        return Value(METRICS[name].worst, NO_VIDEO)
    record = records[name].get(task.digests[name])
    if record is None:
        return None
    if record.measured is None:
        return Value(METRICS[name].worst, f"failed: {record.failed}", failed=True)
    return Value(record.measured.value, record.measured.missing, detail=record.measured.detail)


def _leave_out(name: str, cases: Sequence[Case], of_methods: list[dict[str, Value]]) -> None:
    """Mark the cases that a metric does not apply to, by the case itself or as any method's measurement says."""
    for case in cases:
        found = [values[case.id] for values in of_methods]
        if applies(name, case) and not any(says_no(value.missing) for value in found):
            continue
        for values, value in zip(of_methods, found, strict=True):
            values[case.id] = Value(value.value, value.missing, False, value.detail, value.failed)


def summarise(results: Results, config: EvaluationConfig, method: str, metric: str, track: str = ALL) -> Summary:
    """A cell of a table."""
    counted = results.counted(method, metric, track)
    missing = sum(bool(results.values[method][metric][id].missing) for id in counted)
    if not counted:
        return Summary(None, 0, math.nan, 0)
    settings = config.evaluation
    means = list(group_means(counted, results.subject).values())
    interval = mean_interval(means, settings.confidence, settings.resamples, settings.seed)
    return Summary(interval, len(counted), sum(counted.values()) / len(counted), missing)


def compare_methods(results: Results, config: EvaluationConfig, a: str, b: str, metric: str) -> Comparison | None:
    """The first method minus the second, subject by subject; None where the metric applies to no case."""
    groups = [group_means(results.counted(method, metric), results.subject) for method in (a, b)]
    settings = config.evaluation
    return compare(*groups, settings.confidence, settings.resamples, settings.seed) if groups[0] else None


@dataclass(frozen=True)
class OpenS2V:
    """Scores of OpenS2V-Eval.

    Attributes:
        results: of each case.
        summary: with the total; None where there is none.
        why: there is none.
    """

    results: opens2v.Results
    summary: opens2v.Summary | None
    why: str = ""


def opens2v_scores(results: Results, method: Method, split: str, published: opens2v.Results | None = None) -> OpenS2V:
    """What a method has of OpenS2V-Eval's total.

    `facesim_cur` alone is measured here as it is there; the rest comes from the benchmark's own scripts.

    Args:
        results: with `facesim_cur`, if it was measured.
        method: whose scores.
        split: of the cases.
        published: results that the benchmark's scripts wrote; they go before this project's.
    """
    found: opens2v.Results = {}
    for id, value in results.values[method.name].get("facesim_cur", {}).items():
        if value.applies and not value.failed and id in method.videos:
            found.setdefault(id, {})["facesim_cur"] = value.value
    for id, parts in (published or {}).items():
        found[id] = found.get(id, {}) | parts
    absent = [name for name in opens2v.weights(split) if not any(name in parts for parts in found.values())]
    if absent:
        return OpenS2V(found, None, f"no results of {', '.join(absent)}")
    try:
        return OpenS2V(found, opens2v.summarise(found, results.cases, split))
    except UserError as error:
        return OpenS2V(found, None, str(error))


@dataclass
class Tables:
    """Everything that reports show, computed once.

    Attributes:
        results: the values.
        summaries: by (method, metric, track).
        comparisons: by (method, metric): the first method minus this one, for all but the first.
        opens2v: by method.
    """

    results: Results
    summaries: dict[tuple[str, str, str], Summary]
    comparisons: dict[tuple[str, str], Comparison]
    opens2v: dict[str, OpenS2V]

    def shown(self) -> list[tuple[str, list[str], str]]:
        """(title, metrics, track) of each table that has something to show."""
        tracks = self.results.tracks()
        found = []
        for table in TABLES:
            names = [name for name in table.metrics if name in self.results.metrics]
            if names and (not table.track or table.track in tracks):
                found.append((table.title, names, table.track or ALL))
        return found


def tables_of(
    results: Results, config: EvaluationConfig, split: str, published: dict[str, opens2v.Results] | None = None
) -> Tables:
    """Compute everything that reports show.

    Args:
        results: the values.
        config: with confidence and resamples.
        split: of OpenS2V-Eval.
        published: results of the benchmark's own scripts, by method.
    """
    names = [method.name for method in results.methods]
    summaries = {
        (method, metric, track): summarise(results, config, method, metric, track)
        for method in names
        for metric in results.metrics
        for track in results.tracks()
    }
    compared = {
        (other, metric): compare_methods(results, config, names[0], other, metric)
        for other in names[1:]
        for metric in results.metrics
    }
    scores = {one.name: opens2v_scores(results, one, split, (published or {}).get(one.name)) for one in results.methods}
    return Tables(results, summaries, {key: found for key, found in compared.items() if found}, scores)


def as_json(tables: Tables, config: EvaluationConfig) -> dict:
    """All of it as JSON; nan becomes null."""
    results = tables.results
    methods = {}
    for method in results.methods:
        scores = tables.opens2v[method.name]
        total = opens2v.submission(scores.summary) if scores.summary else {"total_score": None, "why": scores.why}
        methods[method.name] = {
            "folder": str(method.folder),
            "missing_videos": [case.id for case in results.cases if case.id not in method.videos],
            "extra_videos": list(method.extra),
            "summary": {
                track: {name: _cell(tables.summaries[method.name, name, track]) for name in results.metrics}
                for track in results.tracks()
            },
            "opens2v": total,
            "cases": {
                case.id: {name: asdict(results.values[method.name][name][case.id]) for name in results.metrics}
                for case in results.cases
            },
        }
    first = results.methods[0].name
    compared = [
        {"a": first, "b": other, "metric": metric} | asdict(found)
        for (other, metric), found in tables.comparisons.items()
    ]
    metrics = {
        name: {"title": METRICS[name].title, "higher_is_better": METRICS[name].higher_is_better,
               "settings": asdict(getattr(config, name))}
        for name in results.metrics
    }  # fmt: skip
    return _plain({
        "format": 1, "evaluation": asdict(config.evaluation), "metrics": metrics, "skipped": results.skipped,
        "methods": methods, "comparisons": compared,
    })  # fmt: skip


def _cell(summary: Summary) -> dict:
    interval = asdict(summary.interval) if summary.interval else {"mean": None, "low": None, "high": None, "count": 0}
    interval["subjects"] = interval.pop("count")
    rest = {"videos": summary.videos, "mean_of_videos": summary.mean_of_videos, "missing": summary.missing}
    return interval | rest


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
