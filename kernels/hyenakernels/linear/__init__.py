"""The linear layers of a decoding step, fused with norm, activation, gate, bias and residual."""
