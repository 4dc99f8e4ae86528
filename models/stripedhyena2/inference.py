"""The inference methods of `StripedHyena2`: score, embed and generate.

The methods are thin; the work is done by functions of `scoring`, `pooling` and `generation`. These
modules import `StripedHyena2` for type checkers only, because `model` imports this one.

N sequences, L bases of a sequence, D channels of a layer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast, overload

from torch import Tensor

from stripedhyena2.generation import GeneratedSequence, generate_sequences
from stripedhyena2.pooling import embed_sequences
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.scoring import score_sequences

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

Strand = Literal["fwd", "rc", "both"]


class Inference:
    """The methods of `StripedHyena2` that score, embed and generate DNA.

    Sequences are text or ASCII bytes. Letters are upper-cased and U is read as T (not inside a
    lineage tag `|...|`); letters other than A, C, G and T are read as they are. Sequences are
    processed one at a time, so a result does not depend on the rest of the list. Long sequences are
    streamed within the available memory; beyond `config.context`, the model extrapolates.
    """

    @overload
    def score(
        self,
        sequences: Sequence[str | bytes],
        *,
        reduce: Literal["mean", "sum"] = "mean",
        strand: Strand = "fwd",
        max_memory: float | None = None,
        progress: Progress | None = None,
    ) -> list[float]: ...

    @overload
    def score(
        self,
        sequences: Sequence[str | bytes],
        *,
        reduce: Literal["none"],
        strand: Literal["fwd", "rc"] = "fwd",
        max_memory: float | None = None,
        progress: Progress | None = None,
    ) -> list[Tensor]: ...

    def score(
        self,
        sequences: Sequence[str | bytes],
        *,
        reduce: Literal["mean", "sum", "none"] = "mean",
        strand: Strand = "fwd",
        max_memory: float | None = None,
        progress: Progress | None = None,
    ) -> list[float] | list[Tensor]:
        """Log-likelihoods of sequences, in nats.

        The log-likelihood of bases x_1 ... x_L is the sum over t = 2 ... L of
        log P(x_t | x_1 ... x_(t-1)), over the whole vocabulary: the first base is not predicted.

        Args:
            sequences: Sequences of at least 2 bases.
            reduce: "mean": the log-likelihood divided by L - 1; "sum": the log-likelihood; "none":
                its terms.
            strand: "fwd": the sequence as it is; "rc": its reverse complement; "both": the mean of
                the two scores.
            max_memory: Bytes that weights and computation may use on the device; None for what is
                free.
            progress: Called with the number of bases done since the last call.

        Returns:
            A number for each sequence. With "none", a tensor [L - 1] (fp64, on the CPU) of the
            log-probability of each base but the first, in the order in which the strand is read.

        Raises:
            InputError: A sequence is empty, shorter than 2 bases or not ASCII, and the message
                gives its index; an argument is not one of its choices; or the memory does not
                suffice.
            NonFiniteError: A log-likelihood is NaN or infinite.
        """
        return score_sequences(
            cast("StripedHyena2", self),
            sequences,
            reduce=reduce,
            strand=strand,
            max_memory=max_memory,
            progress=progress or ignore_progress,
        )

    @overload
    def embed(
        self,
        sequences: Sequence[str | bytes],
        *,
        layers: str | Sequence[str] | None = None,
        pool: Literal["mean", "last", "max"] = "mean",
        strand: Strand = "fwd",
        max_memory: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]: ...

    @overload
    def embed(
        self,
        sequences: Sequence[str | bytes],
        *,
        layers: str | Sequence[str] | None = None,
        pool: Literal["none"],
        strand: Strand = "fwd",
        max_memory: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, list[Tensor]]: ...

    def embed(
        self,
        sequences: Sequence[str | bytes],
        *,
        layers: str | Sequence[str] | None = None,
        pool: Literal["mean", "last", "max", "none"] = "mean",
        strand: Strand = "fwd",
        max_memory: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Tensor] | dict[str, list[Tensor]]:
        """Embeddings of sequences: outputs of layers, pooled over positions.

        Blocks after the deepest requested layer are not computed.

        Args:
            sequences: Sequences of at least 1 base.
            layers: Names of modules ("blocks.5", "blocks.5.mlp.down", "norm"), also as in the
                released models ("blocks.5.mlp.l3"); block numbers ("5", "-1"); or "all": the
                embedding, each block and the final norm. None is the block at 26/32 of the depth.
            pool: "mean" or "max" over positions, channel by channel; "last": the position that is
                read last, which has seen all others; "none": every position.
            strand: "fwd": the sequence as it is; "rc": its reverse complement; "both": the mean of
                the two vectors.
            max_memory: Bytes that weights and computation may use on the device; None for what is
                free.
            progress: Called with the number of bases done since the last call.

        Returns:
            For each layer, by our name for it, the vectors [N, D] on the CPU, fp32 (fp64 for a fp64
            model). With "none", a list of tensors [L, D], where row i belongs to base i on the
            forward strand whichever strand was read.

        Raises:
            InputError: A sequence is empty or not ASCII, and the message gives its index; the model
                has no such layer; an argument is not one of its choices; or the memory does not
                suffice.
            NonFiniteError: A vector is NaN or infinite.
        """
        return embed_sequences(
            cast("StripedHyena2", self),
            sequences,
            layers=layers,
            pool=pool,
            strand=strand,
            max_memory=max_memory,
            progress=progress or ignore_progress,
        )

    def generate(
        self,
        prompts: str | bytes | Sequence[str | bytes],
        *,
        num_tokens: int = 100,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int = 4,
        top_p: float = 1.0,
        seed: int = 0,
        alphabet: Literal["dna", "any"] = "dna",
        batch_size: int = 16,
        kv_cache: Literal["auto", "fp8"] = "auto",
        progress: Progress | None = None,
    ) -> list[GeneratedSequence]:
        """Continue prompts.

        A sequence depends on the model, the seed, its prompt, its number and the sampling options,
        not on other prompts, their order, `num_samples` or `batch_size` (except that the last bits
        of the logits can differ with the number of rows). It is what `evo2 generate` writes for the
        same prompt, seed and number.

        Args:
            prompts: One prompt or several, each of at least 1 base.
            num_tokens: Bases to generate after each prompt.
            num_samples: Sequences for each prompt.
            temperature: Divides the logits; 0 is greedy.
            top_k: Sample from the k likeliest tokens; 0 means all, 1 is greedy.
            top_p: Sample from the smallest set of likeliest tokens with this total probability.
            seed: Determines the random numbers, together with the prompt and the sample number.
            alphabet: "dna": only A, C, G and T; "any": any token.
            batch_size: Sequences per decoding step; fewer if they do not fit the memory.
            kv_cache: "auto": keys and values in the model's dtype; "fp8": half the memory, and
                slightly different numbers.
            progress: Called with the number of tokens drawn since the last call.

        Returns:
            A list, also for a single prompt: all samples of the first prompt, of the second, ...

        Raises:
            InputError: A prompt is empty or not ASCII, or an argument is out of range.
            NonFiniteError: The logits of a sequence are NaN or infinite.
        """
        return generate_sequences(
            cast("StripedHyena2", self),
            prompts,
            num_tokens=num_tokens,
            num_samples=num_samples,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            alphabet=alphabet,
            batch_size=batch_size,
            kv_cache=kv_cache,
            progress=progress or ignore_progress,
        )
