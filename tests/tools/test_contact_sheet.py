"""The contact sheet shows every reference and frame, marks phrases, and survives a bad sample."""

import io

import numpy as np
import pytest
from PIL import Image

from phantom_mega.data.contact_sheet import contact_sheet, draw_card
from phantom_mega.data.encode import encode_image
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.schema import Reference, ReferenceSource, Triplet
from phantom_mega.data.shards import RawTriplet, ShardWriter
from phantom_mega.errors import UserError
from phantom_mega.pictures import COLOURS, phrase_colours, wrap

RED, GREEN, BLUE = (250, 0, 0), (0, 200, 0), (0, 0, 250)


def solid(colour, size=(64, 48)):
    return encode_image(Image.new("RGB", size, colour))


def triplet(key="a", references=2):
    source = ReferenceSource("v", 0, (0.0, 0.0, 64.0, 48.0))
    described = [Reference(f"thing {i}", "product", ("cross", "in")[i % 2], source, 48, 64) for i in range(references)]
    return Triplet(key, "Look: thing 0 stands by thing 1.", "v", 1, 0.0, 48, 64, "jpeg", tuple(described))


def near(image, colour):
    return (np.abs(np.asarray(image).astype(int) - colour).max(-1) < 12).sum()


def test_a_card_shows_the_clip_and_every_reference():
    card = draw_card(RawTriplet(triplet(), solid(RED), "jpg", [solid(GREEN), solid(BLUE)], [None, None]))
    assert all(near(card, colour) > 1000 for colour in (RED, GREEN, BLUE))


def test_a_phrase_takes_the_colour_of_its_reference_and_nothing_else_does():
    words = phrase_colours("A man in a hat; The Hat Shop", ["a man", "the hat shop"])
    assert [colour for _, colour in words] == [COLOURS[0]] * 2 + [None] * 3 + [COLOURS[1]] * 3


def test_wrapped_lines_keep_every_word_in_order():
    words = [(word, None) for word in ("word " * 40 + "supercalifragilistic" * 5).split()]
    lines = wrap(words, 200, 14)
    assert [word for line in lines for word in line] == words
    assert len(lines) > 5


def test_the_sheet_draws_every_sample_and_names_an_unreadable_one(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write(triplet("good"), solid(RED), "jpg", [(solid(GREEN), "jpg"), (solid(BLUE), "jpg")])
        writer.write(triplet("broken", 0), b"no image", "jpg", [])
    index = TripletIndex.open([tmp_path])
    both, one = contact_sheet(index, columns=1), contact_sheet(index, columns=1, limit=1)
    assert both.height > one.height and near(both, RED) == near(one, RED) > 1000
    assert near(both, (179, 38, 30)) > 50  # the reason, in red ink
    buffer = io.BytesIO()
    both.save(buffer, "PNG")


def test_a_sheet_of_nothing_is_an_error(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write(triplet(), solid(RED), "jpg", [(solid(GREEN), "jpg")] * 2)
    with pytest.raises(UserError, match="limit=0"):
        contact_sheet(TripletIndex.open([tmp_path]), limit=0)
