"""Control tags in training texts: they condition the model, but are not DNA to be predicted.

Phylogenetic tags are enclosed in '|', as in `ACGT|d__Bacteria;p__Bacillota|ACGT`. A text is split
at every '|' and at the ends of documents; a piece that contains '_', ' ' or ';' is a tag, together
with the '|' on either side of it. '@' (between exons or windows) and '#' (between contigs) are tags
of one character.

Source: `mask_control_tags` of Savanna, which decides by the part of a piece inside the window.
"""

import numpy as np
import numpy.typing as npt

from evo2cli.data.documents import END_OF_DOCUMENT, Bytes
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import upper_dna
from evo2cli.genome.fasta import require_letters

Flags = npt.NDArray[np.bool_]

_IN_TAG, _BAR, _END, _MARK = 1, 2, 4, 8
_KIND = np.zeros(256, np.uint8)
_KIND[list(b"_ ;")] = _IN_TAG
_KIND[list(b"|")] = _BAR
_KIND[END_OF_DOCUMENT] = _END
_KIND[list(b"@#")] = _MARK


def find_tags(text: Bytes) -> tuple[Flags, Flags] | None:
    """Locate the tags of a text of one or more documents.

    Args:
        text: Its first and last pieces are assumed to be complete, [T].

    Returns:
        Two masks [T]: the bytes of phylogenetic tags, including their '|'; and the same with every
        '@' and '#' added. None if there are no tags.
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


def read_tag(text: str, origin: str = "--tag") -> bytes:
    """A lineage tag in the form Evo 2 was trained on: upper case, between '|'.

    Args:
        text: The lineage, with or without the '|'.
        origin: Begins the error message.

    Raises:
        UserError: It could be mistaken for bases.
    """
    tag = f"|{text.strip().strip('|').upper()}|"
    masks = find_tags(np.frombuffer(tag.encode(errors="replace"), np.uint8))
    if not tag.isascii() or not tag.isprintable() or masks is None or not masks[0].all():
        raise UserError(
            f"{origin} {text}: not a lineage such as 'd__Bacteria;p__Pseudomonadota;g__Escherichia'"
        )
    return tag.encode()


def split_tag(origin: str, sequence: bytes, tag: bytes = b"") -> tuple[bytes, bytes]:
    """Split a sequence into its lineage tag, which may be empty, and its upper-case DNA.

    Args:
        origin: Begins error messages, e.g. "x.fa: record 'a'".
        sequence: The sequence, which may begin with its own tag.
        tag: The tag of sequences without their own.

    Raises:
        UserError: The rest of the sequence is not DNA or RNA, its tag is not a lineage, or it has
            its own tag although `tag` is given.
    """
    end = sequence.find(b"|", 1) + 1 if sequence.startswith(b"|") else 0
    own_tag, bases = sequence[:end], sequence[end:]
    require_letters(origin, bases, "put it all first, between two |, or remove it")
    if own_tag and tag:
        raise UserError(f"{origin} begins with a lineage tag of its own; leave out --tag")
    if own_tag:
        tag = read_tag(own_tag.decode(errors="replace"), f"{origin}:")
    return tag, upper_dna(bases)
