"""Ranges of options, as annotations of a policy's constructor; `robolearn.config.validate` checks them."""

import math
from typing import Annotated

from annotated_types import Ge, Gt, Interval

Positive = Annotated[int, Ge(1)]
NonNegative = Annotated[int, Ge(0)]
Weight = Annotated[float, Interval(ge=0, lt=math.inf)]
PositiveFloat = Annotated[float, Gt(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Rate = Annotated[float, Interval(ge=0, lt=1)]
