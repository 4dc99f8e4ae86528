"""Errors that a caller can act on; every other exception is a defect of this package."""


class InputError(ValueError):
    """An argument or a file that cannot be used: the message names it, its value and the way out."""


class NonFiniteError(FloatingPointError):
    """A result is NaN or infinite; the message names the layer in which that began, if one did."""
