"""The one-rank world of the parallel tests, here too."""

from tests.parallel.conftest import single_rank  # noqa: F401
