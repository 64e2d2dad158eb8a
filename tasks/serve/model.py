"""The version that answers, and a thread that follows the alias: a new version is loaded and tried beside the old one, then takes its place."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ml import predictor
from ml.device import device_of
from ml.predictor import Embedder, Predictor, values_of
from ml.recipe import Compute
from tasks.serve.metrics import Metrics
from tasks.tracking import database, registry, scoring_protocol
from tasks.tracking.versions import pinned

EXAMPLE = "serving_input_example.json"
"""What MLflow stores beside a model: a request that it must be able to answer."""
LONGEST = 300.0
"""Seconds between two tries of a version that cannot be loaded, at most."""

_log = logging.getLogger(__name__)


def uri_of(model: str) -> str:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION` for what the command line names."""
    return model if model.startswith("models:/") else f"models:/{model}"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A version in memory."""

    version: registry.Version
    predictor: Predictor | Embedder
    schema: Any

    @classmethod
    def load(cls, version: registry.Version, threads: int) -> Loaded:
        """Fetches the version, compares its files with those that were registered, loads it and lets it answer its example; raises InputError."""
        folder = registry.files(version)
        inside = folder / "artifacts" / "model"  # of a registered model; a backbone lies bare
        made = predictor.load(inside if inside.is_dir() else folder, device_of(Compute(threads=threads)))
        loaded = cls(version, made, scoring_protocol.schema(made.modality.fields, made.modality.column_type))
        example = folder / EXAMPLE
        loaded.predict(loaded.values(example.read_bytes(), "application/json") if example.is_file() else [])
        return loaded

    @property
    def modality(self) -> Any:
        return self.predictor.modality

    def values(self, body: bytes, content_type: str) -> list[Any]:
        """What the rows of a request hold; raises InputError."""
        return values_of(scoring_protocol.parsed(body, content_type, self.schema), self.modality)

    def predict(self, values: list[Any]) -> pd.DataFrame:
        """One row for each value; paths are refused, since they would be read from this machine."""
        return self.predictor.predict(values, files=False)

    def described(self) -> Mapping[str, Any]:
        """What it takes and gives, for a page or a client."""
        return {
            "uri": self.version.uri,
            "version": str(self.version.version),
            "noun": self.modality.noun,
            "fields": [{"name": one.name, "type": one.type.name} for one in self.schema.inputs],
            "suffixes": sorted(self.modality.suffixes),
            "outputs": list(self.predict([]).columns),
        }


class LiveModel:
    """`current` is the version that answers, `problem` why it is not the one that the alias names, or why that cannot be told."""

    def __init__(self, model: str, metrics: Metrics, threads: int = 0):
        """Loads what `models:/NAME@ALIAS` or `models:/NAME/VERSION` names; raises InputError."""
        version = pinned(model)
        self.name = version.name
        self.uri, self.alias, self.problem = model, model.partition("@")[2], ""
        self._metrics, self._threads = metrics, threads
        self.current = Loaded.load(version, threads)
        metrics.serves(self.current.version)
        self._failed: tuple[int, int, float] = (0, 0, 0.0)  # version, tries, when it may be tried again
        self._stop = threading.Event()

    def follow(self, seconds: float) -> None:
        """From now on looks every so often at which version the alias names; a version by its number stays."""
        if self.alias:
            threading.Thread(target=self._follow, args=(seconds,), name="follow-alias", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _follow(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            self.look()

    def look(self) -> None:
        """Changes to the version that the alias names, where that is another; whatever goes wrong, the present one stays."""
        try:
            wanted = registry.champion(self.name, self.alias, seconds=1.0)  # it is asked again anyway
        except Exception as error:
            self._metrics.registry_failures.inc()
            self._tell(f"the registry cannot be asked: {database.first_line(error)}")
            return
        if wanted is None:
            self._tell(f"{self.uri} is no longer in the registry")
        elif wanted.version == self.current.version.version:
            self._tell("")
        else:
            self._change(wanted)

    def _change(self, wanted: registry.Version) -> None:
        number, tries, again = self._failed
        if wanted.version != number:
            tries = 0
        elif time.monotonic() < again:
            return
        try:
            loaded = Loaded.load(wanted, self._threads)
        except Exception as error:
            self._failed = (wanted.version, tries + 1, time.monotonic() + min(5.0 * 2**tries, LONGEST))
            self._metrics.swap_failures.inc()
            self._tell(f"{wanted.uri} cannot be served: {database.first_line(error)}")
            return
        before, self.current = self.current, loaded
        self._metrics.swaps.inc()
        self._metrics.serves(loaded.version)
        self._tell("")
        _log.info("%s now names %s, which answers in place of %s", self.uri, loaded.version.uri, before.version.uri)

    def _tell(self, problem: str) -> None:
        if problem and problem != self.problem:
            _log.error("%s; %s goes on answering", problem, self.current.version.uri)
        self.problem = problem

