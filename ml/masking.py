"""Messages that give no secret away."""

from __future__ import annotations

import os
import re

SECRET = re.compile(r"(PASSWORD|TOKEN|SECRET|_KEY|ACCESS_KEY_ID|CONNECTION_STRING|AUTH_STRING)$")
"""Ends of the names of variables that hold secrets."""


def mask(text: str) -> str:
    """`text` without passwords in URIs and without the values of variables that hold secrets."""
    text = re.sub(r"(://)[^/@\s]+@", r"\1***@", text)
    text = re.sub(r"((?:password|token|secret|sig|key)=)[^&\s;]+", r"\1***", text, flags=re.IGNORECASE)
    for name, value in os.environ.items():
        if len(value) >= 6 and SECRET.search(name):
            text = text.replace(value, "***")
    return text
