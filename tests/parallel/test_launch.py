"""The launcher of the parallel tests reports failures instead of hanging."""

import pytest

from tests.parallel.launch import launch


def test_a_failing_rank_is_named_with_its_traceback(tmp_path):
    with pytest.raises(AssertionError, match=r"(?s)rank 1.*ValueError: on purpose"):
        launch("tests.parallel.failing_worker", 2, tmp_path, "fail")


def test_a_hanging_rank_ends_at_the_timeout(tmp_path):
    with pytest.raises(AssertionError, match="timeout after 6 s"):
        launch("tests.parallel.failing_worker", 2, tmp_path, "hang", timeout=6)
