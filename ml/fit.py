"""The one training loop: any module with `step(batch) -> StepResult`, on any feed, in one process or several, resumable bit for bit.

What a step does is a pure function of the weights and (seed, epoch, step): the feed draws its randomness from that, and the
global generators are seeded from it before each step. So a checkpoint needs no generator's state, and a run that was
killed gives on a CPU the same losses as one that never was.

Several ranks (ml.ranks) each take their part of every batch; weights, optimizer and position are the same in all of them after each step, or each has its
part of them (ml.shards). Rank 0 alone reports and writes checkpoints, which hold whole tensors: any number of ranks can go on from them.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ml import checkpoint, progress, ranks
from ml.averaging import Weights, average, swapped, weights_of
from ml.checkpoint_writer import Writer
from ml.contracts import Batch, InputError, Report
from ml.crash import crash_point
from ml.curves import Curves
from ml.determinism import determinism, is_deterministic, seed_generators
from ml.feed import Feed, seed_of
from ml.interruption import Interruption, interruption
from ml.memory import ran_out
from ml.read_ahead import read_ahead
from ml.recipe import Compute, Fit
from ml.schedule import epochs_of, rate
from ml.shards import placed, whole
from ml.step_probe import How, how_to_step, memory_format
from ml.update import STRATEGIES, Updates

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
    how: Mapping[str, Any]
    """How its steps were made; see ml.step_probe.How."""
    accumulate: int
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
    how: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    seconds: float = 0.0
    waited: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    processes: list[int] = field(default_factory=list)


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
    limit = compute.time_limit if ranks.rank() == 0 else None  # all stop with the first one
    with interruption(limit) as asked, determinism(is_deterministic(compute, feed.device)):
        return loop.run(asked)


class _Loop:
    def __init__(self, module, feed, settings, compute, stage, groups, workdir, report, prepare, validate, metric, sign):
        self.module, self.settings, self.compute, self.stage = module, settings, compute, stage
        self.feed = replace(feed, rank=ranks.rank(), ranks=ranks.count()) if ranks.count() > 1 else feed
        self.groups, self.report, self.prepare, self.validate, self.metric, self.sign = groups, report, prepare, validate, metric, sign
        self.workdir = workdir
        self.writer = Writer(workdir / "checkpoints", settings.checkpoint_seconds)
        self.epochs = epochs_of(settings, len(feed.rows))
        self.total = self.epochs * feed.steps
        self.curves = Curves(stage, self.total, report)
        self.moment = max(1, self.total // MOMENTS)
        self.training = False  # whether the module is as `prepare` left it
        self.ahead = False  # whether batches are made on a thread of their own
        self.validate_every = max(1, math.ceil(self.epochs / VALIDATIONS))
        self.state = _State()
        self.best: Weights | None = None
        self.ema: Weights | None = None
        self.first: dict[str, Any] | None = None  # what there is to return to before the first checkpoint

    def run(self, asked: Interruption) -> Fitted:
        self._check()
        saved = self._saved()
        self.state.how = saved["state"]["how"] if saved else ranks.told(self._how)
        how = How(**self.state.how)
        self.module.to(memory_format=memory_format(how))
        self.updates = Updates(self.module, self.groups, self.settings, self.compute.strategy, how, self.feed.device)
        if saved:
            self._take(saved)
        else:
            self.ema = weights_of(self.module) if self.settings.ema else None
        if self.state.processes[-1:] != [ranks.count()]:
            self.state.processes = [*self.state.processes, ranks.count()]
        if not saved:
            self.first = copy.deepcopy(self._content())
        with self.writer:
            self._train(asked)
        return self._finish()

    def _check(self) -> None:
        least = int(self._rows_at_once)
        if least < ranks.count():
            raise InputError(
                f"{self.stage} updates its weights from {least} rows at once, which {ranks.count()} processes cannot share. "
                f"Lower compute.workers or fit.accumulate, or raise fit.batch_size."
            )

    def _train(self, asked: Interruption) -> None:
        ranks.told(lambda: None)  # one that has loaded later is not waited for in the first step
        clock = saved_at = time.perf_counter()
        self.curves.start()
        while self.state.step < self.total and not self.state.stopped:
            epoch, start = divmod(self.state.step, self.feed.steps)
            began = time.perf_counter()
            for _, batches in read_ahead(self.feed.batches(epoch, start), lambda: self.ahead):
                waited = time.perf_counter() - began
                if not self._update(batches):
                    break  # went back to a checkpoint, whose epoch and step differ, or makes the same step of smaller batches
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
                    raise asked.error(f"{self.stage} was stopped at step {self.state.step} of {self.total}; the same command goes on from there")
                began = time.perf_counter()

    def _less_at_once(self, error: RuntimeError | MemoryError) -> None:
        """Where memory ran out: from now on half as many rows are in it at once. Raises what is another error, and where it is of no use."""
        if not ran_out(error):
            raise error
        rows = math.ceil(self._rows_at_once)
        if ranks.count() > 1 or rows < 4:  # one rank cannot tell the others, which wait for its gradients
            raise InputError(
                f"memory ran out in {self.stage}, with {rows} rows at once in {ranks.count()} processes. "
                "Raise fit.accumulate or set compute.recompute=true, or take a smaller model or smaller items."
            ) from None
        self._gather(2 * self.feed.accumulate)
        progress.warn(
            self.stage,
            f"memory ran out with {rows} rows at once: each update is now gathered from {self.feed.accumulate} parts, of as many rows in all. "
            "What compares the rows of a batch with one another, such as simclr, compares fewer.",
        )

    def _take_up(self, parts: int) -> None:
        """Goes on from what was saved last, since a step that broke off may have changed what is no parameter, such as running statistics."""
        self._take(self._saved())
        self._gather(parts)
        self._save()

    def _gather(self, parts: int) -> None:
        """From now on each update is gathered from so many parts of its batch."""
        self.state.accumulate = parts
        self.feed = replace(self.feed, accumulate=parts)

    def _update(self, batches: list[Batch]) -> bool:
        """One update of the weights; false when memory ran out, or the loss was not finite and the last checkpoint was taken up again."""
        step = self.state.step
        # Ranks after the first draw numbers of their own: their rows are others.
        seed_generators(seed_of(self.feed.seed, "step", step, *filter(None, [self.feed.rank])), self.feed.device)
        if not self.training or step % self.moment == 0:
            self._prepare(step)
        try:
            found = self.updates.gradients(batches)
        except (RuntimeError, MemoryError) as error:
            self._less_at_once(error)
            found = None
        if found is None:  # here, where no error holds the memory of the step any more
            self.updates.forget()
            self._take_up(self.feed.accumulate)
            return False
        # Before the update on a CPU. Elsewhere reading the loss would stall the device: there a window's mean is looked
        # at, and only weights that passed are saved.
        if self.feed.device.type == "cpu" and not math.isfinite(float(found["loss"])):
            self.updates.forget()
            self._go_back(float(found["loss"]))
            return False
        self.updates.step(self._factor(step))
        if self.ema is not None:
            average(self.ema, self.module, min(self.settings.ema, (1 + step) / (10 + step)))
        self.curves.add(found)
        self.state.step += 1
        if self.feed.device.type != "cpu" and self.curves.full(self.state.step) and not math.isfinite(float(self.curves.sums["loss"])):
            self._go_back(float(found["loss"]))
            return False
        return True

    def _prepare(self, step: int) -> None:
        """Training mode, as the method wants it at the last moment before `step`: the same whether or not the run was resumed."""
        self.module.train()
        if self.prepare is not None:
            self.prepare(step // self.moment * self.moment / self.total)
        self.training = True
        self.updates.renew()

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
                metrics = self.state.metrics = self.updates.coupled.told(lambda: {name: float(value) for name, value in self.validate(self.module).items()})
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
        return {
            "state": dict(vars(self.state)),
            "module": self.module.state_dict(),
            "ema": self.ema,
            "best": self.best,
            "sums": self.curves.sums,
            "counted": self.curves.counted,
            **self.updates.state(),
        }

    def _takes_all_cores(self) -> bool:
        """Whether a thread beside the training takes a core from it."""
        return self.feed.device.type == "cpu" and torch.get_num_threads() * ranks.count() >= len(os.sched_getaffinity(0))

    def _save(self) -> None:
        content = whole(self._content())
        ranks.told(lambda: self.writer.save(self.state.step, content))
        self.first = None

    def _saved(self) -> dict[str, Any] | None:
        """The newest checkpoint, or what there was at first."""
        self.writer.wait()
        return ranks.in_turn(lambda: checkpoint.load(self.writer.folder)) or copy.deepcopy(self.first)

    def _take(self, saved: dict[str, Any]) -> None:
        """Goes on from what was saved."""
        self.state = _State(**saved["state"])
        if self.state.accumulate > self.settings.accumulate:
            self._gather(self.state.accumulate)
        own = self.module.state_dict()
        module, self.ema, self.best = (saved[name] and {key: placed(value, own[key]) for key, value in saved[name].items()} for name in ("module", "ema", "best"))
        self.module.load_state_dict(module)
        self.updates.load(saved)
        self.curves.sums = {name: value.to(self.feed.device) for name, value in saved["sums"].items()}
        self.curves.counted = saved["counted"]

    def _go_back(self, loss: float) -> None:
        """Takes up the last checkpoint (or the first weights) at half the learning rate, a bounded number of times."""
        step, retries, factor = self.state.step, self.state.retries, self.state.rate_factor
        saved = self._saved() if retries < RETRIES else None
        if saved is None:
            raise NonFiniteLoss(
                f"the loss of {self.stage} became {loss} at step {step + 1} of {self.total}, at learning rate {self.settings.learning_rate * factor:g}"
                f"{f' after {retries} returns to the last checkpoint' if retries else ''}. Lower fit.learning_rate, set fit.clip to 1, "
                f"or use float32 (compute.precision)."
            )
        self._take(saved)
        self.state.retries, self.state.rate_factor = retries + 1, factor / 2
        self.report({"train/returns": float(self.state.retries)}, step + 1)
        self._save()

    def _how(self) -> dict[str, Any]:
        def sample() -> Batch:
            alone = replace(self.feed, rank=0, ranks=1)
            return alone.batch(alone.rows[: math.ceil(self._rows_at_once / self.feed.ranks)], 0, 0)

        exact = is_deterministic(self.compute, self.feed.device) or not STRATEGIES[self.compute.strategy].probed
        while True:
            steps = self.total * self.feed.accumulate
            try:
                return asdict(how_to_step(self.module, sample, self.compute, exact, steps, self.workdir.parent / "probes.json"))
            except (RuntimeError, MemoryError) as error:
                self._less_at_once(error)

    @property
    def _rows_at_once(self) -> float:
        return len(self.feed.rows) / self.feed.steps / self.feed.accumulate

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
            how=self.state.how,
            accumulate=self.feed.accumulate,
            stopped_early=self.state.stopped,
            metrics=self.state.metrics,
            processes=self.state.processes,
        )
