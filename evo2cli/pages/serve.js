// The page of `evo2 serve`: asks the paths of the server it came from, and draws the answers.
"use strict";

const AROUND = 30; // positions on either side of a variant
const COLUMNS = ["chrom", "pos", "id", "ref", "alt", "EVO2_DELTA", "EVO2_FWD", "EVO2_RC", "EVO2_PCT", "EVO2_STATUS"];
const find = (id) => document.getElementById(id);
let server = { fields: {}, genes: null, noise: null }; // what /v1/metadata says

/** The JSON of an answer, or an error with the line that the server says. */
async function ask(path, body, signal) {
  const answer = await send(path, body, signal);
  return answer.json();
}

async function send(path, body, signal) {
  const headers = { "content-type": "application/json" };
  if (find("key").value) headers.authorization = `Bearer ${find("key").value}`;
  const how = body === null ? { headers, signal } : { method: "POST", headers, signal, body: JSON.stringify(body) };
  const answer = await fetch(path, how);
  if (answer.ok) return answer;
  if (answer.status === 401) Object.assign(find("access"), { hidden: false, open: true });
  let line = `${answer.status} ${answer.statusText}`;
  try {
    line = (await answer.json()).error.message;
  } catch { /* an answer of something between us and the server */ }
  throw new Error(line);
}

async function introduce() {
  try {
    server = await ask("/v1/metadata", null);
  } catch (error) {
    find("about").textContent = error.message;
    if (!find("access").open) setTimeout(introduce, 2000);
    return;
  }
  const parts = [
    server.id + (server.adapter ? ` with ${server.adapter}` : ""), server.dtype,
    server.reference ? `genome ${server.reference}` : "no genome",
    server.genes === null ? "" : counted(server.genes, "gene"),
    `at most ${counted(server.max_bases, "base")}`,
  ];
  find("about").textContent = parts.filter(Boolean).join(", ");
}

/** What has been pasted: { variants }, { region } or { sequence }. */
function understood(text) {
  const lines = text.split(/\r?\n/).map((line) => line.trim()).filter((line) => line && !line.startsWith("#"));
  if (!lines.length) throw new Error("paste a variant, a region or a sequence");
  if (lines.filter((line) => line.startsWith(">")).length > 1) throw new Error("paste one sequence at a time");
  const bases = lines.filter((line) => !line.startsWith(">")).join("").replace(/\s/g, "");
  if (/^[ACGTUNRYSWKMBDHV]+$/i.test(bases)) return { sequence: bases };
  if (lines.length === 1 && /^\S+:[\d,]+-[\d,]+$/.test(lines[0])) return { region: lines[0] };
  return { variants: lines.map(asVariant) };
}

/** A line of a VCF with tabs, also where a copy has blanks or only the first five columns. */
function asVariant(line) {
  const columns = line.split(/\t| +/);
  if (columns.length < 4) return line;
  while (columns.length < 8) columns.push(".");
  return columns.join("\t");
}

function windowFields() {
  const fields = Object.fromEntries(["windows", "strand", "indel_mode", "on_ref_mismatch"]
    .map((name) => [name, find(name).value]));
  if (find("window").value) fields.window = Number(find("window").value);
  return fields;
}

/** Run the work of a form; its button is off meanwhile, and Stop ends it. */
function connect(name, work) {
  const [form, stop, status] = [find(name), find(`stop-${name}`), find(`${name}-status`)];
  const start = form.querySelector("button.main");
  const say = (text, isError = false) => {
    status.textContent = text;
    status.className = isError ? "error" : "";
  };
  async function run(...given) {
    const controller = new AbortController();
    stop.onclick = () => controller.abort();
    [start.disabled, stop.disabled] = [true, false];
    const started = performance.now();
    try {
      await work(say, controller.signal, ...given);
      say(`Done in ${shown((performance.now() - started) / 1000, 1)} s.`);
    } catch (error) {
      say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
    } finally {
      [start.disabled, stop.disabled] = [false, true];
    }
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  return run;
}

/** Score what is pasted; or with `place`, only add a place below the results that stand there. */
async function score(say, signal, place = null) {
  const [whole, below] = [find("results"), find("place")];
  below.replaceChildren();
  let shownPlace = place;
  let asked = {};
  if (!place) {
    whole.replaceChildren();
    asked = understood(find("asked").value);
    shownPlace = asked;
    if (asked.variants) {
      say("Variants are scored …");
      const { variants } = await ask("/v1/variants", { ...asked, ...windowFields(), percentiles: false }, signal);
      whole.append(...shownVariants(variants, true));
      const isOne = variants.every((row) => row.window_end !== null && row.pos === variants[0].pos);
      shownPlace = isOne ? around(variants[0]) : null;
    } else if (asked.sequence) {
      say("The sequence is scored …");
      const { scores: [row] } = await ask("/v1/score", { sequences: [asked.sequence], strand: "both" }, signal);
      whole.append(facts([["Bases", row.length],
        ["Log-likelihood, mean of both strands, nats", row.sum_logprob], ["per base", row.mean_logprob]]));
    }
  }
  if (shownPlace) below.append(...await shownAt(shownPlace, say, signal));
  if (asked.variants && server.background) {
    say("For percentiles, random variants of the same kinds are scored …");
    const { variants } = await ask("/v1/variants", { ...asked, ...windowFields() }, signal);
    whole.replaceChildren(...shownVariants(variants, true));
  }
}

/** The region around a variant, within its window and so within its contig. */
function around(row) {
  const first = Math.max(row.pos - AROUND, row.window_start + 1);
  const last = Math.min(row.pos + row.ref.length - 1 + AROUND, row.window_end);
  return { region: `${row.chrom}:${first}-${last}`, at: row.pos - 1 };
}

/** The table of variants, what the numbers mean, their strips, and the VCF. */
function shownVariants(variants, hasPlaces = false) {
  const names = COLUMNS.filter((name) => variants.some((row) => name in row));
  const columns = names.map((name) => ({
    name,
    number: name === "pos" || (name.startsWith("EVO2") && name !== "EVO2_STATUS"),
    title: server.fields[name]?.description,
  }));
  const rows = variants.map((row) => names.map((name) => row[name]));
  const found = [
    table({
      caption: "EVO2_DELTA in nats; negative: the alternate allele is less likely",
      columns,
      rows,
      file: "variants.tsv",
      action: hasPlaces ? {
        label: "Around it",
        has: (index) => variants[index].window_end !== null,
        run: (index) => runScore(around(variants[index])),
      } : null,
    }),
    make("div", { class: "row" },
      make("button", { type: "button", click: () => download("variants.vcf", asVcf(variants)) }, "Download VCF")),
  ];
  const { noise } = server;
  if (noise) {
    found.push(make("p", { class: "muted" },
      `Rounding noise of default windows: at most ${noise.largest.toFixed(6)} nats (median ${noise.median.toFixed(6)}, ` +
      `${shown(noise.num_alleles)} random SNVs in ${noise.dtypes.join(" and ")}); NOISE marks deltas that are not larger.`));
  }
  if (names.includes("EVO2_PCT")) found.push(make("p", { class: "muted" }, server.fields.EVO2_PCT.description));
  const kinds = Map.groupBy(variants.filter((row) => row.EVO2_DELTA !== null), kindOf);
  if (hasPlaces && variants.length >= 5 && kinds.size) {
    const groups = [...kinds].map(([kind, members]) => group(kind, members.map((row) => row.EVO2_DELTA)));
    found.push(stripFigure(groups, "Deltas by kind of variant", "deltas"));
  }
  return found;
}

function kindOf({ ref, alt }) {
  if (ref.length !== alt.length) return alt.length > ref.length ? "insertion" : "deletion";
  return ref.length === 1 ? "SNV" : "MNV";
}

function asVcf(variants) {
  const names = Object.keys(server.fields).filter((name) => name in variants[0]);
  const info = names.map((name) => {
    const { type, description } = server.fields[name];
    return `##INFO=<ID=${name},Number=A,Type=${type},Description="${description}">`;
  });
  const contigs = [...new Set(variants.map((row) => row.chrom))].map((name) => `##contig=<ID=${name}>`);
  const lines = variants.map((row) => {
    const values = names.map((name) => `${name}=${cell(row[name])}`).join(";");
    return [row.chrom, row.pos, row.id, row.ref, row.alt, ".", ".", values].join("\t");
  });
  return ["##fileformat=VCFv4.2", ...contigs, `##evo2Model=${server.id}`, ...info,
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO", ...lines, ""].join("\n");
}

/** Tracks, genes and the heat map of a region or a sequence. */
async function shownAt({ at = null, ...place }, say, signal) {
  const data = { genes: [], tracks: [], layers: [] };
  if (place.region && server.genes !== null) data.genes = (await ask("/v1/genes", place, signal)).genes;
  const found = [];
  if (find("wants-tracks").checked) {
    for (const [label, value, strand] of [["log P, forward", "logprob", "fwd"],
      ["log P, reverse", "logprob", "rc"], ["entropy, forward", "entropy", "fwd"],
      ["entropy, reverse", "entropy", "rc"]]) {
      say(`Track: ${label} …`);
      found.push({ label, value, strand, ...await ask("/v1/track", { ...place, value, strand }, signal) });
    }
  }
  let rows = [];
  if (find("wants-heat").checked) {
    say("Every single-nucleotide variant is scored …");
    rows = (await ask("/v1/saturate", { ...place, ...windowFields() }, signal)).variants;
  }
  if (!found.length && !rows.length) return [];
  const first = Math.min(...found.map((track) => track.start), ...rows.slice(0, 1).map((row) => row.pos - 1));
  const last = Math.max(...found.map((track) => track.start + track.values.length), ...rows.slice(-1).map((row) => row.pos));
  data.name = found[0]?.name ?? rows[0].chrom;
  [data.start, data.end] = [first, last];
  const letters = new Array(last - first).fill(".");
  for (const track of found) [...track.bases].forEach((base, at) => { letters[track.start - first + at] = base; });
  for (const row of rows) letters[row.pos - 1 - first] = row.ref;
  data.bases = letters.join("");
  data.tracks = found.map(({ label, value, start, values }) => ({
    label, start, values,
    unit: value === "entropy" ? "bits" : "nats",
    low: value === "entropy" ? 0 : Math.min(-2, ...values),
    high: value === "entropy" ? 2 : 0,
  }));
  data.layers = layersOf(rows, first, letters.length);
  const title = `${data.name}:${shown(first + 1)}-${shown(last)}` +
    (rows.length ? "; red: less likely with that base; reference cells are blank" : "");
  const shownHere = [regionFigure(data, title, `${data.name}_${first + 1}-${last}`, at)];
  const saves = found.map((track) => make("button", {
    type: "button",
    click: () => download(`${track.value}_${track.strand}.bedgraph`, asBedGraph(track)),
  }, `bedGraph: ${track.label}`));
  shownHere.push(make("div", { class: "row" }, ...saves));
  if (rows.length) {
    shownHere.push(make("details", {}, make("summary", {}, "All variants of the region"), ...shownVariants(rows)));
  }
  return shownHere;
}

function layersOf(rows, first, length) {
  if (!rows.length) return [];
  const names = [["both strands", "EVO2_DELTA"], ["forward strand", "EVO2_FWD"], ["reverse strand", "EVO2_RC"]];
  return names.filter(([, name]) => rows.some((row) => row[name] !== null)).map(([label, name]) => {
    const deltas = Object.fromEntries([...BASES].map((base) => [base, new Array(length).fill(null)]));
    for (const row of rows) deltas[row.alt][row.pos - 1 - first] = row[name];
    return { label, deltas };
  });
}

function asBedGraph({ name, start, values }) {
  return values.map((value, at) => `${name}\t${start + at}\t${start + at + 1}\t${value.toFixed(6)}\n`).join("");
}

const LEVELS = [0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]; // where the classes .p0 to .p7 begin; chance is in .p3

/** Bases, coloured by their probability. */
class Colored {
  constructor(row) {
    this.letters = make("p", { class: "bases" });
    this.title = make("h3", {}, row);
    this.element = make("article", {}, this.title, this.letters);
    this.last = null;
  }

  add(base, logprob) {
    const level = LEVELS.findLastIndex((low) => low <= Math.exp(logprob));
    if (this.last?.className !== `p${level}`) {
      this.last = make("span", { class: `p${level}` });
      this.letters.append(this.last);
    }
    this.last.append(base);
  }
}

async function generate(say, signal) {
  const text = (name) => find(name).value.trim();
  const words = (name) => text(name).split(/[\s,]+/).filter(Boolean);
  const asked = { prompt: text("prompt").replace(/\s/g, ""), both_strands: find("both_strands").checked, stream: true };
  for (const name of ["tokens", "num_samples", "seed", "temperature", "top_k", "top_p", "max_homopolymer", "gc_window", "min_length"]) {
    if (text(name)) asked[name] = Number(text(name));
  }
  asked.seed ??= crypto.getRandomValues(new Uint32Array(1))[0]; // one that JavaScript holds exactly
  for (const name of ["gc", "stop_codon"]) if (text(name)) asked[name] = text(name);
  for (const name of ["forbid", "fix", "stop_motif"]) if (text(name)) asked[name] = words(name);
  const generated = find("generated");
  generated.replaceChildren(legend());
  const samples = new Map();
  const done = [];
  say("Bases are generated …");
  for await (const event of events(await send("/v1/generate", asked, signal))) {
    if (event.error) throw new Error(event.error.message);
    const number = event.sample ?? event.sequence.sample;
    if (!samples.has(number)) {
      samples.set(number, new Colored(`Sequence ${number}`));
      generated.append(samples.get(number).element);
    }
    if (event.base) {
      samples.get(number).add(event.base, event.logprob);
    } else {
      done.push(event.sequence);
      finish(samples.get(number), event.sequence);
    }
  }
  done.sort((one, other) => one.sample - other.sample);
  const fasta = done.map((row) => `>${row.name} seed=${row.seed} stop=${row.stop}\n${row.sequence}\n`).join("");
  const lines = done.flatMap((row) => [...row.sequence].map((base, at) =>
    [row.name, at + 1, base, row.logprobs[at], row.drawn_logprobs[at]]));
  generated.append(make("div", { class: "row" },
    make("button", { type: "button", click: () => download("generated.fa", fasta) }, "Download FASTA"),
    make("button", {
      type: "button",
      click: () => download("generated.tsv", toTsv(["name", "position", "base", "logprob", "drawn_logprob"], lines)),
    }, "Download TSV")));
}

function legend() {
  const steps = LEVELS.map((low, level) =>
    make("span", { class: `p${level}` }, `${low}\u2013${LEVELS[level + 1] ?? 1}`));
  return make("p", { class: "legend" }, "Probability of each base under the model: ", ...steps);
}

function finish(view, row) {
  const tracks = [["log P under the model", row.logprobs], ["log P as drawn", row.drawn_logprobs]]
    .map(([label, values]) => ({ label, unit: "nats", start: 0, values, low: Math.min(-2, ...values), high: 0 }));
  view.element.append(
    facts([["Bases", row.sequence.length], ["Mean log P, nats", row.mean_logprob], ["GC", row.gc],
      ["Longest run", row.longest_run], ["Ended by", row.stop], ["Satisfies", row.passed.join(", ")],
      ["Seed", String(row.seed)]]),
    regionFigure(
      { name: row.name, start: 0, end: row.sequence.length, bases: row.sequence, genes: [], tracks, layers: [] },
      `Sequence ${row.sample}, generated bases`, row.name));
}

/** The events of a stream, as objects. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      if (block !== "data: [DONE]") yield JSON.parse(block.slice("data: ".length));
    }
  }
}

const runScore = connect("score", score);
connect("generate", generate);
find("key").addEventListener("change", introduce);
introduce();
