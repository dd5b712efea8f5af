"""The index: rows come back, data sets join, foreign and damaged files are refused, little is held in memory."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phantom_mega.data.index import SCHEMA, TripletIndex, index_row, write_index
from phantom_mega.errors import UserError
from tests.data.helpers import make_index, make_triplet


def write(folder, triplets, tokenizer="tok", **settings):
    folder.mkdir(exist_ok=True)
    rows = [index_row(t, f"shard-{i // 2:06d}.tar", 512 * i, 100 + i, i) for i, t in enumerate(triplets)]
    return write_index(folder, rows, tokenizer, **settings)


def some(count, prefix="k", **fields):
    return [
        make_triplet(f"{prefix}{i}", references=i % 4, kind=["cross", "in", "in"][: i % 4], **fields)
        for i in range(count)
    ]


@pytest.mark.parametrize("batch", [3, 10_000])
def test_rows_come_back_in_order(tmp_path, batch):
    triplets = some(7)
    index = TripletIndex.open([write(tmp_path, triplets, batch=batch)])
    assert len(index) == 7 and index.tokenizer == "tok" and list(index.keys()) == [f"k{i}" for i in range(7)]
    assert index.column("offset").tolist() == [512 * i for i in range(7)]
    assert index.column("frames").tolist() == [33] * 7 and index.column("codec").tolist() == ["vp9"] * 7
    assert index.value("shard", 3) == str(tmp_path / "shard-000001.tar") == index.column("shard")[3]
    reference = triplets[2].references[1]
    assert index.references(2)[1] == {
        "phrase": reference.phrase, "category": "human", "kind": "in", "height": 30, "width": 20,
        "video_id": "video_b", "frame": 3, "box": [0.0, 1.0, 20.0, 31.0], "mask": False,
    }  # fmt: skip
    assert index.value("scores", 0) == [("q", 0.5)]


def test_kinds_of_references_are_found_by_row(tmp_path):
    write(tmp_path / "a", some(4))
    write(tmp_path / "b", some(4, "other"))
    offsets, kinds = TripletIndex.open([tmp_path / "a", tmp_path / "b"]).reference_kinds()
    assert offsets.tolist() == [0, 0, 1, 3, 6, 6, 7, 9, 12]
    assert kinds.tolist() == ["cross", "cross", "in", "cross", "in", "in"] * 2
    offsets, kinds = make_index(some(1)).reference_kinds()
    assert offsets.tolist() == [0, 0] and kinds.tolist() == []


def test_only_what_planning_needs_is_read(tmp_path):
    index = TripletIndex.open(write(tmp_path, some(3)))
    assert not {"codec", "scores", "video_id"} & set(index.table.column_names)
    assert [field.name for field in index.table.field("references").type.value_type] == ["kind"]
    assert pa.types.is_dictionary(index.table.field("shard").type)


def test_data_sets_join_and_name_their_own_shards(tmp_path):
    write(tmp_path / "a", some(2))
    write(tmp_path / "b", some(3, "other"))
    index = TripletIndex.open([tmp_path / "a", tmp_path / "b" / "index.parquet"])
    assert len(index) == 5
    folders = [str(tmp_path / name / "shard-00000") for name in "aabbb"]
    assert [index.value("shard", row)[:-5] for row in range(5)] == folders
    assert index.column("codec").tolist() == ["vp9"] * 5 and len(index.references(4)) == 2


def test_a_key_that_occurs_twice_is_refused_with_both_places(tmp_path):
    write(tmp_path / "a", some(5))
    write(tmp_path / "b", some(1, "k4"))  # k40
    assert len(TripletIndex.open([tmp_path / "a", tmp_path / "b"])) == 6
    write(tmp_path / "b", [make_triplet("k4")])
    with pytest.raises(UserError, match=r"key 'k4' occurs twice: in .*a/shard-000002.tar and in .*b/shard-000000.tar"):
        TripletIndex.open([tmp_path / "a", tmp_path / "b"])


def test_different_tokenizers_are_refused(tmp_path):
    write(tmp_path / "a", some(2), "one")
    write(tmp_path / "b", some(2, "other"), None)
    with pytest.raises(
        UserError, match=r"different tokenizers \(.*a/index.parquet: one; .*not counted\).*--recount-text"
    ):
        TripletIndex.open([tmp_path / "a", tmp_path / "b"])


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.index_path is empty"):
        TripletIndex.open([])
    with pytest.raises(UserError, match=r"there is no index at .*tools/build_index\.py"):
        TripletIndex.open([tmp_path])
    (tmp_path / "index.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not a readable parquet"):
        TripletIndex.open([tmp_path])
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "index.parquet")
    with pytest.raises(UserError, match="schema version None; this release reads 1"):
        TripletIndex.open([tmp_path])
    pq.write_table(
        pa.table({"key": ["a"]}).replace_schema_metadata({"schema_version": "1"}), tmp_path / "index.parquet"
    )
    with pytest.raises(UserError, match="lacks the columns shard, offset"):
        TripletIndex.open([tmp_path])


def rewrite(file, name, values):
    table = pq.read_table(file)
    place = table.schema.get_field_index(name)
    pq.write_table(table.set_column(place, name, pa.array(values, SCHEMA.field(name).type)), file)


@pytest.mark.parametrize("shard", ["/etc/shard.tar", "../other/shard.tar", "a/../../shard.tar"])
def test_shards_outside_of_the_folder_are_refused(tmp_path, shard):
    file = write(tmp_path, some(2))
    rewrite(file, "shard", ["shard-000000.tar", shard])
    with pytest.raises(UserError, match="names a shard outside of its folder"):
        TripletIndex.open(file)


def test_rows_without_a_needed_value_are_refused(tmp_path):
    file = write(tmp_path, some(2))
    rewrite(file, "frames", [1, None])
    with pytest.raises(UserError, match="rows without a value for frames"):
        TripletIndex.open(file)


def test_an_index_is_replaced_whole_or_not_at_all(tmp_path):
    file = write(tmp_path, some(2))

    def failing():
        yield index_row(make_triplet("x"), "s.tar", 0, 1, 1)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_index(tmp_path, failing(), "tok")
    assert [path.name for path in tmp_path.iterdir()] == ["index.parquet"] and len(TripletIndex.open(file)) == 2


def test_an_empty_index_opens(tmp_path):
    index = TripletIndex.open(write(tmp_path, []))
    assert len(index) == 0 and index.reference_kinds()[0].tolist() == [0] and len(index.column("shard")) == 0


def test_the_fingerprint_follows_all_that_plans_read():
    base = make_index(some(3))
    assert base.fingerprint == make_index(some(3)).fingerprint
    others = [
        some(4),
        some(3)[::-1],
        some(3, "q"),
        some(3, frames=34),
        some(3, fps=25.0),
        some(3, width=848),
        some(3, tokens=9),
    ]
    others.append([make_triplet(f"k{i}", references=i, kind="in") for i in range(3)])
    assert len({make_index(triplets).fingerprint for triplets in others} | {base.fingerprint}) == len(others) + 1


def test_key_hashes_do_not_depend_on_the_place():
    assert np.array_equal(make_index(some(5)).key_hashes[::-1], make_index(some(5)[::-1]).key_hashes)
