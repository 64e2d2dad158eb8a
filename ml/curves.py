"""The curves of a training: means over windows of its steps, and its speed."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from ml import progress
from ml.contracts import Report

POINTS = 200  # points of a training curve
SPEED_SECONDS = 1.0  # that each point of the speed's curve is measured over, at least


class Curves:
    """Sums up what steps find, on their device, and reports it once a window; nothing but the end of a window waits for the device."""

    def __init__(self, stage: str, total: int, report: Report):
        self.stage, self.total, self.report = stage, total, report
        self.window = max(1, total // POINTS)
        self.sums: dict[str, Tensor] = {}
        self.counted = 0
        self.start()

    def start(self) -> None:
        """The speed is measured from now on."""
        self._began, self._waited, self._rows = time.perf_counter(), 0.0, 0

    def add(self, found: Mapping[str, Tensor]) -> None:
        """What one step found, by name."""
        for name, value in found.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counted += 1

    def spent(self, waited: float, rows: int) -> None:
        """One step had to wait `waited` seconds for its `rows`."""
        self._waited, self._rows = self._waited + waited, self._rows + rows

    def full(self, step: int) -> bool:
        """Whether a window ends with `step`."""
        return step % self.window == 0 or step == self.total

    def tell(self, step: int, learning_rate: float) -> float | None:
        """Reports the window that ends with `step`. The share of time spent waiting for data, where it was measured for long enough."""
        now = time.perf_counter()
        passed = now - self._began
        means = {f"train/{name}": float(value) / self.counted for name, value in self.sums.items()}
        self.report(means, step)
        self.sums, self.counted = {}, 0
        speed = self._rows / passed
        progress.update(self.stage, step, self.total, loss=means["train/loss"], rows_per_second=speed)
        if step < self.total and passed < SPEED_SECONDS:
            return None
        share = self._waited / passed
        self.report({"train/learning_rate": learning_rate, "train/rows_per_second": speed, "train/data_share": share}, step)
        self._began, self._waited, self._rows = now, 0.0, 0
        return share
