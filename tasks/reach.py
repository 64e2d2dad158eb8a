"""Servers that must answer, and messages about them that give no secret away."""

from __future__ import annotations

import logging
import os
import re
import time
import urllib.error
import urllib.request

from ml.contracts import InputError

_log = logging.getLogger(__name__)


def wait_for(url: str, what: str, remedy: str, patience: float) -> None:
    """Returns when `url` answers anything below 500; says that it waits, and after `patience` seconds raises InputError."""
    deadline, told = time.monotonic() + patience, False
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                return
            reason = f"HTTP {error.code}"
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "reason", error))
        if time.monotonic() > deadline:
            raise InputError(f"unreachable {what}: {mask(reason)}. {remedy}")
        if not told:
            _log.warning("%s does not answer; waiting up to %.0f s", what, patience)
            told = True
        time.sleep(0.5)


def mask(text: str) -> str:
    """`text` without passwords in URIs and without the values of variables that hold secrets."""
    text = re.sub(r"(://)[^/@\s]+@", r"\1***@", text)
    text = re.sub(r"((?:password|token|secret|sig|key)=)[^&\s;]+", r"\1***", text, flags=re.IGNORECASE)
    for name, value in os.environ.items():
        if len(value) >= 6 and re.search(r"(PASSWORD|TOKEN|SECRET|API_KEY|ACCESS_KEY|AUTH_STRING)$", name):
            text = text.replace(value, "***")
    return text
