"""Number types with ranges, shared by several configurations."""

from typing import Annotated

from pydantic import Field

_MAX_INT = 2**63 - 1  # largest signed 64-bit integer
SEEDS = 2**32
"""Number of valid seeds, from 0."""

Seed = Annotated[int, Field(ge=0, le=SEEDS - 1)]
PositiveInt = Annotated[int, Field(ge=1, le=_MAX_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MAX_INT)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
PositiveUnitInterval = Annotated[float, Field(gt=0, le=1)]
