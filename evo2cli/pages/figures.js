// Drawings on a canvas: a region with genes, tracks and heat map, and strips of deltas by group.
// Each has a text that says what is under the cursor, moved by pointer or arrow keys, and a PNG.
"use strict";

const BASES = "ACGT";
const NAMES_OF_COLOURS = ["text", "muted", "surface", "raised", "line", "accent", "harmful", "favoured",
  "neutral", "missing", "gene", "track1", "track2"];

/** The colours of style.css, in the theme that is shown. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(NAMES_OF_COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** A colour between two of the form #rrggbb: share 0 is the first, 1 the second. */
function between(first, second, share) {
  const channel = (colour, at) => parseInt(colour.slice(at, at + 2), 16);
  const mixed = [1, 3, 5].map((at) =>
    Math.round(channel(first, at) + (channel(second, at) - channel(first, at)) * share));
  return `rgb(${mixed.join(", ")})`;
}

/** The colour of a delta: red is less likely with ALT, blue more, `limit` the deepest. */
function colourOf(delta, limit, palette) {
  const share = Math.min(1, Math.abs(delta) / limit);
  return between(palette.neutral, delta < 0 ? palette.harmful : palette.favoured, share);
}

/** The value below which a share of the numbers lie; of none it is 0. */
function quantile(numbers, share) {
  const sorted = Float64Array.from(numbers).sort();
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 0;
}

/** Round numbers for the marks of an axis, about `count` of them. */
function marks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high + 1e-9 * step; index += 1) found.push(index * step);
  return found;
}

/**
 * A figure with a canvas that is drawn again when its width or the theme changes.
 *
 * height(width): its height; draw(context, width, palette): draws it; keys: what each key does;
 * point(x, y, width): the pointer is there; drag(pixels, width): it was moved while down.
 * All sizes are CSS pixels. Returns { element, redraw, say }.
 */
function figure({ title, help, file, height, draw, keys, point, drag = null, controls = [] }) {
  const canvas = make("canvas", { tabindex: "0", role: "img", "aria-label": `${title}. ${help}` });
  const readout = make("p", { class: "readout", role: "status" });
  const save = make("button", {
    type: "button",
    click: () => canvas.toBlob((blob) => download(`${file}.png`, blob)),
  }, "Download PNG");
  const element = make("figure", {},
    make("figcaption", {}, title), make("div", { class: "row" }, ...controls, save), canvas, readout);
  let width = 0;

  function redraw() {
    if (width === 0) return;
    const scale = window.devicePixelRatio || 1;
    const tall = height(width);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(tall * scale);
    canvas.style.height = `${tall}px`;
    const context = canvas.getContext("2d");
    const palette = colours();
    context.scale(scale, scale);
    context.fillStyle = palette.surface;
    context.fillRect(0, 0, width, tall);
    context.textBaseline = "middle";
    draw(context, width, palette);
  }

  new ResizeObserver(() => {
    if (canvas.clientWidth === width) return;
    width = canvas.clientWidth;
    redraw();
  }).observe(canvas);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  let pressed = null;
  canvas.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    act(event.shiftKey);
    redraw();
  });
  canvas.addEventListener("pointerdown", (event) => {
    pressed = event.offsetX;
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && pressed !== null) {
      drag(event.offsetX - pressed, width);
      pressed = event.offsetX;
    }
    point(event.offsetX, event.offsetY, width);
    redraw();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { pressed = null; });
  return { element, redraw, say: (text) => { readout.textContent = text; } };
}

const LEFT = 64; // of the plot, for labels
const RIGHT = 10;
const LANE = 24;
const TRACK = 70;
const CELL = 20;
const MIN_COLUMNS = 12; // that are shown at the deepest zoom
const MAX_LANES = 6;

/**
 * Genes, tracks and the heat map of a region, one below the other on one axis.
 *
 * data: {
 *   name, start, end: contig and positions [start, end), 0-based,
 *   bases: a letter for each column ("." if unknown),
 *   step: positions of a column, 1 if missing,
 *   genes: [{ name, strand, spans, exons, coding }], spans as [start, end),
 *   tracks: [{ label, unit, start, values, low, high }],
 *   layers: [{ label, deltas: { A, C, G, T } }], a delta or null for each column,
 * }
 * at: 0-based position where the cursor is at first, or null.
 */
function regionFigure(data, title, file, at = null) {
  const step = data.step ?? 1;
  const length = data.bases.length;
  let [from, to] = [0, length]; // columns that are shown
  let cursor = null;
  let layer = data.layers[0] ?? null;
  const lanes = inLanes(data.genes, data.start, data.end);
  const limits = new Map(data.layers.map((each) => [each, deepest(each)]));

  function deepest({ deltas }) {
    const sizes = [...BASES].flatMap((base) => deltas[base].filter((delta) => delta !== null).map(Math.abs));
    return quantile(sizes, 0.99) || 1;
  }

  const across = (width) => (width - LEFT - RIGHT) / (to - from);
  const position = (column) => data.start + column * step;

  function show(first, columns) {
    const size = Math.min(length, Math.max(Math.min(MIN_COLUMNS, length), columns));
    from = Math.min(Math.max(0, first), length - size);
    to = from + size;
    view.redraw();
  }

  function zoom(factor) {
    const centre = cursor ?? (from + to) / 2;
    const size = (to - from) * factor;
    show(centre - size * (centre - from) / (to - from), size);
  }

  function moveTo(column) {
    cursor = Math.min(Math.max(0, column), length - 1);
    if (cursor < from) show(cursor, to - from);
    if (cursor >= to) show(cursor + 1 - (to - from), to - from);
    view.say(described(cursor));
  }

  const moveBy = (columns) => moveTo(cursor === null ? Math.floor(from) : cursor + columns);

  /** What a column shows, in words. */
  function described(column) {
    const first = position(column);
    const where = step === 1 ? place(data.name, first)
      : `${place(data.name, first)} to ${Math.min(first + step, data.end).toLocaleString("en")}`;
    const parts = [step === 1 ? `${where} ${data.bases[column]}` : where];
    if (layer) {
      const deltas = [...BASES].filter((base) => layer.deltas[base][column] !== null)
        .map((base) => `${base} ${shown(layer.deltas[base][column])}`);
      parts.push(deltas.length ? `${layer.label}: ${deltas.join(", ")} nats` : "no score");
    }
    for (const track of data.tracks) {
      const value = track.values[first - track.start];
      if (value !== undefined) parts.push(`${track.label}: ${shown(value)} ${track.unit}`);
    }
    const genes = data.genes.filter((gene) => covers(gene.spans, first)).map((gene) => {
      const part = covers(gene.coding, first) ? "coding" : covers(gene.exons, first) ? "exon" : "";
      return `${gene.name} (${[gene.strand, part].filter(Boolean).join(" ")})`;
    });
    if (genes.length) parts.push(`genes: ${genes.join(", ")}`);
    return parts.join("; ");
  }

  const heat = () => (layer ? 4 * CELL + 2 * CELL : 0); // letters above, and the scale below
  const height = () => 8 + lanes.length * LANE + data.tracks.length * TRACK + heat() + CELL + 14;

  function draw(context, width, palette) {
    const column = across(width);
    const x = (at) => LEFT + (at - from) * column;
    let top = 6;
    context.font = "12px system-ui, sans-serif";
    for (const lane of lanes) {
      for (const gene of lane.genes) drawGene(context, gene, top, width, palette);
      if (lane.more) {
        context.fillStyle = palette.muted;
        context.textAlign = "left";
        context.fillText(`and ${lane.more} more`, LEFT + 4, top + LANE / 2);
      }
      top += LANE;
    }
    data.tracks.forEach((track, index) => {
      drawTrack(context, track, top, width, palette, palette[`track${(index % 2) + 1}`]);
      top += TRACK;
    });
    if (layer) {
      drawHeat(context, top, width, palette);
      top += 5 * CELL;
    }
    context.fillStyle = palette.text;
    context.textAlign = "center";
    const low = position(from) + 1;
    const high = position(to - 1) + 1;
    if (high > low) {
      for (const mark of marks(low, high, Math.max(1, (width - LEFT) / 130))) {
        if (!Number.isInteger(mark)) continue;
        const at = Math.min(Math.max(x((mark - 1 - data.start) / step) + Math.min(column, 20) / 2, LEFT + 25), width - 34);
        context.fillText(mark.toLocaleString("en"), at, top + CELL / 2);
      }
    }
    top += CELL;
    if (layer) drawScale(context, top, width, palette);
    if (cursor !== null && cursor >= from && cursor < to) {
      context.strokeStyle = palette.text;
      context.strokeRect(x(cursor), 4, Math.max(1, column), top - CELL - 2);
    }
  }

  function drawGene(context, gene, top, width, palette) {
    const column = across(width);
    const box = ([start, end], tall, colour) => {
      const left = Math.max(LEFT, LEFT + ((start - data.start) / step - from) * column);
      const right = Math.min(width - RIGHT, LEFT + ((end - data.start) / step - from) * column);
      if (right <= left) return null;
      context.fillStyle = colour;
      context.fillRect(left, top + (LANE - 8 - tall) / 2 + 8, Math.max(1, right - left), tall);
      return left;
    };
    const lefts = gene.spans.map((span) => box(span, 2, palette.gene)).filter((left) => left !== null);
    gene.exons.forEach((span) => box(span, 6, palette.gene));
    gene.coding.forEach((span) => box(span, 10, palette.gene));
    if (lefts.length) {
      context.fillStyle = palette.text;
      context.textAlign = "left";
      const arrow = { "+": " \u25b8", "-": " \u25c2" }[gene.strand] ?? "";
      context.font = "11px system-ui, sans-serif";
      context.fillText(gene.name + arrow, Math.min(...lefts) + 2, top + 6);
    }
  }

  function drawTrack(context, track, top, width, palette, colour) {
    const column = across(width);
    const tall = TRACK - 22;
    const y = (value) => top + 18 + tall * (1 - (value - track.low) / (track.high - track.low));
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = palette.muted;
    context.textAlign = "left";
    context.fillText(`${track.label}, ${track.unit}`, LEFT + 2, top + 8);
    context.textAlign = "right";
    context.fillText(shown(track.high, 1), LEFT - 5, y(track.high) + 4);
    context.fillText(shown(track.low, 1), LEFT - 5, y(track.low) - 4);
    context.strokeStyle = palette.line;
    context.strokeRect(LEFT, top + 18, width - LEFT - RIGHT, tall);
    context.fillStyle = colour;
    const base = Math.max(track.low, Math.min(0, track.high));
    eachPixel(width, (left, wide, first, last) => {
      // Of several columns in a pixel, the one furthest from 0.
      let far = null;
      for (let at = first; at < last; at += 1) {
        const value = track.values[position(at) - track.start];
        if (value !== undefined && (far === null || Math.abs(value) > Math.abs(far))) far = value;
      }
      if (far === null) return;
      const [high, low] = [y(Math.max(base, far)), y(Math.min(base, far))];
      context.fillRect(left, high, wide, Math.max(1, low - high));
    });
  }

  /** Call for each column that is shown, or for each pixel where columns are narrower. */
  function eachPixel(width, act) {
    const column = across(width);
    if (column >= 1) {
      const gap = column > 4 ? 1 : 0;
      for (let at = Math.floor(from); at < Math.ceil(to); at += 1) {
        const left = Math.max(LEFT, LEFT + (at - from) * column);
        const right = Math.min(width - RIGHT, LEFT + (at + 1 - from) * column - gap);
        if (right > left) act(left, right - left, at, at + 1);
      }
      return;
    }
    for (let pixel = 0; pixel < width - LEFT - RIGHT; pixel += 1) {
      const first = Math.floor(from + pixel / column);
      act(LEFT + pixel, 1, first, Math.min(length, Math.max(first + 1, Math.floor(from + (pixel + 1) / column))));
    }
  }

  function drawHeat(context, top, width, palette) {
    const column = across(width);
    const limit = limits.get(layer);
    context.font = "12px ui-monospace, monospace";
    context.textAlign = "center";
    [...BASES].forEach((base, row) => {
      const y = top + CELL * (row + 1);
      context.fillStyle = palette.text;
      context.fillText(base, LEFT - 14, y + CELL / 2);
      eachPixel(width, (left, wide, first, last) => {
        let far = null;
        let isReference = true; // its cell stays blank
        for (let at = first; at < last; at += 1) {
          const delta = layer.deltas[base][at];
          if (data.bases[at] !== base) isReference = false;
          if (delta !== null && (far === null || Math.abs(delta) > Math.abs(far))) far = delta;
        }
        if (far === null && isReference) return;
        context.fillStyle = far === null ? palette.missing : colourOf(far, limit, palette);
        context.fillRect(left, y, wide, CELL - 1);
      });
    });
    if (column >= 8 && step === 1) {
      context.fillStyle = palette.text;
      for (let at = Math.ceil(from); at < Math.floor(to); at += 1) {
        context.fillText(data.bases[at], LEFT + (at + 0.5 - from) * column, top + CELL / 2);
      }
    }
  }

  function drawScale(context, top, width, palette) {
    const limit = limits.get(layer);
    const wide = Math.min(220, width - LEFT - RIGHT - 120);
    for (let at = 0; at < wide; at += 1) {
      context.fillStyle = colourOf((2 * at / wide - 1) * limit, limit, palette);
      context.fillRect(LEFT + at, top + 4, 1, 10);
    }
    context.fillStyle = palette.text;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    context.fillText(shown(-limit, 2), LEFT - 5, top + 9);
    context.textAlign = "left";
    context.fillText(`${shown(limit, 2)} nats`, LEFT + wide + 5, top + 9);
  }

  const button = (label, act) => make("button", { type: "button", click: act }, label);
  const controls = [
    button("Zoom in", () => zoom(0.5)),
    button("Zoom out", () => zoom(2)),
    button("Left", () => show(from - (to - from) / 2, to - from)),
    button("Right", () => show(from + (to - from) / 2, to - from)),
    button("All", () => show(0, length)),
  ];
  if (data.layers.length > 1) {
    const choice = make("select", {
      change: () => {
        layer = data.layers[Number(choice.value)];
        view.redraw();
        if (cursor !== null) view.say(described(cursor));
      },
    }, ...data.layers.map((each, index) => make("option", { value: index }, each.label)));
    controls.push(make("label", {}, "Heat map of ", choice));
  }
  const view = figure({
    title,
    help: "Arrow keys move the cursor, with Shift by ten; plus and minus zoom.",
    file,
    height,
    draw,
    controls,
    keys: {
      ArrowLeft: (isFar) => moveBy(isFar ? -10 : -1),
      ArrowRight: (isFar) => moveBy(isFar ? 10 : 1),
      Home: () => moveTo(0),
      End: () => moveTo(length - 1),
      "+": () => zoom(0.5),
      "-": () => zoom(2),
    },
    point: (at, _, width) => {
      const column = Math.floor(from + (at - LEFT) / across(width));
      if (at >= LEFT && column >= 0 && column < length) moveTo(column);
    },
    drag: (pixels, width) => show(from - pixels / across(width), to - from),
  });
  if (at !== null) moveTo(Math.floor((at - data.start) / step));
  return view.element;
}

function covers(spans, at) {
  return spans.some(([start, end]) => start <= at && at < end);
}

/** Genes in lanes in which none overlaps another; the last one says how many have no place. */
function inLanes(genes, start, end) {
  const lanes = [];
  for (const gene of genes) {
    const first = Math.max(start, Math.min(...gene.spans.map((span) => span[0])));
    const last = Math.min(end, Math.max(...gene.spans.map((span) => span[1])));
    let lane = lanes.find((each) => each.end <= first);
    if (!lane && lanes.length < MAX_LANES) {
      lane = { genes: [], end: 0, more: 0 };
      lanes.push(lane);
    }
    if (lane) {
      lane.genes.push(gene);
      lane.end = last + (end - start) * 0.06; // room for the name
    } else {
      lanes[MAX_LANES - 1].more += 1;
    }
  }
  for (const lane of lanes.filter(({ more }) => more)) {
    lane.more += lane.genes.length;
    lane.genes = [];
  }
  return lanes;
}

const GROUP = 48;

/**
 * Deltas by group: a strip of dots for each, with a box of the quartiles and a line at the median.
 *
 * groups: [{ name, count, points, quartiles: [lowest, first, median, third, highest] }]
 */
function stripFigure(groups, title, file) {
  let chosen = null;
  const ends = groups.flatMap(({ quartiles }) => [quartiles[0], quartiles[4]]);
  const [low, high] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const room = (high - low) * 0.03 || 1;

  function choose(index) {
    chosen = Math.min(Math.max(0, index), groups.length - 1);
    const { name, count, quartiles } = groups[chosen];
    const [lowest, first, median, third, highest] = quartiles.map((value) => shown(value));
    view.say(`${name}: ${counted(count, "allele")}, median ${median}, ` +
      `quartiles ${first} to ${third}, lowest ${lowest}, highest ${highest} nats`);
  }

  function draw(context, width, palette) {
    const x = (value) => 12 + (value - low + room) / (high - low + 2 * room) * (width - 24);
    const bottom = groups.length * GROUP + 4;
    context.strokeStyle = palette.line;
    context.fillStyle = palette.text;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    for (const mark of marks(low - room, high + room, width / 110)) {
      context.beginPath();
      context.lineWidth = mark === 0 ? 2 : 1;
      context.moveTo(x(mark), 4);
      context.lineTo(x(mark), bottom);
      context.stroke();
      context.fillText(shown(mark, 1), Math.min(Math.max(x(mark), 16), width - 16), bottom + 10);
    }
    context.lineWidth = 1;
    context.fillText("EVO2_DELTA, nats: less likely to the left", width / 2, bottom + 26);
    groups.forEach(({ name, count, points, quartiles }, index) => {
      const top = 4 + index * GROUP;
      const middle = top + 32;
      context.globalAlpha = 0.55;
      points.forEach((delta, at) => {
        context.fillStyle = delta < 0 ? palette.harmful : palette.favoured;
        const shift = ((at * 0.618034) % 1 - 0.5) * 20; // spreads dots evenly, and always the same
        context.fillRect(x(delta) - 1.5, middle + shift - 1.5, 3, 3);
      });
      context.globalAlpha = 1;
      context.strokeStyle = palette.text;
      context.strokeRect(x(quartiles[1]), middle - 12, x(quartiles[3]) - x(quartiles[1]), 24);
      context.fillStyle = palette.text;
      context.fillRect(x(quartiles[2]) - 1.5, middle - 12, 3, 24);
      context.textAlign = "left";
      context.font = `${index === chosen ? "bold " : ""}12px system-ui, sans-serif`;
      const label = `${name} (${count.toLocaleString("en")})`;
      context.fillStyle = palette.surface;
      context.fillRect(10, top + 2, context.measureText(label).width + 6, 15);
      context.fillStyle = palette.text;
      context.fillText(label, 12, top + 10);
    });
  }

  const view = figure({
    title,
    help: "Arrow keys move from group to group.",
    file,
    height: () => groups.length * GROUP + 46,
    draw,
    keys: {
      ArrowDown: () => choose(chosen === null ? 0 : chosen + 1),
      ArrowUp: () => choose(chosen === null ? 0 : chosen - 1),
      Home: () => choose(0),
      End: () => choose(groups.length - 1),
    },
    point: (_, y) => choose(Math.floor((y - 4) / GROUP)),
  });
  return view.element;
}

/** A group of `stripFigure` from all of its deltas. */
function group(name, deltas) {
  const sorted = [...deltas].sort((a, b) => a - b);
  const at = (share) => {
    const index = share * (sorted.length - 1);
    const [low, high] = [sorted[Math.floor(index)], sorted[Math.ceil(index)]];
    return low + (high - low) * (index - Math.floor(index));
  };
  return { name, count: deltas.length, points: deltas, quartiles: [0, 0.25, 0.5, 0.75, 1].map(at) };
}
