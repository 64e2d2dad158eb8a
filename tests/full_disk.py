"""A disk that is full, without one."""

import resource
from contextlib import contextmanager


@contextmanager
def no_room(most: int):
    """While the block runs, files cannot grow beyond `most` bytes: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
