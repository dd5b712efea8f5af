"""Errors that a user can act on: launchers and tools print them as one message, without a traceback."""

# Exit code of a process that made no progress; unlike 2 (bad input), another start may work.
EXIT_HUNG = 71


class UserError(ValueError):
    """Bad input: the message says what was wrong, where, and the nearest right value."""


class SetupError(UserError):
    """A mistake that every further item would meet too: a wrong key, a server that is not there."""


class BadSampleError(UserError):
    """One sample of a data set cannot be read.

    Args:
        key: the sample's key.
        shard: the shard (or file) that holds it.
        reason: what is wrong with it.
    """

    def __init__(self, key: str, shard: str, reason: str):
        super().__init__(f"{shard}, sample {key}: {reason}")
        self.key, self.shard, self.reason = key, shard, reason


class DataWorkerError(RuntimeError):
    """The data's background thread hangs or died: a stuck file system, a decoder that never returns.

    Not a `UserError`: the same run may well work on another machine, so a cluster job is started again.
    """
