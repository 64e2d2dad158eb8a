"""A folder that PostgreSQL's own user can reach, as root's temporary folders are not; and whether PostgreSQL is there."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from mlflow_server import bound, postgresql

sys.path.insert(0, str(Path(__file__).parent))  # tests import team by its name

from team import Team


@pytest.fixture(scope="module")
def place():
    folder = Path(tempfile.mkdtemp(prefix="warmstart-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def installed() -> None:
    if not postgresql.installed():
        pytest.skip("PostgreSQL is not installed")


@pytest.fixture(scope="module")
def team(place, outside, tiny):
    """A folder with a recipe and running servers, of which nothing is left in the end."""
    one = Team(place, outside)
    shutil.copy(tiny, place / "tiny.yaml")
    try:
        one.run("up")
        yield one
    finally:
        done = outside(place, "down")
        bound.sweep(bound.mark(one.services, ""))
        shutil.rmtree(postgresql._socket(one.services, "postgres" if os.getuid() == 0 else ""), ignore_errors=True)
    assert done.code == 0, done.err
    assert not one.processes()
