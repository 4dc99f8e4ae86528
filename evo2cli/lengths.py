"""Lengths and sizes as people write them."""

import re

from evo2cli.errors import UserError

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_length(text: str, option: str) -> int:
    """A number of positions: 32768, or 32k for it, or 1M for 1,048,576.

    Args:
        text: What was given; k is 2^10 and M is 2^20, in either case.
        option: What it was given to, for the error message.

    Raises:
        UserError: It is none, or 0.
    """
    match = re.fullmatch(r"([1-9][0-9_]*)([kKmM]?)", text.strip())
    if match is None:
        raise UserError(f"{option} {text}: not a length such as 8192, 32k (32,768) or 1M")
    return int(match[1]) * _UNITS[match[2].lower()]


def parse_bytes(text: str, option: str) -> int:
    """A size of memory: 24G, 24GiB or 24GB, all for 24 times 2^30 bytes; 0.5T, 800M.

    Args:
        text: What was given.
        option: What it was given to, for the error message.

    Raises:
        UserError: It is none, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(?:i?b)?", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise UserError(f"{option} {text}: not a size such as 24G or 800M")
    return int(float(match[1]) * _UNITS[match[2]])
