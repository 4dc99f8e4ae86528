"""Biology in and out: FASTA, VCF, intervals, alphabet. No torch.

Coordinates are 0-based and half-open everywhere inside; VCF and FASTA text is 1-based only at its border.
"""
