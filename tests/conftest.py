"""What all tests share: real data where it is at hand."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; a test that needs it is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which this machine does not have")
    return SHARED
