"""Lengths as people write them."""

import re

from evo2cli.errors import UserError

_UNITS = {"": 1, "k": 2**10, "m": 2**20}


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
