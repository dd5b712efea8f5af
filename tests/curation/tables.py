"""Tables of stages written by hand, for stages that read them, and decoding of what comes out."""

from collections import Counter

from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.engine.part import PartRunner
from phantom_mega.curation.engine.run import run_stage
from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.engine.tables import Table, part_of
from phantom_mega.data.decode import PyAVDecoder
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.plan import PlannedSample
from phantom_mega.data.shards import ShardReader
from phantom_mega.geometry import SampleShape, token_grid

PARTS = 2


def write_table(folder, name, rows, leave_out=()):
    """A stage's table of rows that are accepted if they do not say otherwise."""
    write_stage(folder, Stage(name, fields_of(name, *leave_out), {}, None, None), rows)


def write_stage(folder, stage, rows, parts=PARTS, by=None):
    """The table of any stage; rows lie in parts by their key, or by another column (crops lie with their clips)."""
    members = [[] for _ in range(parts)]
    for row in sorted(rows, key=lambda row: str(row[stage.key])):
        members[part_of(str(row[by or stage.key]), parts)].append({"accepted": True, "_input": bytes(16)} | row)
    for part, some in enumerate(members):
        Table(folder, stage.name, parts).write(part, some, stage.schema, b"by hand")


def run_here(stages, folder):
    """Run stages without Ray; rejected rows' reasons, by stage."""
    reasons = {}
    for stage in stages:
        if stage.whole or stage.source:
            reasons[stage.name] = run_stage(stage, folder, PARTS, quiet=True).reasons
        else:
            runner = PartRunner(stage, folder, PARTS, "here")
            reasons[stage.name] = sum((runner(part).reasons for part in range(PARTS)), Counter())
    return reasons


def decode_all(data_set):
    """Key -> (triplet, decoded sample) of a data set: all frames at a small size, by the trainer's own classes."""
    index = TripletIndex.open([data_set])
    reader, decoder, found = ShardReader(index), PyAVDecoder(), {}
    for row in range(len(index)):
        raw = reader.read(row)
        triplet, count = raw.triplet, len(raw.triplet.references)
        shape = SampleShape(*token_grid(triplet.frames, 48, 64), count, triplet.text_tokens, 4)
        sample = PlannedSample(
            row, triplet.key, 48, 64, triplet.frames, tuple(range(triplet.frames)), tuple(range(count)), 4, 0, shape
        )
        found[triplet.key] = (triplet, decoder.decode_one(sample, raw))
    return found
