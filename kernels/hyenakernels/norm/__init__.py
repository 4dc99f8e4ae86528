"""RMS norm of rows, on its own and fused with the residual addition before it."""
