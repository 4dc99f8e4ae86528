"""A drop-in replacement for the class `Evo2` of the reference package `evo2`.

    from evo2cli.compat import Evo2  # instead of: from evo2 import Evo2

    model = Evo2("evo2_7b")
    scores = model.score_sequences(["ACGTACGT"])

Names, arguments and results are those of evo2 0.6.0; the numbers differ where the reference is
known to be wrong:

- Scores do not depend on `batch_size`. The reference adds log P(padding) to the score of a sequence
  that is shorter than others in its batch.
- Log-softmax runs in fp32 instead of bf16.
- Generation is right for prompts shorter than 6 tokens, and NaN logits are an error.
- A sequence without a prediction (one base, no BOS) is an error instead of NaN or 0.
- The model also runs on CPUs, in fp32; on GPUs it runs in bf16 like the reference.

As in the reference, letters are not upper-cased: `a` and `A` are different tokens. New scripts are
better served by `stripedhyena2.load` and its `score`, `embed` and `generate` (docs/python.md).

B batch, L tokens, n generated tokens, D channels, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from evo2cli.models import open_model
from evo2cli.options import ModelOptions
from stripedhyena2 import InputError, Request, Sampler, Uniforms, generate
from stripedhyena2.checkpoint.published import PUBLISHED
from stripedhyena2.dna import check_sequences, reverse_complement
from stripedhyena2.errors import check_choice, check_count
from stripedhyena2.layers import find_module, listening
from stripedhyena2.operators import Attention, Hyena
from stripedhyena2.scoring import mean_logprob, sequence_logprob


class CharLevelTokenizer:
    """A byte-level tokenizer: token ids are the UTF-8 bytes of a text.

    Attributes:
        vocab_size: Number of token ids. Ids from 256 on are no bytes, but can be sampled.
        eod: Id of the end-of-document token.
        eos: The same.
        pad: Id of the padding token.
    """

    vocab_size = 512
    eod = eos = 0
    pad = 1

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(text.encode())

    def detokenize(self, token_ids: Sequence[int] | Tensor) -> str:
        """Text of tokens: each is the character of its id; ids below 32 become a space."""
        return "".join(chr(max(int(token), ord(" "))) for token in token_ids)


@dataclass(frozen=True)
class GenerationOutput:
    """The result of `Evo2.generate`.

    Attributes:
        sequences: The generated part of each prompt.
        logits: Logits [B, n, V] of the generated tokens, fp32 on the CPU, one tensor for each
            batch: all prompts if they are equally long, otherwise one tensor for each prompt.
        logprobs_mean: Mean log-probability of the tokens of each prompt, in nats, under the model's
            own distribution: no temperature, no top-k.
    """

    sequences: list[str]
    logits: list[Tensor]
    logprobs_mean: list[float]


class Evo2:
    """A model with the interface of `evo2.Evo2`.

    Args:
        model_name: A published name such as "evo2_7b"; also "nano", or a checkpoint that
            `stripedhyena2.load` takes.
        local_path: Load the weights from this file or folder. `model_name` then gives the shape of
            a released file, if it is a published name; otherwise a yml beside the file does.
        use_kernels: Ignored: kernels always run on GPUs.

    Attributes:
        model: The `stripedhyena2.StripedHyena2`. Called directly, it returns the logits alone.
        tokenizer: The tokenizer.
    """

    def __init__(
        self,
        model_name: str = "evo2_7b",
        local_path: str | None = None,
        use_kernels: bool = False,  # noqa: ARG002 - part of the interface
    ) -> None:
        config = None
        if local_path is not None and model_name in PUBLISHED and Path(local_path).is_file():
            config = Path(model_name)
        self.model = open_model(
            ModelOptions(model=local_path or model_name, config=config)
        ).requires_grad_(False)
        self.model.checks_ids = True  # a script may pass any ids
        self.tokenizer = CharLevelTokenizer()

    @property
    def device(self) -> torch.device:
        """The device of the embedding, which token ids are moved to."""
        return self.model.embedding.weight.device

    def __call__(
        self,
        input_ids: Tensor,
        return_embeddings: bool = False,
        layer_names: Sequence[str] | None = None,
    ) -> tuple[tuple[Tensor, None], dict[str, Tensor] | None]:
        """As `forward`."""
        return self.forward(input_ids, return_embeddings, layer_names)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        return_embeddings: bool = False,
        layer_names: Sequence[str] | None = None,
    ) -> tuple[tuple[Tensor, None], dict[str, Tensor] | None]:
        """Compute logits, and optionally the outputs of layers.

        Args:
            input_ids: Token ids [B, L], of any integer dtype and on any device.
            return_embeddings: Whether to return the outputs of layers.
            layer_names: Modules by the names of the reference ("blocks.26", "blocks.26.mlp.l3",
                "blocks.3.inner_mha_cls", "norm", "unembed", ...) or by ours.

        Returns:
            A pair (outputs, embeddings). `outputs[0]` are the logits [B, L, 512], in fp32;
            `outputs[1]`, where the reference has its inference state, is None. Embeddings are the
            outputs [B, L, D] of the layers, by the names that were given, or None.

        Raises:
            InputError: The model has no such layer; or `return_embeddings` comes without
                `layer_names` (what the reference does then is not documented).
        """
        ids_BL = input_ids.to(self.device, torch.int64)
        if not return_embeddings:
            return (self.model(ids_BL), None), None
        if not layer_names:
            raise InputError("return_embeddings=True needs layer_names, e.g. ['blocks.26.mlp.l3']")
        embeddings: dict[str, Tensor] = {}

        def keep(name: str, arrange: Callable[[Tensor], Tensor], output: Tensor) -> None:
            embeddings[name] = arrange(output)

        modules = {name: self._module(name) for name in layer_names if name != "unembed"}
        with listening(
            (self.model.get_submodule(module), partial(keep, name, arrange))
            for name, (module, arrange) in modules.items()
        ):
            logits_BLV = self.model(ids_BL)
        if "unembed" in layer_names:
            embeddings["unembed"] = logits_BLV
        return (logits_BLV, None), {name: embeddings[name] for name in layer_names}

    def _module(self, name: str) -> tuple[str, Callable[[Tensor], Tensor]]:
        """Map a module of the reference to ours, and a function that reorders its channels."""
        index, _, part = name.removeprefix("blocks.").partition(".")
        ours = f"blocks.{index}.mixer"
        mixers = {f"blocks.{i}.mixer": block.mixer for i, block in enumerate(self.model.blocks)}
        if part == "projections" and isinstance(mixers.get(ours), Hyena):
            # Ours concatenates all channels of x2, x1 and v; the reference interleaves them.
            return (
                f"{ours}.project_in",
                lambda x: x.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2),
            )
        if part == "inner_mha_cls" and isinstance(mixers.get(ours), Attention):
            return ours, lambda x: x
        if part == "inner_mha_cls.Wqkv" and isinstance(mixers.get(ours), Attention):
            return f"{ours}.project_in", lambda x: x
        return find_module(self.model, name), lambda x: x

    def score_sequences(
        self,
        seqs: Sequence[str],
        batch_size: int = 1,  # noqa: ARG002 - part of the interface
        prepend_bos: bool = False,
        reduce_method: str = "mean",
        average_reverse_complement: bool = False,
    ) -> list[float]:
        """Log-likelihoods of sequences, in nats.

        Args:
            seqs: Sequences; letters are scored as they are, lower case as lower case.
            batch_size: Ignored: sequences are read one at a time.
            prepend_bos: Prepend token 0, so that the first base is predicted, too.
            reduce_method: "mean" over the predicted tokens, or "sum".
            average_reverse_complement: Return the mean of the scores of both strands.

        Raises:
            InputError: A sequence is empty or not ASCII, or has nothing to predict.
            NonFiniteError: A log-likelihood is NaN or infinite.
        """
        check_choice("reduce_method", reduce_method, ("mean", "sum"))
        bos = bytes([self.tokenizer.eod]) if prepend_bos else b""
        scores = []
        for index, sequence in enumerate(check_sequences(seqs, min_length=2 - len(bos))):
            reads = [bos + sequence]
            if average_reverse_complement:
                reads.append(bos + reverse_complement(sequence))
            total = partial(sequence_logprob, self.model)
            score = mean_logprob(self.model, reads, f"sequence {index}", total)
            num_predicted = len(reads[0]) - 1
            scores.append(score / (num_predicted if reduce_method == "mean" else 1))
        return scores

    def generate(
        self,
        prompt_seqs: Sequence[str],
        n_tokens: int = 500,
        temperature: float = 1.0,
        top_k: int = 4,
        top_p: float = 1.0,
        batched: bool = True,
        cached_generation: bool = True,  # noqa: ARG002 - part of the interface
        verbose: int = 1,  # noqa: ARG002 - part of the interface
        force_prompt_threshold: int | None = None,  # noqa: ARG002 - part of the interface
    ) -> GenerationOutput:
        """Continue prompts by `n_tokens` tokens each; any token may be sampled.

        Random numbers are seeded from torch's global generator, so `torch.manual_seed` makes a call
        reproducible; they differ from those of the reference.

        Args:
            prompt_seqs: Prompts; their lengths may differ. Letters are read as they are.
            n_tokens: Tokens to generate for each prompt.
            temperature: Divides the logits; 0 is greedy.
            top_k: Sample from the k likeliest tokens; 0 means all, 1 is greedy.
            top_p: Sample from the smallest set of likeliest tokens with this total probability; 0
                or less, and 1 or more, mean all.
            batched: Whether to decode sequences in batches.
            cached_generation: Ignored: decoding always uses a cache, which changes no result.
            verbose: Ignored: nothing is printed.
            force_prompt_threshold: Ignored: long prompts are read in chunks, which changes no
                result.

        Raises:
            InputError: A prompt is empty or not ASCII, or an argument is out of range.
            NonFiniteError: The logits of a sequence are NaN or infinite.
        """
        check_count("n_tokens", n_tokens)
        sampler = Sampler(temperature, top_k, top_p if 0 < top_p < 1 else 1.0)
        seed = int(torch.randint(2**62, ()))
        prompts = check_sequences(prompt_seqs, what="prompt")
        requests = [
            Request(torch.tensor(list(prompt)), n_tokens, Uniforms(seed, index))
            for index, prompt in enumerate(prompts)
        ]
        batch_size = 16 if batched else 1
        samples = list(
            generate(self.model, requests, sampler, batch_size=batch_size, keep_logits=True)
        )
        logits = [torch.stack(sample.logits)[None].float() for sample in samples]
        if batched and len({len(prompt) for prompt in prompts}) == 1:
            logits = [torch.cat(logits)]
        return GenerationOutput(
            sequences=[self.tokenizer.detokenize(sample.ids) for sample in samples],
            logits=logits,
            logprobs_mean=[fmean(sample.logprobs) for sample in samples],
        )
