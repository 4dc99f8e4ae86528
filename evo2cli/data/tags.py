"""Find tags in texts: parts that condition the model, but are not DNA to be predicted.

Phylogenetic tags are enclosed in '|', as in `ACGT|d__Bacteria;p__Bacillota|ACGT`. A text is split
at every '|' and at the ends of documents; a piece that contains '_', ' ' or ';' is a tag, and so
are the '|' on either side of it. '@' (between exons or windows) and '#' (between contigs) are tags
of one character.

Source: `mask_control_tags` of Savanna, which decides by the part of a piece inside the window.
"""

import numpy as np
import numpy.typing as npt

from evo2cli.data.documents import END_OF_DOCUMENT, Bytes

Flags = npt.NDArray[np.bool_]

_IN_TAG, _BAR, _END, _MARK = 1, 2, 4, 8
_KIND = np.zeros(256, np.uint8)
_KIND[list(b"_ ;")] = _IN_TAG
_KIND[list(b"|")] = _BAR
_KIND[END_OF_DOCUMENT] = _END
_KIND[list(b"@#")] = _MARK


def find_tags(text: Bytes) -> tuple[Flags, Flags] | None:
    """The tags of a text of one or more documents; None if it has none.

    Args:
        text: Its first and last pieces are taken to be complete.

    Returns:
        Two masks, [T] each: bytes of phylogenetic tags, including their '|'; and those together
        with every '@' and '#'.
    """
    kinds = _KIND[text]
    if not (kinds & (_IN_TAG | _MARK)).any():
        return None
    is_cut = (kinds & (_BAR | _END)) > 0
    cuts = np.flatnonzero(is_cut)
    piece = np.cumsum(is_cut)  # a cut belongs to the piece after it
    is_tag = np.zeros(len(cuts) + 1, np.bool_)
    is_tag[piece[(kinds & _IN_TAG) > 0]] = True
    tags = is_tag[piece]
    tags[cuts] |= is_tag[:-1]  # ... and to the one before it
    tags[kinds == _END] = False
    return tags, tags | (kinds == _MARK)
