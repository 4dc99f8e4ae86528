"""Block convolution on tensor cores, fused with featurizer, gates and skip.

A filter of K taps over tiles of N = 16 rows is M + 1 = ceil((K - 1) / N) + 1 Toeplitz tiles,

    y_n = T_0 u_n + T_1 u_(n-1) + ... + T_M u_(n-M),    T_m[i, j] = taps[m N + i - j],

shared by the channels of a group. A program processes the rows of a segment in order and adds the
products of each tile of rows to its accumulator and to those of the tiles that follow, so a row is
loaded once and its operand is built once. Each warp has a group, or a part of one, of its own:
warps synchronize only where rows are loaded and stored.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], F featurizer taps, K taps, G groups.
Source: arXiv:2503.01868, section 3 and appendix A.1.
"""

import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.fir.tiles import (
    TILE,
    channels_of,
    from_operands,
    gate_input,
    grid,
    identity,
    load_skips,
    multiply,
    push,
    stack,
    tiling,
    to_operands,
    toeplitz_tiles,
    zero_tiles,
)
from hyenakernels.gate.rows import featurized, load_featurizer, load_gates, load_rows

MAX_TILES_IN_REGISTERS = tl.constexpr(9)  # the number of tiles of 128 taps


@triton.jit
def _load_signals(
    z,
    z_past,
    gate,
    first,
    channel,
    inside,
    length,
    row_stride: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    PAST_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Load rows of the gate (x2, or dy for the GRADIENT of x2), of x1 and of v."""
    C: tl.constexpr = 3 * D
    HALO: tl.constexpr = F - 1
    N: tl.constexpr = ROWS + HALO
    P: tl.constexpr = PAST_ROWS
    if GRADIENT:
        gates = load_rows(gate, gate, first, channel, inside, length, D, D, ROWS, 0, 0, 0)
    else:
        gates = load_rows(z, z_past, first, channel, inside, length, row_stride, C, N, HALO, P, N)
    x1, v = load_gates(z, z_past, first, channel, inside, length, row_stride, D, N, HALO, P, N)
    return gates, x1, v


@triton.jit(do_not_specialize=["length", "segment"])
def _convolution_kernel(
    z,
    z_past,
    featurizer_taps,
    taps,
    skip,
    past,
    gate,
    y,
    tail,
    length,
    segment,
    batch_stride,
    row_stride: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    SUB: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    HAS_PAST: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    GRADIENT: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Compute gate * (conv(u) + skip * u): y with x2 as gate, the GRADIENT of x2 with dy."""
    C: tl.constexpr = 3 * D
    BLOCK: tl.constexpr = SUB * TILE
    EARLY: tl.constexpr = (TILES + SUB - 2) // SUB
    SEGMENTS: tl.constexpr = TILE // PART
    Z_PAST: tl.constexpr = F - 1 if HAS_PAST else 0
    PAST_ROWS: tl.constexpr = K - 1 if HAS_PAST else 0
    RUNS: tl.constexpr = BLOCK // ROWS
    dtype: tl.constexpr = z.dtype.element_ty
    program, chunk, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    z += batch.to(tl.int64) * batch_stride
    gate += batch.to(tl.int64) * length * D
    y += batch.to(tl.int64) * length * D
    z_past += batch * (F - 1) * C
    past += batch.to(tl.int64) * (K - 1) * D
    tail += batch.to(tl.int64) * (K - 1) * D

    channel, lane_segment, inside = channels_of(program, D, W, PART, PARTS)
    IN_REGISTERS: tl.constexpr = TILES <= MAX_TILES_IN_REGISTERS and OPERAND != tl.float32  # noqa: SIM300 - a constant of the kernel
    tiles = toeplitz_tiles(
        taps, program, D // W, K, W, PART, PARTS, TILES, False, IN_REGISTERS, OPERAND
    )
    pending = zero_tiles(TILES - 1, PARTS, tl.float32)
    taps_x2, taps_x1, taps_v = load_featurizer(featurizer_taps, channel, inside, D, F)
    if HAS_SKIP:
        eye = identity(PARTS, OPERAND)
        skips = load_skips(skip, channel, inside, PARTS)

    start = (chunk * SEGMENTS + lane_segment) * segment
    stop = tl.minimum(start + segment, length)
    run = tl.arange(0, RUNS)[:, None]
    line = tl.arange(0, BLOCK)[:, None]
    first = start + run * ROWS - EARLY * BLOCK
    gates, x1, v = _load_signals(
        z, z_past, gate, first, channel, inside, length, row_stride, D, F, Z_PAST, ROWS, GRADIENT
    )
    blocks = tl.cdiv(tl.minimum(segment, length - chunk * SEGMENTS * segment), BLOCK)
    last_start = ((chunk + 1) * SEGMENTS - 1) * segment
    for block in range(-EARLY, blocks):
        after = first + BLOCK
        following = _load_signals(
            z,
            z_past,
            gate,
            after,
            channel,
            inside,
            length,
            row_stride,
            D,
            F,
            Z_PAST,
            ROWS,
            GRADIENT,
        )
        rows_u = ()
        rows_gate = ()
        for i in tl.static_range(ROWS):
            u = gate_input(x1, v, taps_x1, taps_v, past, first, channel, inside, i, D, F, PAST_ROWS)
            rows_u = rows_u + (u,)
            if GRADIENT:
                rows_gate = rows_gate + (gates[i].to(tl.float32),)
            else:
                rows_gate = rows_gate + (featurized(gates, taps_x2, i, F),)
        u = stack(rows_u, ROWS)
        operands = to_operands(u.to(OPERAND), PARTS, SUB)
        convolved = ()
        for n in tl.static_range(SUB):
            complete, pending = push(tiles, operands[n], pending, TILES)
            if HAS_SKIP:
                # The product with the identity converts u to the layout of the accumulators.
                complete = tl.fma(skips, multiply(eye, operands[n]), complete)
            convolved = convolved + (complete,)
        gated = stack(rows_gate, ROWS) * from_operands(convolved, PARTS, SUB)
        row = start + block * BLOCK + line
        present = (block >= 0) & (row < stop) & inside
        tl.store(y + row.to(tl.int64) * D + channel, gated.to(dtype), mask=present)
        if not GRADIENT:  # noqa: SIM102 - known when the kernel is compiled
            if last_start + (block + 1) * BLOCK > length - K + 1:
                # The last K - 1 rows of u are the next past; some may be rows of the input past.
                index = row - (length - K + 1)
                valid = ((block >= 0) & (row < stop)) | (row < 0)
                tl.store(
                    tail + index * D + channel, u.to(dtype), mask=valid & (index >= 0) & inside
                )
        first = after
        gates, x1, v = following


def _convolve(which, z_BLC, filters, past, gate_BLD, tail_BPD):
    batch, length, _ = z_BLC.shape
    sizes = tiling(which, z_BLC, filters)
    programs, segment = grid(which, z_BLC, sizes)
    y_BLD = z_BLC.new_empty(batch, length, sizes["D"])
    _convolution_kernel[programs](
        z_BLC,
        z_BLC if past is None else past.featurizer_BPC,
        *filters.launch_arguments(),
        z_BLC if past is None else past.inner,
        z_BLC if gate_BLD is None else gate_BLD,
        y_BLD,
        y_BLD if tail_BPD is None else tail_BPD,
        length,
        segment,
        batch_stride(z_BLC),
        HAS_PAST=past is not None,
        HAS_SKIP=filters.skip_D is not None,
        GRADIENT=gate_BLD is not None,
        **sizes,
    )
    return y_BLD


def forward(z_BLC, filters, past):
    """Compute y = x2 * (conv(u) + skip * u), u = x1 * v, of the featurized projections.

    Args:
        z_BLC: The projections, contiguous along C.
        filters: Contiguous `FIRFilters`.
        past: A contiguous `HyenaPast`, or None for zeros.

    Returns:
        y [B, L, D], and the last K - 1 rows of u, both in the dtype of `z`.
    """
    width, num_taps = z_BLC.shape[2] // 3, filters.taps_GK.shape[1]
    tail_BPD = z_BLC.new_empty(z_BLC.shape[0], num_taps - 1, width)
    return _convolve("forward", z_BLC, filters, past, None, tail_BPD), tail_BPD


def gate_gradient(z_BLC, filters, past, dy_BLD):
    """The gradient of the featurized x2, dy * (conv(u) + skip * u): forward with another gate."""
    return _convolve("forward", z_BLC, filters, past, dy_BLD, None)
