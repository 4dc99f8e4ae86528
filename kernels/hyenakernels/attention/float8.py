"""Keys and values kept in FP8: half the memory of bf16, for contexts that would not fit otherwise.

B batch, H heads, T tokens, W channels a head.
"""

from typing import Any

import torch
from torch import Tensor

from hyenakernels.float8.reference import E4M3, SMALLEST
from hyenakernels.precision import accumulation_dtype

LARGEST = torch.finfo(E4M3).max


class Float8Rows:
    """What stands for a tensor [B, H, T, W]: x = row * scale, a scale for each token and head.

    Rows are e4m3, 3 bits of mantissa, so a number is off by a sixteenth at most, or by 2^-10 of the
    largest of its row where that is more. Assigning to a part of it rounds; `to` restores.

    Attributes:
        bytes_BHTW: The rows, e4m3 by their bytes.
        scales_BHT: In fp32.
        dtype: Of what `to` restores.
    """

    def __init__(self, bytes_BHTW: Tensor, scales_BHT: Tensor, dtype: torch.dtype) -> None:
        self.bytes_BHTW, self.scales_BHT, self.dtype = bytes_BHTW, scales_BHT, dtype

    @classmethod
    def empty(
        cls, sizes: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> "Float8Rows":
        """Room for a tensor of these sizes, of `dtype` when restored."""
        return cls(
            torch.empty(sizes, dtype=torch.uint8, device=device),
            torch.empty(sizes[:3], dtype=torch.float32, device=device),
            dtype,
        )

    @property
    def shape(self) -> torch.Size:
        """[B, H, T, W]."""
        return self.bytes_BHTW.shape

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.bytes_BHTW.device

    def data_ptr(self) -> int:
        """Where in memory the rows begin."""
        return self.bytes_BHTW.data_ptr()

    @property
    def rows(self) -> Tensor:
        """The rows as numbers."""
        return self.bytes_BHTW.view(E4M3)

    def __getitem__(self, part: Any) -> "Float8Rows":
        """A part along batch, heads and tokens; it shares the memory where a tensor's would."""
        return Float8Rows(self.bytes_BHTW[part], self.scales_BHT[part], self.dtype)

    def __setitem__(self, part: Any, x: "Tensor | Float8Rows") -> None:
        """Round the numbers of `x` into a part."""
        if isinstance(x, Float8Rows):
            self.bytes_BHTW[part], self.scales_BHT[part] = x.bytes_BHTW, x.scales_BHT
            return
        wide = x.to(accumulation_dtype(x))
        scales = (wide.abs().amax(dim=-1) / LARGEST).clamp(min=SMALLEST)
        self.bytes_BHTW[part] = (wide / scales[..., None]).to(E4M3).view(torch.uint8)
        self.scales_BHT[part] = scales.to(torch.float32)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        """The numbers, in `dtype`."""
        rows, scales = (
            x.to(device, non_blocking=non_blocking) for x in (self.bytes_BHTW, self.scales_BHT)
        )
        return (rows.view(E4M3).to(scales.dtype) * scales[..., None]).to(self.dtype)


Rows = Tensor | Float8Rows
