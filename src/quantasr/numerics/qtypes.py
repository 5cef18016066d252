"""Integer number formats: how many bits, which range, and how finely the scales are laid out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quantasr.errors import RecipeError

BITS = tuple(range(2, 17))
GRANULARITIES = ("per_tensor", "per_channel", "per_group")

SAFE = 64
"""The largest integer of a weight whose products with 8-bit integers cannot saturate: 2 * 255 * 64 < 2 ** 15."""

HALF_FROM = 4096
"""Elements from which on a float weight may be stored in 16 bits; smaller ones are biases, norms and scales."""


@dataclass(frozen=True)
class QType:
    """An integer format for one tensor: ``real = (integer - zero_point) * scale``.

    ``bits`` is 2 to 16. ``symmetric`` fixes ``zero_point`` at 0 and uses a signed range without its lowest
    value (-127..127 at 8 bits), so that negation is exact and products cannot overflow 16-bit pair sums sooner
    than they must; affine uses the unsigned range (0..255). ``granularity`` is one scale for the tensor, for each
    channel (a weight's output channels), or for each ``group_size`` inputs of each output channel.

    Raises :class:`RecipeError` on a combination that does not exist.
    """

    bits: int = 8
    symmetric: bool = True
    granularity: str = "per_tensor"
    group_size: int | None = None

    def __post_init__(self) -> None:
        # 8.0 and True are equal to integers of BITS, but give formats that break later.
        if type(self.bits) is not int or self.bits not in BITS:
            raise RecipeError(f"bits = {self.bits!r}: give 2 to 16")
        if not isinstance(self.symmetric, bool):
            raise RecipeError(f"symmetric = {self.symmetric!r}: write true or false")
        if self.granularity not in GRANULARITIES:
            raise RecipeError(f"granularity = {self.granularity!r}: choose one of {', '.join(GRANULARITIES)}")
        if self.granularity == "per_group":
            if type(self.group_size) is not int or self.group_size < 2:
                raise RecipeError(f"granularity per_group needs group_size of 2 or more, not {self.group_size!r}")
        elif self.group_size is not None:
            raise RecipeError(f"group_size = {self.group_size} is only for granularity per_group")

    @property
    def signed(self) -> bool:
        """Whether the integers are signed; symmetric formats are."""
        return self.symmetric

    @property
    def quant_min(self) -> int:
        """The smallest integer in use."""
        return 1 - (1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def quant_max(self) -> int:
        """The largest integer in use."""
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1

    @property
    def storage(self) -> str:
        """The ONNX element type that holds the integers: the smallest of 4, 8 and 16 bits that fits."""
        width = 4 if self.bits <= 4 else 8 if self.bits <= 8 else 16
        return f"{'' if self.signed else 'u'}int{width}"

    @property
    def reduced(self) -> QType:
        """The same format, in 7 bits where it has 8.

        Sums of two products with 8-bit integers saturate at 16 bits on some CPUs. Fewer bits cannot, and more are
        multiplied as floats.
        """
        return replace(self, bits=7) if self.bits == 8 else self

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        row: dict[str, Any] = {"bits": self.bits, "symmetric": self.symmetric, "granularity": self.granularity}
        if self.group_size is not None:
            row["group_size"] = self.group_size
        return row

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "affine"
        size = f"({self.group_size})" if self.group_size else ""
        return f"int{self.bits} {kind} {self.granularity}{size}"
