"""Types of settings that several configurations share, with the values that they allow."""

from typing import Annotated

from pydantic import Field

_LARGEST = 2**63 - 1  # what a machine word holds
SEEDS = 2**32
"""Number of seeds there are."""

Seed = Annotated[int, Field(ge=0, le=SEEDS - 1)]
Count = Annotated[int, Field(ge=1, le=_LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=_LARGEST)]
Positive = Annotated[float, Field(gt=0)]
PositiveOrZero = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
