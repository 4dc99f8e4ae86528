"""The work behind each command, under the same names, callable from Python and from tests."""
