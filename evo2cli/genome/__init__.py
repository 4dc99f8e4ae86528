"""Biology in and out: FASTA, VCF, intervals, alphabet. No torch.

Coordinates are 0-based and half-open inside; VCF text is 1-based, at its border only.
"""
