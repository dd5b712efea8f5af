"""Search of similar crops: what is found, what is left out, and that it depends on neither order nor threads."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.curation import neighbours
from phantom_mega.curation.neighbours import NeighbourSettings, open_neighbours, stage
from phantom_mega.curation.search import IndexOptions, Searcher, nearest, number_of_lists, transform
from phantom_mega.errors import UserError
from tests.curation.tables import run_here, write_table
from tests.curation.vectors import by_name, clusters, tables_of, units
from tests.training.conftest import REPOSITORY


def find(tables, **settings):
    return open_neighbours(NeighbourSettings(**settings))(dict(tables))


def expected(vectors, owners, kept):
    """Nearest of others by comparing all, as sets of places."""
    similarity = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    similarity[owners[:, None] == owners[None]] = -9
    order = np.argsort(-similarity, axis=1)[:, :kept]
    return [set(row[similarity[i, row] > -9].tolist()) for i, row in enumerate(order)]


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 12), st.integers(1, 8))
def test_the_nearest_of_others_are_those_that_comparing_all_finds(seed, count, owner_count, kept):
    rng = np.random.default_rng(seed)
    vectors, owners = units(rng.standard_normal((count, 8))), rng.integers(0, owner_count, count)
    found = nearest(Searcher(vectors, IndexOptions()), owners, kept)
    assert [set(row[row >= 0].tolist()) for row in found] == expected(vectors, owners, kept)


def test_an_owner_with_more_crops_than_are_asked_for_hides_nobody():
    vectors, _ = clusters(2, 300, noise=0.01)
    owners = np.array([0] * 299 + [1] + [2] * 300)  # 299 of one owner around the one of another
    found = nearest(Searcher(vectors, IndexOptions()), owners, 2)
    assert found[0, 0] == 299 and (owners[found[:299, 1]] == 2).all()


def test_lists_find_nearly_all_and_their_similarities_are_exact():
    vectors, _ = clusters(300, 10, width=32, noise=0.6)
    tables = tables_of(vectors)
    exact = find(tables, neighbours_kept=5)
    for half in (True, False):
        lists = find(tables, neighbours_kept=5, exact_below=0, probes=24, search_half=half)
        pairs = [zip(*(table[name].to_pylist() for table in (exact, lists)), strict=True)
                 for name in ("near", "similarity")]  # fmt: skip
        recall = np.mean([len(set(a) & set(b)) / 5 for a, b in pairs[0]])
        assert recall > 0.98
        first = [(a[0], b[0]) for a, b in pairs[1] if len(b)]
        assert np.mean([a == b for a, b in first]) > 0.97, "float32 of the vectors themselves, not of their copies"
    assert number_of_lists(3000) == 219
    few = find(tables, neighbours_kept=5, exact_below=0, probes=1)["near"].to_pylist()
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact["near"].to_pylist(), few)]) < 0.97


def test_clips_of_one_shot_are_never_neighbours_and_a_clip_without_shot_is_its_own():
    vectors, _ = clusters(1, 6, noise=0.1)
    crops = {1: {"clip_id": "c000"}, 5: {"clip_id": "c004"}}
    rows = by_name(find(tables_of(vectors, crops=crops, shots={"c000": "s", "c002": "s", "c003": None, "c004": None})))
    assert all(set(rows[name]["near"]) == {"x003", "x004", "x005"} for name in ("x000", "x001", "x002"))
    assert set(rows["x003"]["near"]) == {"x000", "x001", "x002", "x004", "x005"}
    assert set(rows["x004"]["near"]) == {"x000", "x001", "x002", "x003"}


def test_categories_are_searched_by_themselves_or_in_their_group():
    vectors, _ = clusters(1, 4, noise=0.1)
    crops = {0: {"category": "human"}, 1: {"category": "ip_character"}, 2: {"category": "human"}}
    rows = by_name(find(tables_of(vectors, crops=crops)))
    assert [rows[f"x00{i}"]["near"] for i in range(4)] == [["x002"], [], ["x000"], []]
    rows = by_name(find(tables_of(vectors, crops=crops), category_groups=["human+ip_character"]))
    assert set(rows["x000"]["near"]) == {"x001", "x002"} and rows["x003"]["near"] == []


def test_the_same_face_in_other_clothes_is_found_and_both_similarities_are_known():
    vectors = units(np.eye(6) + 0.2)
    vectors[2] = units([vectors[0] * 0.9 + vectors[2] * 0.1])[0]
    faces = dict(zip((0, 4, 5), units([[1, 0, 0], [0.9, 0.1, 0], [0, 0, 1]])))
    crops = {i: {"category": "human"} for i in range(6)}
    rows = by_name(find(tables_of(vectors, faces, crops), neighbours_kept=1, face_neighbours_kept=1))
    found = rows["x000"]
    assert found["near"] == ["x002", "x004"], "the most similar picture, and the most similar face"
    np.testing.assert_allclose(found["similarity"], vectors[[2, 4]] @ vectors[0], atol=1e-6)
    assert found["face_similarity"][0] is None
    np.testing.assert_allclose(found["face_similarity"][1], faces[4] @ faces[0], atol=1e-6)
    assert rows["x001"]["face_similarity"] == [None]
    alone = by_name(find(tables_of(vectors, faces, crops), neighbours_kept=1, face_neighbours_kept=0))
    assert all(len(row["near"]) == 1 for row in alone.values())


def test_a_face_that_is_near_by_image_too_is_listed_once():
    vectors, _ = clusters(1, 3, noise=0.1)
    faces = dict(enumerate(units([[1, 0.1], [1, 0.2], [1, 0.3]])))
    rows = by_name(find(tables_of(vectors, faces)))
    assert all(len(row["near"]) == len(set(row["near"])) == 2 for row in rows.values())
    assert all(None not in row["face_similarity"] for row in rows.values())


def test_the_order_of_tables_does_not_matter_equal_similarities_are_by_name_and_crops_without_embedding_are_left_out():
    vectors, _ = clusters(20, 3)
    vectors[30:34] = vectors[30]
    tables = tables_of(vectors)
    tables["embeddings"] = tables["embeddings"].slice(0, 59)
    found = find(tables, neighbours_kept=8)
    mixed = {name: table.take(np.random.default_rng(1).permutation(len(table))) if len(table) else table
             for name, table in tables.items()}  # fmt: skip
    assert found == find(mixed, neighbours_kept=8) and len(found) == 59
    rows = by_name(found)
    assert rows["x030"]["near"][:3] == ["x031", "x032", "x033"] and rows["x032"]["near"][:3] == ["x030", "x031", "x033"]
    assert "x059" not in {name for row in rows.values() for name in row["near"]}
    for name, row in rows.items():
        assert row["similarity"] == sorted(row["similarity"], reverse=True)
        for near, value in zip(row["near"], row["similarity"]):
            if name in rows[near]["near"]:
                assert rows[near]["similarity"][rows[near]["near"].index(name)] == value, "equal both ways round"


def test_no_crops_give_no_rows():
    tables = {name: table.slice(0, 0) for name, table in tables_of(units(np.eye(2))).items()}
    assert find(tables).num_rows == 0
    assert find(tables_of(units(np.eye(1))), exact_below=0)["near"].to_pylist() == [[]]


THREADS = """
import sys, hashlib, numpy as np
from phantom_mega.curation.neighbours import NeighbourSettings, open_neighbours
from tests.curation.vectors import clusters, tables_of
tables = tables_of(clusters(600, 8, width=48, noise=0.8)[0])
for how, below in (("none", 0), ("whiten", 0), ("center", 10**6)):
    found = open_neighbours(NeighbourSettings(exact_below=below, embedding_transform=how))(dict(tables))
    print([hashlib.sha256(repr(found[name].to_pylist()).encode()).hexdigest() for name in ("near", "similarity")])
"""


def test_the_number_of_threads_changes_nothing():
    def run(threads):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", THREADS]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert run(1) == run(2) == run(7) != ""


def test_what_all_have_in_common_is_taken_out():
    vectors, identity = clusters(30, 6, noise=0.3)
    alike = units(vectors + 3 * units(np.ones((1, 16))))
    same = identity[:, None] == identity[None]

    def gap(found):
        similarity = found @ found.T
        return np.quantile(similarity[same], 0.1) - np.quantile(similarity[~same], 0.9)

    centred, white = (transform(alike.copy(), how, 12, 0) for how in ("center", "whiten"))
    assert gap(alike) < 0.06 < 0.25 < gap(centred) and gap(white) > 0.25
    assert white.shape == (180, 12)
    for one in (centred, white):
        np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    assert transform(alike[:20].copy(), "whiten", 12, 0).shape == (20, 5)
    assert transform(alike, "none", 12, 0) is alike


@pytest.mark.parametrize(("change", "message"), [
    ({"embedding_transform": "pca"}, "use none, center or whiten"), ({"neighbours_kept": 0}, "neighbours_kept=0"),
    ({"category_groups": ["human+animal", "animal+others"]}, "'animal' twice|animal twice"),
    ({"face_neighbours_kept": -1}, "at least 0"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        open_neighbours(NeighbourSettings(**change))


def test_vectors_that_are_not_what_they_must_be_are_refused():
    tables = tables_of(units(np.eye(4)))
    rows = tables["embeddings"].to_pylist()
    for bad, message in (([1.0, 0.0], "differ in length"), ([1.0, 1.0, 0.0, 0.0], "not of length 1"),
                         ([float("nan")] * 4, "not of length 1"), (None, "differ in length")):  # fmt: skip
        wrong = [row | ({"embedding": bad} if row["crop_id"] == "x002" else {}) for row in rows]
        with pytest.raises(UserError, match=message):
            find(tables | {"embeddings": pa.Table.from_pylist(wrong, tables["embeddings"].schema)})


def test_the_stage_writes_the_same_bytes_whatever_the_batches(tmp_path, monkeypatch):
    vectors, _ = clusters(20, 3)
    written = []
    for size in (7, 1000):
        monkeypatch.setattr(neighbours, "_BATCH", size)
        folder = tmp_path / str(size)
        for name, table in tables_of(vectors, {0: units([[1, 2]])[0], 9: units([[2, 1]])[0]}).items():
            write_table(folder, name, table.to_pylist())
        run_here([stage(NeighbourSettings(neighbours_kept=4))], folder)
        written.append([path.read_bytes() for path in sorted((folder / "neighbours").iterdir())])
    assert written[0] == written[1] and len(written[0]) == 2


def test_the_settings_are_part_of_what_the_rows_are_made_of():
    plain = NeighbourSettings()
    assert stage(plain).digest() != stage(dataclasses.replace(plain, probes=3)).digest()
