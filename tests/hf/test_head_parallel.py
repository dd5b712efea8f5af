"""One video over several ranks equals one rank."""

import pytest

from phantom_mega.errors import UserError
from phantom_mega.hf.head_parallel import check_ranks
from tests.parallel.launch import launch


def test_three_ranks_give_what_one_gives_with_tokens_that_do_not_divide(tmp_path):
    launch("tests.parallel.head_worker", 3, tmp_path)
    remainders = [int((tmp_path / f"rank{rank}.txt").read_text().split()[1]) for rank in range(3)]
    assert remainders == [1, 1, 1]


def test_heads_that_do_not_divide_are_refused_with_the_nearest_number():
    check_ranks(6, 3)
    with pytest.raises(UserError, match="6 heads cannot be shared by 4 ranks; the nearest number is 3"):
        check_ranks(6, 4)
