"""Three-branch guidance against the formula worked out by hand."""

import torch

from phantom_mega.guidance import combine


def test_default_scales_are_the_papers():
    assert combine(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0)).item() == 1 + 3 * 1 + 7.5 * 2


def test_unit_scales_give_the_fully_conditioned_branch_and_zero_scales_the_null_branch():
    null, image, both = torch.randn(3, 7)
    torch.testing.assert_close(combine(null, image, both, 1.0, 1.0), both)
    assert torch.equal(combine(null, image, both, 0.0, 0.0), null)
