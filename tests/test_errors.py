"""rsslib.errors: sentences about what was typed, and of other packages' errors."""

import pytest
from helpers import sentence

from rsslib.errors import InputError, choose, one_line


def test_choose_returns_what_is_valid():
    assert choose("rss", ["ofa", "rss"], "method") == "rss"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rs", "unknown method 'rs' (did you mean 'rss'?): expected one of ofa, rss"),
        ("xyz", "unknown method 'xyz': expected one of ofa, rss"),
        ("", "unknown method '': expected one of ofa, rss"),
        (7, "unknown method 7: expected one of ofa, rss"),
        (None, "unknown method None: expected one of ofa, rss"),
    ],
)
def test_choose_names_the_valid_values_and_the_closest(value, message):
    with pytest.raises(InputError) as error:
        choose(value, iter(["ofa", "rss"]), "method")
    assert sentence(error) == message
    assert error.value._render_traceback_() == [f"InputError: {message}"]  # a notebook shows this and no stack


def test_another_packages_error_is_a_short_line():
    assert one_line(ValueError("two\n  lines ")) == "two lines" and one_line(KeyError()) == "KeyError"
    long = one_line(OSError("x" * 500))
    assert long == "x" * 157 + "..."
