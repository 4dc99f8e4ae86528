"""Tools for agents by the Model Context Protocol, and the path /mcp; `stdio` is another transport.

Tools, arguments and results have the names of evo2-mcp (https://evo2-mcp.readthedocs.io), with one
model instead of a choice of checkpoints. They run the same jobs as the other paths.

L bases, D channels of a layer.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from fastapi import APIRouter
from fastapi.responses import Response
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from pydantic import BaseModel, Field, ValidationError

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.genome.fasta import read_records
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord, read_vcf
from evo2cli.options import Strand
from evo2cli.score import score_sequences
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import AlleleOptions
from evo2cli.serve.answers import collect, to_json
from evo2cli.serve.engine import Engine, Generation, Served, Task
from evo2cli.serve.native import (
    SEQUENCE,
    Scored,
    genome_of,
    in_order,
    read_variant,
    score_in_pieces,
)
from evo2cli.serve.nim import MODELS, modules_of
from evo2cli.serve.options import ServeOptions
from evo2cli.serve.reading import (
    Fields,
    check_length,
    read_dna,
    sample_requests,
)
from evo2cli.serve.refusal import Refusal, refusal_of
from evo2cli.tables import Row
from stripedhyena2 import Sampler
from stripedhyena2.generation import token_text
from stripedhyena2.layers import default_layer, layer_widths, part_names

MAX_RECORDS = 1000  # of a file that a tool reads
MAX_VALUES = 2**18  # numbers in an embedding, which an agent reads as text

Answer = dict[str, Any]


class ToolArguments(Fields):
    """Arguments of all tools."""

    checkpoint: str | None = Field(
        None, description="A name of list_available_checkpoints; by default the model served."
    )


class ScoreSequence(ToolArguments):
    """Log-likelihood of DNA or RNA under the model, in nats: a sequence, or every record of a file.

    Higher is likelier. 'mean' divides by the number of predicted bases, all but the first.
    """

    sequence: str | None = Field(None, description="DNA or RNA, IUPAC letters.")
    fasta: str | None = Field(None, description="A FASTA file below the server's --mcp-root.")
    reduce_method: Literal["mean", "sum"] = "mean"
    strand: Literal["fwd", "rc", "both"] = "fwd"


class ScoreSnp(ToolArguments):
    """Effect of a single-nucleotide variant: how much less likely the sequence becomes, in nats.

    Either a sequence and the allele that replaces its central base; or a variant, or a VCF file,
    with positions in the server's genome, where insertions and deletions are scored as well.
    Negative: the alternative allele is less likely.
    """

    sequence: str | None = Field(None, description="3 bases or more; the central one varies.")
    alternative_allele: str | None = Field(None, description="A, C, G or T.")
    reduce_method: Literal["mean", "sum"] = Field(
        "mean", description="Of a sequence: over its bases but the first."
    )
    variant: str | None = Field(None, description="chrom-pos-ref-alt, e.g. chr17-43106487-A-C.")
    vcf: str | None = Field(None, description="A VCF or BCF file below the server's --mcp-root.")
    window: int | None = Field(None, ge=2, description="Bases around a variant of the genome.")


class EmbedSequence(ToolArguments):
    """Outputs of a layer for DNA or RNA: a vector for each base, or one vector by pooling."""

    sequence: str
    layer_name: str | None = Field(
        None, description="A name of get_embedding_layers, or of the released models."
    )
    pool: Literal["none", "mean", "last", "max"] = "none"


class GenerateSequence(ToolArguments):
    """Continue DNA by sampling A, C, G and T from the model."""

    prompt: str
    n_tokens: int = Field(100, ge=1, description="Bases to generate.")
    temperature: float = 1.0
    top_k: int = Field(4, description="Sample from the k likeliest; 1 takes the likeliest.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Repeats the same sample.")


class GetEmbeddingLayers(ToolArguments):
    """Names of layers for embed_sequence."""

    which: Literal["recommended", "all"] = "recommended"


class ListAvailableCheckpoints(Fields):
    """The model that this server runs."""


@dataclass(frozen=True)
class _Tool:
    """The arguments of a tool, and the function that runs it."""

    arguments: type[BaseModel]
    run: Callable[[Served, Any], Awaitable[Answer]]


class Tools:
    """The tools.

    Args:
        engine: Runs the model.
        name: Name of the model.
        root: Folder whose files tools may read; None for no files.

    Attributes:
        num_running: Number of calls in progress.

    Raises:
        UserError: `root` is not a folder.
    """

    def __init__(self, engine: Engine, name: str, root: Path | None) -> None:
        if root is not None and not root.is_dir():
            raise UserError(f"--mcp-root {root}: is not a folder; name the folder of your files")
        self.num_running = 0
        self._engine, self._name, self._root = engine, name, root
        self._tools = {
            "score_sequence": _Tool(ScoreSequence, self._score_sequence),
            "score_snp": _Tool(ScoreSnp, self._score_snp),
            "embed_sequence": _Tool(EmbedSequence, self._embed_sequence),
            "generate_sequence": _Tool(GenerateSequence, self._generate_sequence),
            "get_embedding_layers": _Tool(GetEmbeddingLayers, self._get_embedding_layers),
            "list_available_checkpoints": _Tool(ListAvailableCheckpoints, self._list_checkpoints),
        }

    def server(self) -> "Server[Any]":
        """Create a server with the tools, for any transport."""
        # The messages of the SDK may quote a client, so they are not logged.
        logging.getLogger("mcp").addHandler(logging.NullHandler())
        return Server(
            "evo2",
            version=__version__,
            instructions="An Evo 2 genomic language model. Log-likelihoods are in nats.",
            on_list_tools=self._list,
            on_call_tool=self._call,
        )

    async def _list(self, _context: Any, _params: Any) -> types.ListToolsResult:
        tools = []
        for name, tool in self._tools.items():
            schema = tool.arguments.model_json_schema()
            description = " ".join(schema.pop("description").split())
            hints = types.ToolAnnotations(read_only_hint=True, open_world_hint=False)
            tools.append(
                types.Tool(
                    name=name, description=description, input_schema=schema, annotations=hints
                )
            )
        return types.ListToolsResult(tools=tools)

    async def _call(
        self, _context: Any, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        """Run a tool; an error becomes a result of one line."""
        started = time.monotonic()
        result: Answer | None = None
        self.num_running += 1
        try:
            answer = await self._answer(params.name, params.arguments or {})
            text, result = to_json(answer), answer
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = ".".join(map(str, problem["loc"]))
            text = Refusal(422, f"{field}: {problem['msg']}").message
        except Exception as error:
            text = refusal_of(error).message
            if self._root is not None:  # messages have absolute paths
                text = text.replace(f"{self._root.resolve()}/", "")
        finally:
            self.num_running -= 1
        # No text of a client gets into the log.
        name = params.name if params.name in self._tools else "other"
        seconds = time.monotonic() - started
        console.say(f"{name} {'failed' if result is None else 'done'} {1000 * seconds:.0f} ms")
        return types.CallToolResult(
            # An error may quote an argument of several lines.
            content=[types.TextContent(type="text", text=" ".join(text.splitlines()))],
            structured_content=result,
            is_error=result is None,
        )

    async def _answer(self, name: str, given: dict[str, Any]) -> Answer:
        if name not in self._tools:
            raise UserError(f"{name}: not a tool; these are: {', '.join(self._tools)}")
        arguments = self._tools[name].arguments.model_validate(given)
        if getattr(arguments, "checkpoint", None) not in (None, self._name, *MODELS):
            raise UserError(f"checkpoint: this server has {self._name} only; leave it out")
        deadline = self._engine.deadline()
        while self._engine.is_loading and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return await self._tools[name].run(self._engine.require_served(), arguments)

    async def _run(self, work: Callable[[Served], Iterator[Any]]) -> list[Any]:
        return await collect(self._engine, Task(work, self._engine.deadline()))

    def _file(self, name: str) -> Path:
        """Resolve the name of a file that a tool may read.

        Raises:
            UserError: There is no such file below the root, after links are followed.
        """
        if self._root is None:
            raise UserError(f"{name}: this server reads no files; start it with --mcp-root FOLDER")
        root = self._root.resolve()
        with suppress(OSError, RuntimeError, ValueError):  # a cycle of links is a RuntimeError
            path = (root / name).resolve()
            if path.is_relative_to(root) and path.is_file():
                return path
        # The same message in all cases, so that it does not reveal which files exist elsewhere.
        raise UserError(f"{name}: not a file below --mcp-root; name one relative to it")

    async def _score_sequence(self, served: Served, arguments: ScoreSequence) -> Answer:
        _require_one(sequence=arguments.sequence, fasta=arguments.fasta)
        answer: Answer = {"checkpoint": self._name}
        read: Callable[[], Iterator[tuple[str, str]]]
        if arguments.fasta is not None:
            read = partial(_records, served, self._file(arguments.fasta), arguments.fasta)
        else:
            tag, bases = read_dna(served, SEQUENCE, arguments.sequence or "")
            answer["sequence"] = (tag + bases).decode()
            read = partial(iter, [(SEQUENCE, answer["sequence"])])

        def work(served: Served) -> Iterator[Row]:
            for _ in read():
                pass  # an invalid file is refused before anything is scored
            for named in read():
                yield from score_sequences([named], served.model, strand=arguments.strand)

        rows = await self._run(work)
        if arguments.fasta is not None:
            answer |= {f"{column}s": [row[column] for row in rows] for column in ("name", "length")}
        scores = [row[f"{arguments.reduce_method}_logprob"] for row in rows]
        return answer | {"reduce_method": arguments.reduce_method, "scores": scores}

    async def _score_snp(self, served: Served, arguments: ScoreSnp) -> Answer:
        _require_one(sequence=arguments.sequence, variant=arguments.variant, vcf=arguments.vcf)
        if arguments.sequence is not None:
            return await self._score_central_base(served, arguments)
        if arguments.alternative_allele is not None:
            raise UserError("alternative_allele: only with sequence")
        if arguments.window is not None:
            check_length(served, "window", arguments.window)
        options = AlleleOptions(window=arguments.window)
        path = None if arguments.vcf is None else self._file(arguments.vcf)

        def work(served: Served) -> Iterator[Scored]:
            scorer = VariantScorer(served.model, genome_of(served), options, brief=True)
            if path is None:
                records = [read_variant("variant", arguments.variant or "")]
            else:
                records = list(_limited(read_vcf(path).records, arguments.vcf or ""))
            yield from score_in_pieces(scorer, records)

        return {"checkpoint": self._name, "variants": in_order(await self._run(work))}

    async def _score_central_base(self, served: Served, arguments: ScoreSnp) -> Answer:
        """Score the two sequences as `evo2 score` does those of a table, on the forward strand."""
        if arguments.window is not None:
            raise UserError("window: only with variant or vcf")
        tag, bases = read_dna(served, SEQUENCE, arguments.sequence or "")
        if tag or len(bases) < 3:
            raise UserError("sequence: needs 3 bases or more, and no lineage tag")
        allele = (arguments.alternative_allele or "").upper().replace("U", "T")
        middle = len(bases) // 2
        central = chr(bases[middle])
        if allele not in ("A", "C", "G", "T") or allele == central:
            raise UserError(
                f"alternative_allele: must be A, C, G or T, and not {central}, the central base"
            )
        mutated = bases[:middle] + allele.encode() + bases[middle + 1 :]
        record = VariantRecord.from_columns(
            SEQUENCE, middle + 1, central, allele, sequences=(bases, mutated)
        )

        def work(served: Served) -> Iterator[Row]:
            genome, options = Reference.from_sequences({}), AlleleOptions(strand=Strand.FORWARD)
            yield from VariantScorer(served.model, genome, options).score(record)

        (row,) = await self._run(work)
        divisor = len(bases) - 1 if arguments.reduce_method == "mean" else 1
        return {
            "checkpoint": self._name,
            "original_sequence": bases.decode(),
            "mutated_sequence": mutated.decode(),
            "position": middle + 1,
            "reference_allele": central,
            "alternative_allele": allele,
            "reduce_method": arguments.reduce_method,
            "original_score": row["EVO2_REF"] / divisor,
            "mutated_score": row["EVO2_ALT"] / divisor,
            "score_delta": row["EVO2_DELTA"] / divisor,
        }

    async def _embed_sequence(self, served: Served, arguments: EmbedSequence) -> Answer:
        letters = b"".join(read_dna(served, SEQUENCE, arguments.sequence))
        layer = arguments.layer_name or default_layer(served.model.config)

        def work(served: Served) -> Iterator[list[Any]]:
            modules = modules_of(served.model, layer)
            num_values = sum(layer_widths(served.model, modules).values())
            if arguments.pool == "none" and num_values * len(letters) > MAX_VALUES:
                raise Refusal(
                    413,
                    f"the embedding would have {num_values * len(letters):,} numbers, more than "
                    f"{MAX_VALUES:,}; ask for pool 'mean', or for a shorter sequence",
                )
            outputs = served.model.embed([letters], layers=modules, pool=arguments.pool)
            yield torch.cat([outputs[module][0] for module in modules], dim=-1).float().tolist()

        (embedding,) = await self._run(work)
        return {
            "checkpoint": self._name,
            "sequence": letters.decode(),
            "layer_name": layer,
            "pool": arguments.pool,
            "embedding": embedding,
        }

    async def _generate_sequence(self, served: Served, arguments: GenerateSequence) -> Answer:
        seed = secrets.randbits(63) if arguments.seed is None else arguments.seed
        prompts = {"prompt": arguments.prompt}
        requests = sample_requests(served, prompts, 1, arguments.n_tokens, seed)
        sampler = Sampler(arguments.temperature, arguments.top_k, 1.0)
        job = Generation(requests, sampler, self._engine.deadline())
        ((_, sample),) = await collect(self._engine, job)
        return {
            "checkpoint": self._name,
            "prompt": bytes(requests[0].prompt_L.tolist()).decode(),
            "generated_sequence": token_text(sample.ids),
            "n_tokens": len(sample.ids),
            "temperature": arguments.temperature,
            "top_k": arguments.top_k,
            "seed": seed,
        }

    async def _get_embedding_layers(self, served: Served, arguments: GetEmbeddingLayers) -> Answer:
        config = served.model.config
        wants_all = arguments.which == "all"
        return {
            "checkpoint": self._name,
            "layers": part_names(config) if wants_all else [default_layer(config)],
            "info": "The block at 26/32 of the depth is the one that published classifiers and "
            "autoencoders of Evo 2 read. Blocks also have the parts .mixer and .mlp.",
        }

    async def _list_checkpoints(
        self, served: Served, _arguments: ListAvailableCheckpoints
    ) -> Answer:
        config = served.model.config
        description = (
            f"{config.depth} blocks of width {config.width}, trained on windows of "
            f"{config.context:,} bases; sequences may have {served.max_bases:,}"
        )
        return {"result": [{"name": self._name, "description": description}]}


def _require_one(**inputs: str | None) -> None:
    """Check that exactly one of the arguments is given.

    Raises:
        UserError: None is given, or several.
    """
    if sum(value is not None for value in inputs.values()) != 1:
        raise UserError(f"give one of {', '.join(inputs)}")


def _limited(records: Iterator[Any], name: str) -> Iterator[Any]:
    """Yield the records of a file, up to the limit of a call.

    Raises:
        Refusal: There are more.
    """
    for number, record in enumerate(records, start=1):
        if number > MAX_RECORDS:
            raise Refusal(
                413, f"{name}: has more than {MAX_RECORDS:,} records; score it by evo2 score"
            )
        yield record


def _records(served: Served, path: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield names and sequences of a FASTA file."""
    for record in _limited(read_records(path), name):
        check_length(served, f"{name}: record {record.name!r}", len(record.sequence))
        yield record.name, record.sequence.decode()


class _McpResponse(Response):
    """A response written by the SDK, which also reads the request."""

    def __init__(self, manager: StreamableHTTPSessionManager) -> None:
        super().__init__()
        self._manager = manager

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._manager.handle_request(scope, receive, send)


def routes(engine: Engine, name: str, options: ServeOptions) -> APIRouter:
    """The router of the path.

    Raises:
        UserError: --mcp-root is not a folder.
    """
    # Without sessions: every request is complete in itself.
    manager = StreamableHTTPSessionManager(
        Tools(engine, name, options.mcp_root).server(),
        stateless=True,
        max_request_body_size=options.max_body * 2**20,
    )
    router = APIRouter(lifespan=lambda _app: manager.run())

    @router.post("/mcp", include_in_schema=False)  # its schemas are those of the tools
    async def mcp() -> Response:
        """Messages of agents."""
        return _McpResponse(manager)

    return router
