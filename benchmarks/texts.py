"""Tokens trained on in a second, beside transformers' Trainer: `python -m benchmarks.texts`.

    python -m benchmarks.texts --output texts.json   # the measurement
    python -m benchmarks.texts --small               # does it work?

A is `ml.fit.fit` with an objective on a store, all of it as in a run, but for tracking. B is Hugging Face's Trainer with its fastest flags, with no and with one worker
that stays, of which the faster counts: adamw_torch_fused, no reports, saves, evaluations and progress, tokens ready in memory, special tokens told apart
beforehand, no attention mask where none is needed. Both train the very same modules from the same weights: A's backbone and head are put into
BertForMaskedLM or GPT2LMHeadModel. Data are the docstrings of installed packages in packed blocks of 128 tokens, so that no token is padding.

Tokens a second are taken from the fifth update on, between calls of the network. Each arm is a fresh process. Equal work: updates, rows (blocks), parameters, and
the loss on blocks held out, measured by A's objective in both arms. A guesses hidden tokens alone, B makes logits for all: that is part of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, arguments, calls, control, equal_work, finish, run, speed, turns, work_table

CASES = {
    "bert-mini": ({"name": "bert", "options": {"size": "mini"}}, "masked-language"),
    "gpt-tiny": ({"name": "gpt", "options": {"size": "tiny"}}, "causal-language"),
}
LENGTH, VOCABULARY, BATCH, STEPS, SMALL, SKIPPED, HELD = 128, 8000, 16, 30, 8, 4, 16
RATE, DECAY, WARM, CLIP = 1e-3, 0.05, 0.1, 1.0


def main() -> None:
    parser = arguments("texts", __doc__, pairs=5)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="networks; all unless given")
    parser.add_argument("--small", action="store_true", help="one round of few updates of the first network, without workers")
    parser.add_argument("--one", nargs=4, metavar=("CASE", "ARM", "DIR", "STEPS"), help=argparse.SUPPRESS)  # an arm alone, in a process of its own
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    if given.one:
        name, arm, folder, steps = given.one
        print(json.dumps(measured(*CASES[name], ARMS[arm], Path(folder), int(steps))))
        return
    names, steps, pairs = (list(CASES)[:1], SMALL, 1) if given.small else (given.only, STEPS, given.pairs)
    figures, goals, rounds = {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="texts-") as scratch:
        store(Path(scratch))
        for name in names:
            arms = {arm: partial(one, name, arm, scratch, steps) for arm in ARMS if not (given.small and arm.endswith("1 worker"))}
            rounds[name] = turns(arms, pairs)
            figures |= {f"{name}: {figure}": values for figure, values in told(rounds[name]).items()}
            goals[f"{name}: ours / Trainer"] = "≥ 1.05"
    work = {name: equal_work(found) for name, found in rounds.items()}
    finish(given, figures, goals, equal_work=work, rounds=rounds)
    print(work_table(work))


def one(name: str, arm: str, scratch: str, steps: int) -> dict[str, Any]:
    """What a fresh process says that has an arm for its own."""
    command = [sys.executable, "-m", "benchmarks.texts", "--threads", os.environ["OMP_NUM_THREADS"], "--one", name, arm, scratch, str(steps)]
    return json.loads(run(command, ROOT)[1].splitlines()[-1])


def told(rounds: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """What is told of a case: the ratio within each round, tokens a second."""
    best = [max(found["speed"] for arm, found in one.items() if arm != "ours") for one in rounds]
    return {
        "ours / Trainer": [one["ours"]["speed"] / other for one, other in zip(rounds, best, strict=True)],
        **{f"{arm}, tokens/s": [one[arm]["speed"] for one in rounds] for arm in rounds[0]},
        "control: ours / ours": control([{"ours": one["ours"]["speed"]} for one in rounds], "ours"),
    }


def store(folder: Path) -> None:
    """Docstrings of the installed packages, in folder/stores."""
    from ml.preprocess import preprocess
    from ml.recipe import parse

    data = {"source": {"name": "python-docs", "options": {"per_class": 400}}, "modality": {"name": "text", "options": {"max_length": LENGTH, "vocabulary": VOCABULARY}}}
    made = parse({"name": "texts", "data": data, "backbone": "bert", "pretraining": {"enabled": False}}).data
    preprocess(made.source.make(), made.modality.make(), made, folder / "work", folder / "stores")


def measured(backbone: dict[str, Any], objective: str, arm: Any, folder: Path, steps: int) -> dict[str, Any]:
    """What an arm does with the network in `steps` updates."""
    import torch

    from ml.device import device_of
    from ml.feed import Feed, rows_of, stream
    from ml.modalities import MODALITIES
    from ml.pretraining import SEEN, held_out
    from ml.recipe import BackboneChoice, Compute, ObjectiveChoice
    from ml.store import Store

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    compute = Compute(device="cpu", threads=threads, precision="float32")
    device = device_of(compute) if arm is ours else torch.device("cpu")
    made = Store.open(next((folder / "stores").iterdir()))
    modality = MODALITIES["text"](MODALITIES["text"].Options(**made.spec.options))
    blocks, rows, held = stream(made, rows_of(made, *SEEN), 0)
    if len(rows) < steps * BATCH:
        raise SystemExit(f"the installed packages' docstrings fill {len(rows)} blocks, and {steps * BATCH} are needed")
    feed = Feed(blocks, modality, rows[: steps * BATCH], BATCH, 0, device, modality.presets["none"](made.spec))
    torch.manual_seed(0)
    module = ObjectiveChoice(name=objective).make(BackboneChoice.model_validate(backbone).make(made.spec), made.spec)

    def loss() -> float:
        with torch.no_grad():
            return held_out(module.eval(), feed, held[:HELD])["loss"]

    before, found = loss(), calls(module.backbone.net)
    arm(module, feed, compute, folder)
    done = {"speed": speed(found, SKIPPED) * LENGTH, "updates": len(found), "rows": sum(rows for _, rows in found)}
    return done | {"parameters": sum(one.numel() for one in module.parameters()), "before": before, "after": loss()}


def ours(module: Any, feed: Any, compute: Any, folder: Path) -> None:
    from ml.fit import fit
    from ml.groups import parameter_groups
    from ml.recipe import Fit

    settings = Fit(epochs=1, batch_size=BATCH, learning_rate=RATE, weight_decay=DECAY, warmup=WARM, clip=CLIP)
    groups = parameter_groups(module, RATE, DECAY)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fit(module, feed, settings, compute, stage="texts", groups=groups, workdir=Path(scratch), report=lambda metrics, step: None)


def trainer(module: Any, feed: Any, compute: Any, folder: Path, workers: int) -> None:
    """As transformers' examples run_mlm.py and run_clm.py, on blocks in memory."""
    import torch
    from torch.utils.data import Dataset
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast, Trainer, TrainingArguments, default_data_collator

    masked, spec = hasattr(module, "dense"), feed.store.spec
    blocks_NT = torch.from_numpy(feed.store.array[feed.rows]).long()
    special_NT = torch.isin(blocks_NT, torch.tensor([one for one in spec.statistics["tokens"].values() if one is not None])).long()

    class Blocks(Dataset):
        def __len__(self) -> int:
            return len(blocks_NT)

        def __getitem__(self, row: int) -> dict[str, Any]:
            return {"input_ids": blocks_NT[row], **({"special_tokens_mask": special_NT[row]} if masked else {"labels": blocks_NT[row]})}

    if masked:
        tokenizer_file = folder / f"tokenizer-{os.getpid()}.json"
        tokenizer_file.write_text(spec.statistics["tokenizer"], encoding="utf-8")
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        # All blocks are full: without a mask attention takes its fastest path.
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), model_input_names=["input_ids"], **names)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=module.rate)
    else:
        collator = default_data_collator
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        arguments = TrainingArguments(
            scratch, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE, weight_decay=DECAY, max_grad_norm=CLIP,
            lr_scheduler_type="cosine", warmup_steps=round(WARM * feed.steps), optim="adamw_torch_fused", use_cpu=True, report_to="none",
            disable_tqdm=True, logging_strategy="no", logging_nan_inf_filter=False, save_strategy="no", eval_strategy="no", seed=0,
            dataloader_num_workers=workers, dataloader_persistent_workers=workers > 0, dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        Trainer(peer(module), arguments, data_collator=collator, train_dataset=Blocks()).train()


def peer(module: Any) -> Any:
    """transformers' model around the backbone and head of `module`, which it trains in place."""
    from transformers import BertForMaskedLM, GPT2LMHeadModel

    net = module.backbone.net
    if not hasattr(module, "dense"):
        model = GPT2LMHeadModel(net.config)
        model.transformer, model.lm_head.weight = net, net.wte.weight
    else:
        model = BertForMaskedLM(net.config)
        head = model.cls.predictions
        model.bert, head.transform.dense, head.transform.LayerNorm = net, module.dense, module.norm
        head.bias = head.decoder.bias = module.bias
        head.decoder.weight = module.backbone.embedding.weight
    if {id(one) for one in model.parameters()} != {id(one) for one in module.parameters()}:
        raise SystemExit("the arms would train different parameters")
    return model


ARMS = {"ours": ours} | {f"Trainer, {workers} worker{'' if workers == 1 else 's'}": partial(trainer, workers=workers) for workers in (0, 1)}


if __name__ == "__main__":
    main()
