"""Errors that a user can act on: launchers and tools print them as one message, without a traceback."""


class UserError(ValueError):
    """Bad input: the message says what was wrong, where, and the nearest right value."""


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
