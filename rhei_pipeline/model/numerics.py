"""PostgreSQL's division of numerics, whose number of digits depends on the operands."""

#: PostgreSQL's numerics consist of groups of so many decimal digits.
GROUP = 4
#: Groups of digits that a quotient has at least, behind the group that it begins with.
SIGNIFICANT_GROUPS = 4


def groups_up(scale: int) -> int:
    """Return how many groups hold so many digits behind the point."""
    return -(-scale // GROUP)


def quotient_scale(shift: int, left_scale: int, right_scale: int) -> int:
    """Return the scale of a quotient that is computed as `left * 10000**shift / right`.

    Both are integers: the operands without their points, filled up to whole groups.
    """
    return GROUP * (shift + groups_up(left_scale) - groups_up(right_scale))


def quotient(left: str, right: str, scale: int) -> str | None:
    """Divide two decimals as PostgreSQL does; None if the answer is not known at this scale.

    Its scale follows from the operands' first groups of digits (`select_div_scale` in
    PostgreSQL's numeric.c), and it is rounded half away from zero.
    """
    (first, first_scale), (second, second_scale) = _whole(left), _whole(right)
    if not second:
        return None
    if not first:
        return "0"
    (first_length, first_group), (second_length, second_group) = _measured(first), _measured(second)
    shift = SIGNIFICANT_GROUPS - (first_length - second_length) + (first_group <= second_group)
    kept = quotient_scale(shift, first_scale, second_scale)
    if shift < 0 or not max(first_scale, second_scale) <= kept <= scale:
        return None
    above, below = abs(first) * 10 ** (GROUP * shift), abs(second)
    found = (2 * above + below) // (2 * below)
    return f"{'-' if (first < 0) != (second < 0) else ''}{found}e-{kept}"


def _whole(text: str) -> tuple[int, int]:
    """Return a decimal as an integer that ends with a whole group, and the decimal's scale."""
    whole, _, behind = text.partition(".")
    return int(whole + behind) * 10 ** (-len(behind) % GROUP), len(behind)


def _measured(value: int) -> tuple[int, int]:
    """Return how many groups an integer has, and its first."""
    digits = str(abs(value))
    return groups_up(len(digits)), int(digits[: (len(digits) - 1) % GROUP + 1])
