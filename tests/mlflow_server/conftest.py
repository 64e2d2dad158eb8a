"""A folder that PostgreSQL's own user can reach, as root's temporary folders are not; and whether PostgreSQL is there."""

import shutil
import tempfile
from pathlib import Path

import pytest

from mlflow_server import postgresql


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
