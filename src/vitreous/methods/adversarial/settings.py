"""Bounds of settings that adversarial solvers share."""

from typing import Annotated

from pydantic import Field

Rate = Annotated[float, Field(ge=0, le=10)]  # of Adam; 0 freezes
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
BatchSize = Annotated[int, Field(ge=2, le=4096)]
Count = Annotated[int, Field(ge=1, le=4096)]
Steps = Annotated[int, Field(ge=0, le=1_000_000_000)]
