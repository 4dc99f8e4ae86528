"""Tiles of the block convolution: channels of a program, Toeplitz tiles, products.

Groups are cut into parts of at most 16 channels. The columns of a product are the channels of a
part. If groups are narrower, several segments are placed side by side to fill the minimum of 16
columns of a tensor core; for ungrouped filters all 16 columns are segments.

D channels, G filter groups of W channels, K taps, F featurizer taps.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.gate.rows import featurized
from hyenakernels.launch import cdiv, fir_launch, fir_segment, next_power_of_two

# Rows and columns of a tile: the minimum of tensor cores, with the least work outside the K taps.
TILE = tl.constexpr(16)


def tiling(which, z_BLC, filters):
    """The constexpr sizes that every kernel of this folder takes, for the pass `which`."""
    width = z_BLC.shape[2] // 3
    groups, num_taps = filters.taps_GK.shape
    num_featurizer_taps = filters.featurizer_taps_CF.shape[1]
    launch = fir_launch(which, num_taps, z_BLC.dtype)
    return {
        "row_stride": z_BLC.stride(1),
        "D": width,
        "F": num_featurizer_taps,
        "K": num_taps,
        "W": width // groups,
        "PART": min(TILE.value, next_power_of_two(width // groups)),
        "PARTS": launch.parts,
        "SUB": launch.tiles,
        # Without a featurizer no row needs its neighbours, and a thread loads 16 bytes at once.
        "ROWS": 1 if num_featurizer_taps == 1 else launch.rows,
        "TILES": cdiv(num_taps - 1, TILE.value) + 1,
        "OPERAND": _operand_dtype(z_BLC.dtype),
        "num_warps": launch.num_warps,
        "num_stages": 1,
    }


def _operand_dtype(dtype):
    # Triton's interpreter would multiply the bit patterns of bf16 as integers.
    if triton.knobs.runtime.interpret:
        return tl.float32
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[
        dtype
    ]


def grid(which, z_BLC, sizes):
    """The launch grid (channels, chunks of the sequence, batch), and the rows of a segment."""
    batch, length, _ = z_BLC.shape
    parts = sizes["D"] // sizes["W"] * cdiv(sizes["W"], sizes["PART"])
    programs = cdiv(parts, sizes["PARTS"])
    segments = TILE.value // sizes["PART"]
    resident = fir_launch(which, sizes["K"], z_BLC.dtype).resident
    segment = fir_segment(batch * programs, cdiv(length, segments), resident)
    return (programs, cdiv(length, segment * segments), batch), segment


@triton.jit
def channels_of(program, D: tl.constexpr, W: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr):
    """The channel of each lane of a [1, PARTS * TILE] tile, its segment, and the channel mask.

    If segments are not side by side, the segment is [1, 1].
    """
    lane = tl.arange(0, PARTS * TILE)
    column = lane % TILE
    segment = tl.zeros((1,), tl.int32)
    if PART < TILE:
        segment = column // PART
        column = column % PART
    if PART == TILE and W % PART == 0:
        channel = program * PARTS * TILE + lane
        inside = channel < D
        if D // (PARTS * TILE) * (PARTS * TILE) == D:
            inside = tl.full((PARTS * TILE,), 1, tl.int1)
    else:
        parts_a_group: tl.constexpr = (W + PART - 1) // PART
        part = program * PARTS + lane // TILE
        within = (part % parts_a_group) * PART + column
        channel = (part // parts_a_group) * W + within
        inside = (within < W) & (channel < D)
    return channel[None, :], segment[None, :], inside[None, :]


@triton.jit
def identity(PARTS: tl.constexpr, dtype: tl.constexpr):
    """An identity matrix for each part."""
    i = tl.arange(0, TILE)
    eye = tl.where(i[:, None] == i[None, :], 1.0, 0.0)[None, :, :]
    return tl.broadcast_to(eye, (PARTS, TILE, TILE)).to(dtype)


@triton.jit
def load_skips(skip, channel, inside, PARTS: tl.constexpr):
    """The skip of each column of the tiles of the parts."""
    skips = tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)
    return tl.reshape(skips, (PARTS, 1, TILE))


@triton.jit
def multiply(x, y, start=None):
    """Tile products for every part, accumulated on `start`; fp32 operands never become TF32."""
    return tl.dot(x, y, start, input_precision="ieee")


@triton.jit
def toeplitz_tiles(
    taps,
    program,
    NUM_GROUPS: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    TILES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    dtype: tl.constexpr,
):
    """Tiles T_0, T_1, ... of each part's group, [PARTS, TILE, TILE].

    They stay in shared memory, from which every block loads them again, unless IN_REGISTERS: the
    result of a product (with the identity) already has the layout of left operands.
    """
    parts_a_group: tl.constexpr = (W + PART - 1) // PART
    # Loaded with two axes: with three, Triton would lay tiles out in shared memory part by part
    # within each row, and every read would have bank conflicts.
    line = tl.arange(0, PARTS * TILE)[:, None]
    group = (program * PARTS + line // TILE) // parts_a_group
    ahead = tl.arange(0, TILE)[None, :] - line % TILE
    tiles = ()
    for m in tl.static_range(TILES):
        lag = m * TILE + ahead
        present = (lag >= 0) & (lag < K) & (group < NUM_GROUPS)
        tile = tl.load(taps + group * K + lag, mask=present, other=0.0).to(dtype)
        tile = tl.reshape(tile, (PARTS, TILE, TILE))
        if not TRANSPOSED:
            tile = tl.permute(tile, (0, 2, 1))
        if IN_REGISTERS:
            tile = multiply(identity(PARTS, dtype), tile).to(dtype)
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def stack(rows, NUM_ROWS: tl.constexpr):
    """Join rows [R, T] into a tile [R * NUM_ROWS, T], without data movement between threads."""
    R: tl.constexpr = rows[0].shape[0]
    T: tl.constexpr = rows[0].shape[1]
    if NUM_ROWS == 1:
        tile = rows[0]
    elif NUM_ROWS == 4:
        joined = tl.join(tl.join(rows[0], rows[2]), tl.join(rows[1], rows[3]))
        tile = tl.permute(tl.reshape(joined, (R, T, 4)), (0, 2, 1))
    else:
        tl.static_assert(NUM_ROWS == 8, "a thread holds 1, 4 or 8 rows")
        even = tl.join(tl.join(rows[0], rows[4]), tl.join(rows[2], rows[6]))
        odd = tl.join(tl.join(rows[1], rows[5]), tl.join(rows[3], rows[7]))
        tile = tl.permute(tl.reshape(tl.join(even, odd), (R, T, 8)), (0, 2, 1))
    return tl.reshape(tile, (R * NUM_ROWS, T))


@triton.jit
def unstack(tile, NUM_ROWS: tl.constexpr):
    """The inverse of `stack`: split a tile [R * NUM_ROWS, T] into a tuple of rows [R, T]."""
    R: tl.constexpr = tile.shape[0] // NUM_ROWS
    T: tl.constexpr = tile.shape[1]
    tile = tl.permute(tl.reshape(tile, (R, NUM_ROWS, T)), (0, 2, 1))
    if NUM_ROWS == 1:
        rows = (tl.reshape(tile, (R, T)),)
    elif NUM_ROWS == 4:
        even, odd = tl.split(tl.reshape(tile, (R, T, 2, 2)))
        row_0, row_2 = tl.split(even)
        row_1, row_3 = tl.split(odd)
        rows = (row_0, row_1, row_2, row_3)
    else:
        tl.static_assert(NUM_ROWS == 8, "a thread holds 1, 4 or 8 rows")
        even, odd = tl.split(tl.reshape(tile, (R, T, 2, 2, 2)))
        rows_04, rows_26 = tl.split(even)
        rows_15, rows_37 = tl.split(odd)
        row_0, row_4 = tl.split(rows_04)
        row_1, row_5 = tl.split(rows_15)
        row_2, row_6 = tl.split(rows_26)
        row_3, row_7 = tl.split(rows_37)
        rows = (row_0, row_1, row_2, row_3, row_4, row_5, row_6, row_7)
    return rows


@triton.jit
def rotation_of(R: tl.constexpr, T: tl.constexpr, RUNS: tl.constexpr, COUNT: tl.constexpr):
    """Initial `carried` and `rotation` of `rows_after` for COUNT rows: zeros, and source lines."""
    LINES: tl.constexpr = 4 if COUNT <= 2 else 8
    AROUND: tl.constexpr = RUNS * LINES
    carried = ()
    if COUNT > 0:
        for _ in tl.static_range(LINES):
            carried = carried + (tl.zeros((R, T), tl.float32),)
    line = tl.arange(0, R * LINES)[:, None]
    source = line - line % AROUND + (line + LINES) % AROUND
    is_last = tl.arange(0, R)[:, None] % RUNS == RUNS - 1
    return carried, (tl.broadcast_to(source, (R * LINES, T)), is_last)


@triton.jit
def rows_after(x, y, carried, rotation, COUNT: tl.constexpr):
    """The COUNT rows of x and y that follow each run of rows: the first rows of the next run.

    One gather across threads rotates the runs of a block by one. The last run of a block thereby
    receives the first rows of its own block, which the last run of the block before needs. Blocks
    come in reverse order, so these rows are the third result, and `carried` in the next call.
    """
    HALF: tl.constexpr = 2 if COUNT <= 2 else 4
    after = ()
    rotated = ()
    if COUNT > 0:
        source, is_last = rotation
        tile = stack(x[:HALF] + y[:HALF], 2 * HALF)
        rotated = unstack(tl.gather(tile, source, axis=0), 2 * HALF)
        for j in tl.static_range(2 * HALF):
            after = after + (tl.where(is_last, carried[j], rotated[j]),)
    return after[:COUNT], after[HALF : HALF + COUNT], rotated


@triton.jit
def to_operands(tile, PARTS: tl.constexpr, SUB: tl.constexpr):
    """A block [SUB * TILE, PARTS * TILE] as SUB operands [PARTS, TILE, TILE], first rows first."""
    # The sum over an axis of size 1 hides the join from Triton, which would take joined tensors for
    # 8-bit data and load both operands of a product in smaller pieces.
    tile = tl.sum(tl.reshape(tile, (1, SUB * TILE, PARTS * TILE)), axis=0)
    x = tl.permute(tl.reshape(tile, (SUB, TILE, PARTS, TILE)), (2, 1, 0, 3))
    if SUB == 1:
        operands = (tl.reshape(x, (PARTS, TILE, TILE)),)
    else:
        tl.static_assert(SUB == 2, "a block has 1 or 2 tiles")
        x = tl.permute(tl.reshape(x, (PARTS, TILE, 2, TILE)), (0, 1, 3, 2))
        first, second = tl.split(x)
        operands = (first, second)
    return operands


@triton.jit
def from_operands(operands, PARTS: tl.constexpr, SUB: tl.constexpr):
    """The inverse of `to_operands`."""
    x = operands[0]
    if SUB > 1:
        x = tl.permute(tl.join(x, operands[1]), (0, 1, 3, 2))
    x = tl.permute(tl.reshape(x, (PARTS, TILE, SUB, TILE)), (2, 1, 0, 3))
    return tl.reshape(x, (SUB * TILE, PARTS * TILE))


@triton.jit
def zero_tiles(COUNT: tl.constexpr, PARTS: tl.constexpr, dtype: tl.constexpr):
    """COUNT zero tiles [PARTS, TILE, TILE]."""
    tensors = ()
    for _ in tl.static_range(COUNT):
        tensors = tensors + (tl.zeros((PARTS, TILE, TILE), dtype),)
    return tensors


@triton.jit
def push(tiles, operand, pending, TILES: tl.constexpr):
    """Multiply TILE rows by all tiles; returns their complete sums, and the pending later ones."""
    if TILES == 1:
        complete = multiply(tiles[0], operand)
    else:
        complete = multiply(tiles[0], operand, pending[0])
    moved = ()
    for m in tl.static_range(1, TILES - 1):
        moved = moved + (multiply(tiles[m], operand, pending[m]),)
    if TILES > 1:
        moved = moved + (multiply(tiles[TILES - 1], operand),)
    return complete, moved


@triton.jit
def gate_input(
    z_x1,
    z_v,
    taps_x1,
    taps_v,
    past,
    first,
    channel,
    inside,
    i: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    PAST_ROWS: tl.constexpr,
):
    """Row `i` of u = x1 * v; rows before 0 are read from the past."""
    u = featurized(z_x1, taps_x1, i, F) * featurized(z_v, taps_v, i, F)
    row = first + i
    if PAST_ROWS > 0:
        present = (row < 0) & (row >= -PAST_ROWS) & inside
        u_past = tl.load(past + (row + PAST_ROWS) * D + channel, mask=present, other=0.0)
        u = tl.where(row < 0, u_past.to(tl.float32), u)
    return u
