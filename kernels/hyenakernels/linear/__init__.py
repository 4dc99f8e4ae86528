"""The linear layers of a decoding step, fused with the norm before and the sum after them."""
