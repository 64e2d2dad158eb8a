"""The one training loop: any module with `step(batch) -> StepResult`, on any feed, in one process or several, resumable bit for bit.

What a step does is a pure function of the weights and (seed, epoch, step): the feed draws its randomness from that, and the
global generators are seeded from it before each step. So a checkpoint needs no generator's state, and a run that was
killed gives on a CPU the same losses as one that never was.

Several ranks (ml.ranks) each take their part of every batch; weights, optimizer and position are the same in all of them after each step. Rank 0
alone validates, reports and writes checkpoints, which any number of ranks can go on from.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ml import checkpoint, progress, ranks
from ml.averaging import Weights, average, swapped, weights_of
from ml.checkpoint_writer import Writer
from ml.contracts import Batch, InputError, Report, StepResult
from ml.coupling import Coupled
from ml.crash import crash_point
from ml.curves import Curves
from ml.determinism import determinism, is_deterministic, seed_generators
from ml.feed import Feed, seed_of
from ml.interruption import Interrupted, Interruption, interruption
from ml.optimizer import optimizer_of
from ml.precision import fastest_precision
from ml.read_ahead import read_ahead
from ml.recipe import Compute, Fit, Precision
from ml.schedule import epochs_of, rate
from ml.shared_norm import share_statistics

MOMENTS = 50  # of a training at which `prepare` is asked: it walks the whole module
VALIDATIONS = 25  # validations in one training, at most
RETRIES = 2  # returns to the last checkpoint after a non-finite loss, each at half the learning rate
WAITING_SHARE = 0.2  # of the time spent waiting for data, above which batches are made ahead, and then the user is told
TOLD_SECONDS = 10.0  # of a training, below which nobody needs to be told


class NonFiniteLoss(InputError):
    """The loss became infinite or NaN, and going back at a lower learning rate did not help."""


@dataclass(frozen=True)
class Fitted:
    """How a training went. The module is left with the best weights (the last ones without a validation)."""

    steps: int
    epochs: int
    best_score: float
    best_epoch: int
    seconds: float
    rows_per_second: float
    data_share: float
    precision: str
    stopped_early: bool
    metrics: Mapping[str, float]
    """Of the last validation."""
    processes: list[int]
    """How many trained, each time that this changed."""


@dataclass
class _State:
    """What a checkpoint holds beside the tensors."""

    step: int = 0
    best_score: float = -math.inf
    best_epoch: int = -1
    since_best: int = 0
    rate_factor: float = 1.0
    retries: int = 0
    stopped: bool = False
    precision: str = ""
    seconds: float = 0.0
    waited: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    processes: list[int] = field(default_factory=list)


class _Step(nn.Module):
    """Makes `step` the forward pass, where accelerate puts autocast and data parallelism its hooks."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> StepResult:
        return self.module.step(batch)


def fit(
    module: nn.Module,
    feed: Feed,
    settings: Fit,
    compute: Compute,
    *,
    stage: str,
    groups: list[dict[str, Any]],
    workdir: Path,
    report: Report,
    prepare: Callable[[float], None] | None = None,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    metric: str = "",
    higher_is_better: bool = True,
) -> Fitted:
    """Trains `module` and leaves its best weights in it.

    `groups` are the optimizer's parameter groups with their peak rates; `prepare(progress)` freezes and unfreezes; after an
    epoch `validate(module)` gives metrics, of which `metric` chooses the best. Goes on from the newest checkpoint in `workdir`.
    """
    loop = _Loop(module, feed, settings, compute, stage, groups, workdir, report, prepare, validate, metric, 1 if higher_is_better else -1)
    with interruption() as asked, determinism(is_deterministic(compute, feed.device)):
        return loop.run(asked)


class _Loop:
    def __init__(self, module, feed, settings, compute, stage, groups, workdir, report, prepare, validate, metric, sign):
        self.module, self.settings, self.compute, self.stage = module, settings, compute, stage
        self.feed = replace(feed, rank=ranks.rank(), ranks=ranks.count()) if ranks.count() > 1 else feed
        self.groups, self.report, self.prepare, self.validate, self.metric, self.sign = groups, report, prepare, validate, metric, sign
        self.writer = Writer(workdir / "checkpoints", settings.checkpoint_seconds)
        self.epochs = epochs_of(settings, len(feed.rows))
        self.total = self.epochs * feed.steps
        self.curves = Curves(stage, self.total, report)
        self.moment = max(1, self.total // MOMENTS)
        self.training = False  # whether the module is as `prepare` left it
        self.ahead = False  # whether batches are made on a thread of their own
        self.validate_every = max(1, math.ceil(self.epochs / VALIDATIONS))
        self.trained = [p for group in groups for p in group["params"]]
        self.state = _State()
        self.best: Weights | None = None
        self.ema: Weights | None = None
        self.first: dict[str, Any] | None = None  # what there is to return to before the first checkpoint

    def run(self, asked: Interruption) -> Fitted:
        self._check()
        device = self.feed.device
        self.module.to(device, memory_format=torch.channels_last)
        self.optimizer = optimizer_of(self.settings, self.groups, device)
        resumed = self._restore()
        if not resumed:
            self.state.precision = ranks.told(lambda: self._precision().value)
        if self.state.processes[-1:] != [ranks.count()]:
            self.state.processes = [*self.state.processes, ranks.count()]
        mixed = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[self.state.precision]
        AcceleratorState._reset_state(True)  # each training has its own precision
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
        step_module, self.optimizer = self.accelerator.prepare(_Step(self.module), self.optimizer)
        self.coupled = Coupled(step_module)
        share_statistics(self.module)
        if resumed:
            self._restore_scaler()
        else:
            self.ema = weights_of(self.module) if self.settings.ema else None
            self.first = copy.deepcopy(self._content())
        with self.writer:
            self._train(asked)
        return self._finish()

    def _check(self) -> None:
        least = len(self.feed.rows) // self.feed.steps // self.settings.accumulate
        if least < ranks.count():
            raise InputError(
                f"{self.stage} updates its weights from {least} rows at once, which {ranks.count()} processes cannot share. "
                f"Lower compute.workers or fit.accumulate, or raise fit.batch_size."
            )

    def _train(self, asked: Interruption) -> None:
        clock = saved_at = time.perf_counter()
        self.curves.start()
        while self.state.step < self.total and not self.state.stopped:
            epoch, start = divmod(self.state.step, self.feed.steps)
            began = time.perf_counter()
            for _, batches in read_ahead(self.feed.batches(epoch, start), lambda: self.ahead):
                waited = time.perf_counter() - began
                if not self._update(batches):
                    break  # went back to a checkpoint, whose epoch and step differ
                self.state.waited += waited
                self.curves.spent(waited, sum(batch.rows for batch in batches))
                done = self.state.step == self.total
                if self.curves.full(self.state.step):
                    share = self.curves.tell(self.state.step, self.settings.learning_rate * self._factor(self.state.step - 1))
                    self.ahead = self.ahead or ((share or 0) > WAITING_SHARE and not self._takes_all_cores())
                crash_point(f"{self.stage}.step:{self.state.step}")
                if self.state.step % self.feed.steps == 0:
                    self._end_epoch(epoch)
                done = done or self.state.stopped
                now = time.perf_counter()
                self.writer.check()
                if done:  # of what follows, a kill costs no more than the time between two checkpoints
                    self.state.seconds += now - clock
                    break
                stop, due = ranks.agreed(asked.requested, self.writer.due(now - saved_at, self._takes_all_cores()))
                if stop or due:
                    self.state.seconds += now - clock
                    self._save()
                    clock = saved_at = time.perf_counter()
                if stop:
                    self.writer.wait()
                    raise Interrupted(f"{self.stage} was stopped at step {self.state.step} of {self.total}; the same command goes on from there")
                began = time.perf_counter()

    def _update(self, batches: list[Batch]) -> bool:
        """One update of the weights; false when the loss was not finite and the last checkpoint was taken up again."""
        step = self.state.step
        # Ranks after the first draw numbers of their own: their rows are others.
        seed_generators(seed_of(self.feed.seed, "step", step, *filter(None, [self.feed.rank])), self.feed.device)
        if not self.training or step % self.moment == 0:
            self._prepare(step)
        factor = self._factor(step)
        for group, peak in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = peak["lr"] * factor
        rows = sum(batch.rows for batch in batches)
        found = {"loss": torch.zeros((), device=self.feed.device)}
        for batch in batches:
            with nullcontext() if batch is batches[-1] else self.coupled.alone():
                result = self.coupled(batch)
                share = batch.rows / rows * ranks.share_of(batch, result.weight)
                for name, value in {"loss": result.loss, **result.extras}.items():
                    value = value.detach().float() * share
                    found[name] = found[name] + value if name in found else value
                self._backward(result.loss * (share * ranks.count()))  # of which data parallelism takes the mean over the ranks
        found = ranks.summed(found)
        # Before the update on a CPU. Elsewhere reading the loss would stall the device: there a window's mean is looked
        # at, and only weights that passed are saved.
        if self.feed.device.type == "cpu" and not math.isfinite(float(found["loss"])):
            self.optimizer.zero_grad(set_to_none=True)
            self._go_back(float(found["loss"]))
            return False
        if self.settings.clip:
            self.accelerator.unscale_gradients()
            torch.nn.utils.clip_grad_norm_(self.trained, self.settings.clip)  # accelerate's own looks at each tensor's kind first
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            average(self.ema, self.module, min(self.settings.ema, (1 + step) / (10 + step)))
        self.curves.add(found)
        self.state.step += 1
        if self.feed.device.type != "cpu" and self.curves.full(self.state.step) and not math.isfinite(float(self.curves.sums["loss"])):
            self._go_back(float(found["loss"]))
            return False
        return True

    def _backward(self, loss: Tensor) -> None:
        """As accelerate's own, which looks at each step whether a package is installed: 4 % of a small network's time."""
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()

    def _prepare(self, step: int) -> None:
        """Training mode, as the method wants it at the last moment before `step`: the same whether or not the run was resumed."""
        self.module.train()
        if self.prepare is not None:
            self.prepare(step // self.moment * self.moment / self.total)
        self.training = True
        self.coupled.renew()

    def _factor(self, step: int) -> float:
        """What the peak learning rates are multiplied with at `step`."""
        return rate(self.settings, step, self.total) * self.state.rate_factor

    def _end_epoch(self, epoch: int) -> None:
        last = epoch + 1 == self.epochs
        if self.validate is None or not (last or (epoch + 1) % self.validate_every == 0):
            return
        with swapped(self.module, self.ema):
            self.module.eval()
            self.training = False
            with torch.no_grad():
                metrics = self.state.metrics = ranks.told(lambda: {name: float(value) for name, value in self.validate(self.module).items()})
            self.report({**metrics, "epoch": epoch + 1}, self.state.step)
            if not self.metric:
                return
            score = self.sign * metrics[self.metric]
            if score > self.state.best_score:
                self.state.best_score, self.state.best_epoch, self.state.since_best = score, epoch, 0
                self.best = weights_of(self.module)
            else:
                self.state.since_best += 1
                self.state.stopped = 0 < self.settings.patience <= self.state.since_best and not last

    def _content(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "state": dict(vars(self.state)),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "best": self.best,
            "sums": self.curves.sums,
            "counted": self.curves.counted,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def _takes_all_cores(self) -> bool:
        """Whether a thread beside the training takes a core from it."""
        return self.feed.device.type == "cpu" and torch.get_num_threads() * ranks.count() >= len(os.sched_getaffinity(0))

    def _save(self) -> None:
        ranks.told(lambda: self.writer.save(self.state.step, self._content()))
        self.first = None

    def _restore(self) -> bool:
        self.writer.wait()
        saved = ranks.in_turn(lambda: checkpoint.load(self.writer.folder, self.feed.device)) or copy.deepcopy(self.first)
        if saved is None:
            return False
        self.state = _State(**saved["state"])
        self.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.ema, self.best = saved["ema"], saved["best"]
        self.curves.sums, self.curves.counted = saved["sums"], saved["counted"]
        self._scaler = saved["scaler"]
        return True

    def _restore_scaler(self) -> None:
        if self._scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self._scaler)

    def _go_back(self, loss: float) -> None:
        """Takes up the last checkpoint (or the first weights) at half the learning rate, a bounded number of times."""
        step, retries, factor = self.state.step, self.state.retries, self.state.rate_factor
        if retries >= RETRIES or not self._restore():
            raise NonFiniteLoss(
                f"the loss of {self.stage} became {loss} at step {step + 1} of {self.total}, at learning rate {self.settings.learning_rate * factor:g}"
                f"{f' after {retries} returns to the last checkpoint' if retries else ''}. Lower fit.learning_rate, set fit.clip to 1, "
                f"or use float32 (compute.precision)."
            )
        self.state.retries, self.state.rate_factor = retries + 1, factor / 2
        self.report({"train/returns": float(self.state.retries)}, step + 1)
        self._save()

    def _precision(self) -> Precision:
        wanted = self.compute.precision
        if wanted is not Precision.auto:
            return wanted
        if is_deterministic(self.compute, self.feed.device):
            return Precision.float32  # a timed choice could differ between two equal runs
        batch = self.feed.batch(self.feed.rows[: self.settings.batch_size], 0, 0)
        return fastest_precision(copy.deepcopy(self.module), batch)

    def _finish(self) -> Fitted:
        final = self.best if self.best is not None else self.ema
        if final is not None:
            self.module.load_state_dict(final)
        self.module.eval()
        steps = self.state.step
        seconds = max(self.state.seconds, 1e-9)
        rows = steps / self.feed.steps * len(self.feed.rows)
        data_share = self.state.waited / seconds
        if data_share > WAITING_SHARE and seconds >= TOLD_SECONDS:
            cores = "compute.threads below the number of cores, which lets batches be made beside the training, or " if self._takes_all_cores() else ""
            progress.warn(
                self.stage,
                f"waited for data {data_share:.0%} of its time. Faster: {cores}a lighter augmentation (augmentation.preset=light or none), smaller items "
                "(data.modality.options), or WARMSTART_HOME on a faster disk.",
            )
        return Fitted(
            steps=steps,
            epochs=math.ceil(steps / self.feed.steps),
            best_score=self.sign * self.state.best_score,
            best_epoch=self.state.best_epoch,
            seconds=seconds,
            rows_per_second=rows / seconds,
            data_share=data_share,
            precision=self.state.precision,
            stopped_early=self.state.stopped,
            metrics=self.state.metrics,
            processes=self.state.processes,
        )
