"""What a hostile file may hold, and the law for whatever reads it: a value, or one line."""

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies as st

# The same examples everywhere and always.
hostile = hypothesis.settings(derandomize=True, max_examples=100, database=None)

_SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**31, 2**63, 10**30]),
    st.floats(),
    st.text(max_size=5),
)


def values(*others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What TOML, yml and JSON can hold, and what else is given."""
    return st.recursive(
        st.one_of(_SCALARS, *others),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=5,
    )


def refusal(
    read: Callable[[], object], errors: type[Exception] | tuple[type[Exception], ...]
) -> str:
    """The one line with which a file is refused; empty if it is read."""
    try:
        read()
    except errors as error:
        line = str(error)
        assert line
        assert "\n" not in line
        assert len(line) < 2000
        return line
    return ""
