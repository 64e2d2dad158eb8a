"""Data larger than the memory that there is are made into a store and trained on."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
ROWS, SIDE, ROOM = 1800, 256, 280_000_000
PROGRAM = """
import json, resource, sys
from pathlib import Path
import torch
from ml import engines
from ml.plan import Plan
from ml.preprocess import preprocess
from ml.recipe import load
from ml.splitting import split

def held(name):  # bytes, of what is no page of a file
    return 1024 * int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)).split()[1])

def train(folder, path):
    recipe = load("recipe.yaml", [f"data.source.options.path={path}"])
    store = preprocess(recipe.data.source.make(), recipe.data.modality.make(), recipe.data, folder / "work", folder / "stores")
    plan = Plan("finetune", recipe, store, split(store.table, store.spec.classes, recipe.splitting, recipe.seed))
    _, fitted = engines.train(plan, plan.bare(), folder / "work", lambda metrics, step: None)
    return store, fitted

train(Path("warm"), "few.parquet")  # now all is there that does not grow with the data
if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_DATA, 2 * (held("VmData") + int(sys.argv[1]),))
store, fitted = train(Path("large"), "many.parquet")
print(json.dumps({"bytes": store.array.nbytes, "steps": fitted.steps, "accumulate": fitted.accumulate}))
"""
RECIPE = {
    "name": "large",
    "data": {"source": {"name": "parquet", "options": {"path": "many.parquet"}}, "modality": {"name": "image", "options": {"size": SIDE}}, "workers": 1, "near_duplicates": False},
    "backbone": {"name": "small-cnn", "options": {"width": 0.1}},
    "finetuning": {"fit": {"epochs": 1, "batch_size": 8}, "augmentation": {"preset": "light"}},
    "compute": {"threads": 1},
}


def table(path: Path, rows: int) -> None:
    random, images = np.random.default_rng(0), []
    for _ in range(rows):
        rough = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        rough.save(file := io.BytesIO(), "jpeg", quality=60)
        images.append(file.getvalue())
    pd.DataFrame({"image": images, "label": np.arange(rows) % 2}).to_parquet(path)


def test_a_store_larger_than_memory_is_made_and_trained_on(tmp_path):
    table(tmp_path / "few.parquet", 300)
    table(tmp_path / "many.parquet", ROWS)
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(ROOM)], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bytes"] > 1.2 * ROOM and found["steps"] > 100 and found["accumulate"] == 1
