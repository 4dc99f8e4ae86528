"""Parse lengths such as 32k and memory sizes such as 24G."""

import re

from evo2cli.errors import UserError

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_length(text: str, option: str) -> int:
    """A number of positions: 32768, 32k for the same, or 1M for 1,048,576.

    Args:
        text: Digits, then k (2^10) or M (2^20) in either case.
        option: The option or key, for the error message.

    Raises:
        UserError: The text is not a length, or is 0.
    """
    match = re.fullmatch(r"([1-9][0-9_]*)([kKmM]?)", text.strip())
    if match is None:
        raise UserError(f"{option} {text}: not a length such as 8192, 32k (32,768) or 1M")
    return int(match[1]) * _UNITS[match[2].lower()]


def parse_bytes(text: str, option: str) -> int:
    """Bytes of memory: 24G, 24GiB and 24GB are all 24 times 2^30 bytes; likewise 0.5T, 800M.

    Args:
        text: A number and its unit.
        option: The option, for the error message.

    Raises:
        UserError: The text is not a size, or is 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(?:i?b)?", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise UserError(f"{option} {text}: not a size such as 24G or 800M")
    return int(float(match[1]) * _UNITS[match[2]])
