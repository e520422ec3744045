"""rsslib.errors: sentences about values that were typed, and about other packages' errors."""

import pytest
from helpers import sentence

from rsslib.errors import InputError, check_number, choose, one_line


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


def test_long_lists_and_values_stay_one_sentence():
    with pytest.raises(InputError) as error:
        choose("x" * 10_000, [f"method-{i}" for i in range(500)], "method")
    assert "method-0" in sentence(error) and "method-499" in sentence(error)


@pytest.mark.parametrize("value", [0, 4, 2.5, True, "2", None, float("nan"), 10**400])
def test_number_out_of_range_is_refused(value):
    with pytest.raises(InputError, match="n is .*: expected a whole number of at least 1 and at most 3") as error:
        check_number(value, "n", 1, 3, whole=True)
    assert sentence(error)
    check_number(2, "n", 1, 3, whole=True)


def test_error_of_another_package_becomes_a_short_line():
    assert one_line(ValueError("two\n  lines ")) == "two lines" and one_line(KeyError()) == "KeyError"
    assert one_line(OSError("x" * 250 + "y" * 250)) == "x" * 80 + " ... " + "y" * 80
