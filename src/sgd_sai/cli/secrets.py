"""Addresses as they may be shown and stored: without users, passwords and options."""

from __future__ import annotations

import re
from urllib.parse import unquote

_HIDDEN = "***"
# To the last @, since a password that was typed as it is may hold any sign, spaces too.
_USER = re.compile(r"://.*@", re.DOTALL)
_OPTIONS = re.compile(r"(://[^?\s]*)\?\S*")


def without_secrets(text: str) -> str:
    """Return a text, in which an address may stand, without its user, password and options."""
    return _OPTIONS.sub(rf"\1?{_HIDDEN}", _USER.sub(f"://{_HIDDEN}@", text))


def shown_address(address: str) -> str:
    """Return an address that may be wrong in any way, without all that may be a password."""
    kind, sign, rest = address.partition(":")
    if not sign or _is_file(address):
        return address
    return without_secrets(address) if "://" in address and "@" in rest else f"{kind}://{_HIDDEN}"


def scrubbed(message: str, address: str) -> str:
    """Return a message about an address without the parts of it that `shown_address` leaves out."""
    if _is_file(address):
        return message
    parts = {part for each in (address, unquote(address)) for part in _parts(each.partition(":")[2])}
    for part in sorted(parts - _parts(shown_address(address)), key=len, reverse=True):
        message = message.replace(part, _HIDDEN)
    return message


def _is_file(address: str) -> bool:
    return address.startswith("sqlite:///") and "?" not in address


def _parts(text: str) -> set[str]:
    """What stands between the signs of an address; and between slashes, as a password may hold the others."""
    parts = {*re.split(r"[:/@?&=#]+", text), *text.split("/"), *re.split("[:@]", text)}
    return parts - {""}
