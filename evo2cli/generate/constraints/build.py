"""Rules and guides from the options of `evo2 generate`."""

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from evo2cli.errors import UserError
from evo2cli.generate.constraints.automaton import ANY, Automaton, base_codes
from evo2cli.generate.constraints.guide import FreeGuide, Guide
from evo2cli.generate.constraints.lookahead import Lookahead
from evo2cli.generate.constraints.patterns import (
    Choice,
    Concatenation,
    Letter,
    Pattern,
    PatternError,
    Repeat,
    base_set,
    parse_pattern,
    reverse_complemented,
)
from evo2cli.generate.constraints.rules import ALL_BASES, GCRange, Rules
from evo2cli.generate.constraints.windows import WindowGuide
from evo2cli.generate.options import (
    FORBID,
    HOMOPOLYMER,
    STOP_CODON,
    STOP_MOTIF,
    Alphabet,
    Frame,
    GenerateOptions,
)
from evo2cli.generate.prompts import Prompt
from evo2cli.genome.alphabet import ACGT

STOP_CODONS = "TAA|TAG|TGA"

MakeGuide = Callable[[Prompt, int], Guide | FreeGuide]


def guides(options: GenerateOptions, prompts: Sequence[Prompt]) -> MakeGuide:
    """Return a function that makes the guide of a sequence from its prompt and the vocabulary size.

    Raises:
        UserError: An option is not valid, or after some prompt no sequence satisfies all rules.
    """
    rules = rules_of(options)
    if options.alphabet is Alphabet.ANY:
        return lambda _, vocabulary: FreeGuide(vocabulary, rules)
    impossible = rules.impossible_window()
    if impossible is not None:
        raise UserError(
            f"--fix and --gc {options.gc} exclude each other in the window that starts at base "
            f"{impossible + 1:,}"
        )
    starts = {prompt: _state_after(prompt, rules, options.stop_codon) for prompt in prompts}
    lookahead = Lookahead(rules, starts.values())
    guide = WindowGuide if rules.gc and rules.gc.window < rules.length else Guide
    for prompt, state in starts.items():
        if not guide(rules, lookahead, state).allowed():
            given = ", ".join(f"--{name}" for name in (*options.constraints, *options.stops))
            raise UserError(
                f"{prompt.name}: no sequence of {options.min_length:,} to {options.tokens:,} bases "
                f"was found that satisfies {given}; relax one of them"
            )
    return lambda prompt, _: guide(rules, lookahead, starts[prompt])


def _state_after(prompt: Prompt, rules: Rules, frame: Frame | None) -> int:
    """The state in which the bases of the prompt leave the automaton."""
    start = Automaton.START if frame is Frame.PROMPT else Automaton.EMPTY
    state = rules.automaton.read(start, base_codes(prompt.bases))
    return state | Automaton.START if frame is Frame.GENERATED else state


def rules_of(options: GenerateOptions) -> Rules:
    """The rules that the options of a run describe.

    Raises:
        UserError: A pattern, a fixed position or a GC range is not valid.
    """
    automaton = Automaton()
    for label, text, pattern in _patterns(options):
        try:
            automaton.add(pattern, label, anchored=label == STOP_CODON)
        except PatternError as error:
            raise UserError(f"--{label} {text}: {error}") from None
    return Rules(
        length=options.tokens,
        min_length=options.min_length,
        ends_at_eod=options.stop_at_eod,
        automaton=automaton,
        forbidden=frozenset((FORBID, HOMOPOLYMER)),
        stops=frozenset((STOP_CODON, STOP_MOTIF)),
        fixed=_fixed_positions(options),
        gc=None if options.gc is None else _gc_range(options.gc, options),
    )


def _patterns(options: GenerateOptions) -> Iterator[tuple[str, str, Pattern]]:
    """Option, value and meaning of every pattern."""
    for text in options.forbid:
        pattern, is_enzyme = _forbidden_pattern(text)
        yield FORBID, text, pattern
        reverse = reverse_complemented(pattern)
        if (is_enzyme or options.both_strands) and reverse != pattern:
            yield FORBID, text, reverse
    if options.max_homopolymer is not None:
        longer = options.max_homopolymer + 1
        runs = tuple(Repeat(Letter(base_set(chr(base))), longer, longer) for base in ACGT)
        yield HOMOPOLYMER, str(options.max_homopolymer), Choice(runs)
    for text in options.stop_motif:
        yield STOP_MOTIF, text, _pattern(STOP_MOTIF, text)
    if options.stop_codon is not None:
        codons = Repeat(Concatenation((Letter(ANY),) * 3), 0, None)
        stop = Concatenation((codons, parse_pattern(STOP_CODONS)))
        yield STOP_CODON, options.stop_codon, stop


def _forbidden_pattern(text: str) -> tuple[Pattern, bool]:
    """A pattern or the site of a restriction enzyme, and whether it is the latter.

    Raises:
        UserError: The text is neither.
    """
    # Biopython defines the enzymes while the module is imported, which takes a moment.
    from Bio.Restriction import AllEnzymes  # type: ignore[attr-defined]

    sites = {str(enzyme).lower(): enzyme.site for enzyme in AllEnzymes}
    site = sites.get(text.lower())
    if site is not None:
        return _pattern(FORBID, site), True
    try:
        return parse_pattern(text), False
    except PatternError as error:
        raise UserError(
            f"--{FORBID} {text}: neither a restriction enzyme of Bio.Restriction nor a pattern: "
            f"{error}"
        ) from None


def _pattern(option: str, text: str) -> Pattern:
    try:
        return parse_pattern(text)
    except PatternError as error:
        raise UserError(f"--{option} {text}: {error}") from None


def _fixed_positions(options: GenerateOptions) -> dict[int, int]:
    """The bases that --fix allows at each position it names."""
    fixed: dict[int, int] = {}
    for text in options.fix:
        match = re.fullmatch(r"([1-9][0-9]*):([A-Za-z]+)", text)
        if match is None or not all(map(base_set, match[2])):
            raise UserError(
                f"--fix {text}: must be a position and bases, such as 10:ACGT; the first generated "
                "base is 1, and IUPAC codes such as N allow several bases"
            )
        start = int(match[1]) - 1
        end = start + len(match[2])
        if end > options.tokens:
            raise UserError(f"--fix {text}: ends at {end:,}, after --tokens {options.tokens:,}")
        for position, letter in enumerate(match[2], start):
            fixed[position] = fixed.get(position, ALL_BASES) & base_set(letter)
            if not fixed[position]:
                raise UserError(
                    f"--fix {text}: another --fix has a different base at position {position + 1:,}"
                )
    return fixed


def _gc_range(text: str, options: GenerateOptions) -> GCRange:
    match = re.fullmatch(r"([01]|0?\.[0-9]+|1\.0+)-([01]|0?\.[0-9]+|1\.0+)", text)
    low, high = map(Fraction, match.groups()) if match else (Fraction(1), Fraction(0))
    if low > high:
        raise UserError(f"--gc {text}: must be two fractions, the lower one first: 0.3-0.65")
    return GCRange(low, high, options.gc_window or options.tokens)
