"""Parse lengths and sizes with units: 32k positions, 24G of memory."""

import re

from evo2cli.errors import UserError

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_length(text: str, option: str) -> int:
    """Parse a number of positions: 32768 or 32k, 1048576 or 1M.

    Args:
        text: The length; k is 2^10 and M is 2^20, in upper or lower case.
        option: The option, for the error message.

    Raises:
        UserError: It is not a length, or 0.
    """
    match = re.fullmatch(r"([1-9][0-9_]*)([kKmM]?)", text.strip())
    if match is None:
        raise UserError(f"{option} {text}: not a length such as 8192, 32k (32,768) or 1M")
    return int(match[1]) * _UNITS[match[2].lower()]


def parse_bytes(text: str, option: str) -> int:
    """Parse a memory size, in bytes: 24G, 24GiB and 24GB are all 24 * 2^30; also 0.5T, 800M.

    Args:
        text: The size.
        option: The option, for the error message.

    Raises:
        UserError: It is not a size, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(?:i?b)?", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise UserError(f"{option} {text}: not a size such as 24G or 800M")
    return int(float(match[1]) * _UNITS[match[2]])
