"""Clips and endpoints for stages that ask a language model."""

import json

from phantom_mega.curation.engine.part import PartRunner
from phantom_mega.curation.engine.tables import Table
from tests import loopback
from tests.curation.clips import noise, write_video
from tests.curation.tables import PARTS, run_here, write_table


def write_clips(folder, *names, **more):
    """Tables `clips` and `selected` of clips of three seconds, each of a video of its own; paths by name."""
    paths = {name: write_video(folder / f"{name}.mp4", noise(i, 75)) for i, name in enumerate(names)}
    known = {"start": 0.0, "end": 3.0, "fps": 25.0, "width": 160, "height": 90} | more
    rows = [{"clip_id": name, "video_id": f"v-{name}", "path": str(path)} | known for name, path in paths.items()]
    write_table(folder, "clips", rows)
    write_table(folder, "selected", [{"clip_id": name} for name in names])
    return paths


def run_alone(stage, folder, retry=False):
    """Run a stage; all its rows by clip, each with the verdict. With `retry`, rows that failed are made again."""
    if retry:
        runner = PartRunner(stage, folder, PARTS, "again", retry=True)
        for part in range(PARTS):
            if not runner.is_done(part):
                runner(part)
    else:
        run_here([stage], folder)
    return {row[stage.key]: row for row in Table(folder, stage.name, PARTS).read().to_pylist()}


def says(data):
    """A reply of the endpoint: an object as JSON, or a text."""
    return loopback.ok(data if isinstance(data, str) else json.dumps(data))


def asked(server, number=-1):
    """Messages of a request."""
    return server.seen[number][2]["messages"]
