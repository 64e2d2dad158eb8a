"""`warmstart predict --compute ray`, on a cluster of its own, writes what `warmstart predict` writes."""

from importlib.util import find_spec

import pandas as pd
import pytest

from flows.predict import scoring_compute
from ml.contracts import InputError

pytestmark = pytest.mark.e2e


@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")
def test_the_command_scores_on_a_cluster_of_its_own(finished, pictures, start, tmp_path):
    for name, more in {"local": [], "ray": ["--compute", "ray", "--workers", "2"]}.items():
        done = start(finished.folder, "predict", "models:/tiny@champion", pictures, "--output", tmp_path / f"{name}.parquet", *more).wait(400)
        assert done.code == 0, done.err
    local, ray = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("local", "ray"))
    assert len(local) == 120
    pd.testing.assert_frame_equal(local, ray, check_exact=False, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [(("torchrun", 2, ""), "unknown compute 'torchrun'.* Valid: local, ray"), (("local", 2, ""), "workers=2"), (("local", 1, "host:1"), "address=host:1"), (("ray", 0, ""), "workers")],
)
def test_what_cannot_score_is_said(given, words):
    with pytest.raises(InputError, match=words):
        scoring_compute(*given)
