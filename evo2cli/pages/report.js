// The page that `evo2 report` writes: shows the data that stands in the element #data.
"use strict";

const NUMBERS = new Set(["pos", "EVO2_DELTA", "EVO2_FWD", "EVO2_RC", "EVO2_PCT", "from", "to", "alleles",
  "lowest", "median", "coding", "lowest coding"]);

function section(id, title, ...content) {
  return make("section", { "aria-labelledby": `${id}-title` },
    make("h2", { id: `${id}-title` }, title), ...content);
}

const rule = (text) => (text ? make("p", { class: "muted" }, text) : null);

/** A choice that shows one of several figures. */
function choice(label, names, draw) {
  const place = make("div");
  const select = make("select", { change: () => place.replaceChildren(draw(Number(select.value))) },
    ...names.map((name, index) => make("option", { value: index }, name)));
  place.append(draw(0));
  return names.length > 1 ? [make("label", {}, `${label} `, select), place] : [place];
}

function listed({ columns, rows }, caption, file) {
  return table({
    caption,
    columns: columns.map((name) => ({ name, number: NUMBERS.has(name), plain: name === "id" })),
    rows,
    file,
  });
}

function show(data) {
  const parts = [make("h1", {}, data.title), facts(data.facts)];
  const scored = data.groupings.filter(({ groups }) => groups.length);
  if (data.regions.length) {
    const names = data.regions.map(({ name, start, end }) => `${name}:${shown(start + 1)}-${shown(end)}`);
    const blank = data.regions[0].step === 1 ? "; reference cells are blank" : "";
    parts.push(section("map", "Every single-nucleotide variant", rule(data.rules.regions),
      ...choice("Region", names, (index) => regionFigure(data.regions[index],
        `${names[index]}; red: less likely with that base${blank}`,
        names[index].replace(/[:,]/g, "_")))));
  }
  if (scored.length) {
    parts.push(section("deltas", "Deltas by group", rule(data.rules.points),
      ...choice("By", scored.map(({ name }) => name), (index) =>
        stripFigure(scored[index].groups, `EVO2_DELTA by ${scored[index].name}`, "deltas"))));
  }
  if (data.genes) {
    parts.push(section("genes", "Genes", rule(data.rules.genes),
      listed(data.genes, "EVO2_DELTA of the alleles in each gene, and in its coding parts, in nats", "genes.tsv")));
  }
  parts.push(section("variants", "Variants", rule(data.rules.table),
    listed(data.table, "EVO2_DELTA in nats; negative: the alternate allele is less likely", "variants.tsv")));
  parts.push(section("statuses", "Statuses", table({
    caption: "Alleles by status",
    columns: [{ name: "status" }, { name: "alleles", number: true }, { name: "meaning" }],
    rows: data.statuses,
    file: "statuses.tsv",
  })));
  document.getElementById("report").append(...parts);
}

show(JSON.parse(document.getElementById("data").textContent));
