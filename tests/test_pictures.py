"""What is drawn for a person's eyes fits where it is drawn."""

from phantom_mega.pictures import font, shortened


def test_long_titles_are_cut_where_they_would_run_into_what_follows():
    title = "bikes-c8000a48ca-0000000-00-914912f4ce6ca326"
    cut = shortened(title, 200, 13)
    assert cut.endswith("…") and title.startswith(cut[:-1]) and len(cut) > 15
    assert (
        font(13, bold=True).getlength(cut) <= 200 < font(13, bold=True).getlength(cut[:-1] + title[len(cut) - 1] + "……")
    )
    assert shortened("short", 200, 13) == "short" and shortened("", 10, 13) == ""
