"""The example in the package's docstring runs."""

import doctest

import hyenakernels


def test_the_example_of_the_package_runs() -> None:
    result = doctest.testmod(hyenakernels)
    assert result.attempted > 0
    assert result.failed == 0
