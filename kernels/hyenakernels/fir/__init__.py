"""Causal depthwise FIR with grouped taps."""
