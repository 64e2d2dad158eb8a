"""The recipe gpt-shakespeare beside nanoGPT's published setting for CPUs, on as many letters: `python -m benchmarks.nanogpt DIR`.

    python -m benchmarks.nanogpt DIR --pairs 3 --output nanogpt.json      # DIR holds tiny_shakespeare's train.txt and validation.txt

A is `warmstart run conf/text/gpt-shakespeare.yaml`, all of it, against a running Prefect server. B is a bare torch loop with the settings of
nanoGPT's README for a MacBook: 4 blocks of width 128, 2,000 steps of 12 blocks of 64 letters drawn anywhere, AdamW at 1e-3 with betas 0.9 and 0.99, decay
0.1, 100 steps of warm-up, a cosine to 1e-4, no dropout; it is reported there to reach 1.88. Both train on 1,536,000 letters. Seconds are those of
the training alone; losses are nats a letter over all of validation.txt, in B's case in blocks of 64 letters, in A's speech by speech.
"""

from __future__ import annotations

import argparse
import json
import math
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from itertools import count
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.harness import ROOT, WARMSTART, arguments, finish, prefect_server, ratios, run, turns

STEPS, BATCH, BLOCK = 2000, 12, 64
WARM, PEAK, LEAST = 100, 1e-3, 1e-4
RECIPE = str(ROOT / "conf" / "text" / "gpt-shakespeare.yaml")


def main() -> None:
    parser = arguments("nanogpt", __doc__, pairs=3)
    parser.add_argument("data", type=Path, help="folder with train.txt and validation.txt")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps")
    parser.add_argument("--bare", type=int, metavar="SEED", help=argparse.SUPPRESS)  # B itself, in a process of its own
    given = parser.parse_args()
    steps = max(1, round(STEPS * given.scale))
    if given.bare is not None:
        print(json.dumps(bare(given.data, steps, given.threads, given.bare)))
        return
    data, seeds = given.data.resolve(), {"A": count(), "B": count()}
    with tempfile.TemporaryDirectory(prefix="nanogpt-") as scratch, prefect_server(Path(scratch)):
        arms = {
            "A": lambda: ours(data, steps, given.threads, seed := next(seeds["A"]), Path(scratch) / str(seed)),
            "B": lambda: theirs(data, given.scale, given.threads, next(seeds["B"])),
        }
        pairs = turns(arms, given.pairs)
    figures = {}
    for what in ("loss", "seconds"):
        of = [{arm: pair[arm][what] for arm in pair} for pair in pairs]
        figures |= {f"{what}, {arm}": [one[arm] for one in of] for arm in arms} | {f"{what}, A / B": ratios(of, "A", "B")}
    finish(given, figures, {"loss, A / B": "≤ 1.05", "seconds, A / B": "≤ 1"}, pairs=pairs)


def ours(data: Path, steps: int, threads: int, seed: int, folder: Path) -> dict[str, float]:
    """One run of the recipe on as many letters; its loss on the validation part, its seconds of training and of everything."""
    folder.mkdir()
    rows = steps * BATCH * BLOCK // 128  # blocks of the recipe's length
    overrides = [f"data.source.options.path={data}", f"finetuning.fit.samples={rows}", f"seed={seed}", f"compute.threads={threads}"]
    taken, output = run([*WARMSTART, "run", RECIPE, *overrides, "--json"], folder)
    stage = next(one for one in json.loads(output)["stages"] if one["name"] == "finetune")
    with closing(sqlite3.connect(folder / "mlflow.db")) as records:
        rows = records.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", (stage["run_id"],)).fetchall()
        least = records.execute("SELECT MIN(value) FROM metrics WHERE run_uuid = ? AND key = 'validation/bits_per_byte'", (stage["run_id"],)).fetchone()
    return {"loss": least[0] * math.log(2), "seconds": dict(rows)["seconds"], "wall": taken["wall"]}


def theirs(data: Path, scale: float, threads: int, seed: int) -> dict[str, float]:
    taken, output = run([sys.executable, "-m", "benchmarks.nanogpt", str(data), "--bare", str(seed), "--scale", str(scale), "--threads", str(threads)], ROOT)
    return {**json.loads(output), "wall": taken["wall"]}


def bare(data: Path, steps: int, threads: int, seed: int) -> dict[str, float]:
    """The loss on validation.txt after `steps` of the published setting, and the seconds that they took."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    train, valid = ((data / f"{name}.txt").read_text(encoding="utf-8") for name in ("train", "validation"))
    number = {letter: index for index, letter in enumerate(sorted(set(train + valid)))}
    train_N, valid_N = (torch.tensor([number[letter] for letter in text]) for text in (train, valid))
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    marks = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(number), n_positions=BLOCK, n_embd=128, n_layer=4, n_head=4, use_cache=False, **drop, **marks))

    def loss(blocks_BT: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(blocks_BT[:, :-1]).logits.flatten(0, 1), blocks_BT[:, 1:].flatten())

    matrices, others = ([one for one in model.parameters() if (one.dim() >= 2) == matrix] for matrix in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=PEAK, betas=(0.9, 0.99), fused=True)
    began = time.perf_counter()
    for step in range(steps):
        warm = min(WARM, steps // 10)
        passed = (step - warm) / max(1, steps - warm)
        factor = (step + 1) / (warm + 1) if step < warm else (LEAST + (PEAK - LEAST) * 0.5 * (1 + math.cos(math.pi * passed))) / PEAK
        for group in optimizer.param_groups:
            group["lr"] = PEAK * factor
        starts_B1 = torch.randint(len(train_N) - BLOCK, (BATCH, 1))
        loss(train_N[starts_B1 + torch.arange(BLOCK + 1)]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - began
    starts_N1 = torch.arange(0, len(valid_N) - BLOCK - 1, BLOCK)[:, None]
    with torch.no_grad():
        losses = [float(loss(valid_N[chunk + torch.arange(BLOCK + 1)])) * len(chunk) for chunk in starts_N1.split(256)]
    return {"loss": sum(losses) / len(starts_N1), "seconds": seconds}


if __name__ == "__main__":
    main()
