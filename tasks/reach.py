"""Servers that must answer."""

from __future__ import annotations

import logging
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from ml.contracts import InputError
from ml.masking import mask

_log = logging.getLogger(__name__)


def wait_for(url: str, what: str, remedy: str, patience: float) -> None:
    """Returns when `url` answers anything below 500; says that it waits, and after `patience` seconds raises InputError.

    A name and password in the URL are not sent: a sign of life needs none.
    """
    parts = urlsplit(url)
    url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
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
