"""The words of messages."""

from evo2cli.errors import counted


def test_one_thing_is_named_in_the_singular() -> None:
    assert [counted(number, "record") for number in (0, 1, 1200)] == [
        "0 records",
        "1 record",
        "1,200 records",
    ]
    assert [counted(number, "record is", "records are") for number in (1, 2)] == [
        "1 record is",
        "2 records are",
    ]
