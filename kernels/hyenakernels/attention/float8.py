"""KV cache in FP8: half the memory of bf16, for contexts that would not fit otherwise.

B batch, H heads, T tokens, W channels of a head.
"""

from typing import Any

import torch
from torch import Tensor

from hyenakernels.float8.reference import E4M3, MIN_SCALE
from hyenakernels.precision import accumulation_dtype

E4M3_MAX = torch.finfo(E4M3).max


class Float8Rows:
    """A tensor [B, H, T, W] quantized to FP8: x = row * scale, with a scale per token and head.

    Rows are e4m3 with 3 bits of mantissa, so the error of a number is at most a sixteenth of it, or
    2^-10 of the largest number of its row if that is more. Item assignment quantizes, `to`
    dequantizes.

    Attributes:
        bytes_BHTW: The rows, e4m3 viewed as bytes.
        scales_BHT: The scales, fp32.
        dtype: The dtype that `to` returns.
    """

    def __init__(self, bytes_BHTW: Tensor, scales_BHT: Tensor, dtype: torch.dtype) -> None:
        self.bytes_BHTW, self.scales_BHT, self.dtype = bytes_BHTW, scales_BHT, dtype

    @classmethod
    def empty(
        cls, sizes: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> "Float8Rows":
        """Uninitialized rows for a tensor of these sizes, which `to` returns in `dtype`."""
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
        """The device of the rows."""
        return self.bytes_BHTW.device

    def data_ptr(self) -> int:
        """The address of the rows, as `Tensor.data_ptr`."""
        return self.bytes_BHTW.data_ptr()

    @property
    def rows(self) -> Tensor:
        """The rows as e4m3, without their scales."""
        return self.bytes_BHTW.view(E4M3)

    def __getitem__(self, index: Any) -> "Float8Rows":
        """Index batch, heads and tokens; a view or a copy, as for a tensor."""
        return Float8Rows(self.bytes_BHTW[index], self.scales_BHT[index], self.dtype)

    def __setitem__(self, index: Any, x: "Tensor | Float8Rows") -> None:
        """Quantize `x` and store it."""
        if isinstance(x, Float8Rows):
            self.bytes_BHTW[index], self.scales_BHT[index] = x.bytes_BHTW, x.scales_BHT
            return
        wide = x.to(accumulation_dtype(x))
        scales = (wide.abs().amax(dim=-1) / E4M3_MAX).clamp(min=MIN_SCALE)
        self.bytes_BHTW[index] = (wide / scales[..., None]).to(E4M3).view(torch.uint8)
        self.scales_BHT[index] = scales.to(torch.float32)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        """The dequantized tensor in `dtype`, on `device`."""
        rows, scales = (
            x.to(device, non_blocking=non_blocking) for x in (self.bytes_BHTW, self.scales_BHT)
        )
        return (rows.view(E4M3).to(scales.dtype) * scales[..., None]).to(self.dtype)


Rows = Tensor | Float8Rows
