"""The data set of the trainer's tests, and a world of one process."""

from tests.parallel.conftest import single_rank  # noqa: F401
from tests.training.conftest import data_set  # noqa: F401
