"""Every recipe in conf/ says what it is and runs to its end."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from ml.recipe import load

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "conf").rglob("*.yaml"))
