"""FP8 quantization, with a scale per tensor or per row, and matrix products with FP8 weights."""
