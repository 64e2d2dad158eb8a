"""Secrets that are made once and kept in files for their owner alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ml.contracts import InputError

SHORTEST = 12  # characters of a password that somebody else chose


def kept(folder: Path, name: str) -> str:
    """The secret in FOLDER/NAME, made by the kernel's random numbers where there is none. Raises InputError for one that others can read."""
    path = folder / name
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            raise InputError(f"{path} holds a secret and can be read by others: remove it, so that another is made, or `chmod 600` it") from None
    found = path.read_text().strip()
    if len(found) < SHORTEST:
        raise InputError(f"{path} holds a secret of {len(found)} characters, expected {SHORTEST} or more: remove it, so that another is made")
    return found


def password(folder: Path, variable: str, name: str) -> str:
    """What the environment's variable holds, or the kept secret. Raises InputError for a weak one."""
    given = os.environ.get(variable)
    if given is None:
        return kept(folder, name)
    if len(given) < SHORTEST or len(set(given)) < 5 or "password" in given.lower():
        raise InputError(f"{variable} is weak: give {SHORTEST} characters or more that are hard to guess, or unset it, so that one is made")
    return given


def write(path: Path, content: str) -> None:
    """Writes a file whole, readable for its owner alone."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
    new.replace(path)
