"""Types of settings that several configurations share, with the values that they allow."""

from typing import Annotated

from pydantic import Field

_MAX_INT = 2**63 - 1  # what a machine word holds
SEEDS = 2**32
"""Number of seeds there are."""

Seed = Annotated[int, Field(ge=0, le=SEEDS - 1)]
PositiveInt = Annotated[int, Field(ge=1, le=_MAX_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MAX_INT)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
PositiveUnitInterval = Annotated[float, Field(gt=0, le=1)]
