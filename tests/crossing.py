"""A mini-batch across a cut, as `splitfed.testing` offers it to everybody."""

from splitfed.testing import PLAIN, arrive, assert_split_equals_whole, cut_for, plan_for, send

LABEL_BYTES = 8

__all__ = ["LABEL_BYTES", "PLAIN", "arrive", "assert_split_equals_whole", "cut_for", "plan_for", "send"]
