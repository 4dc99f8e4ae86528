"""References of the norms in plain PyTorch: any float dtype, differentiable.

B batch, L length, D channels.
"""

from torch import Tensor

from hyenakernels.precision import accumulation_dtype


def rms_norm(x_BLD: Tensor, scale_D: Tensor, eps: float) -> Tensor:
    """Compute scale * x / (rms(x) + eps) of each row, in fp32 or better.

    eps is added outside the square root, as the weights of Evo 2 expect.

    Returns:
        The normalized rows in the dtype of `x`.

    Source: arXiv:1910.07467.
    """
    x = x_BLD.to(accumulation_dtype(x_BLD))
    square = x.square().mean(dim=-1, keepdim=True)
    # sqrt has no gradient at 0, and a row of zeros needs none: there, the divisor is eps.
    is_zero = square == 0
    root = square.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)
    return (scale_D.to(x.dtype) * (x / (root + eps))).to(x_BLD.dtype)


def add_rms_norm(
    x_BLD: Tensor, y_BLD: Tensor, scale_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute rms_norm(x + y), and x + y."""
    total_BLD = x_BLD + y_BLD
    return rms_norm(total_BLD, scale_D, eps), total_BLD
