// Elements, numbers, tables and downloads. Text of a user or a file becomes textContent, never HTML.
"use strict";

/** An element with attributes (`class`, `aria-...`, listeners as functions) and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A number for people: 1,234 or -2.183. */
function shown(value, digits = 3) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return value.toFixed(digits).replace("-", "\u2212");
}

/** A number of things for people: 1 row, 1,200 rows. */
function counted(number, noun) {
  return `${shown(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** A position of a sequence for people: 1-based, from the 0-based one of the data. */
function place(name, position) {
  return `${name}:${(position + 1).toLocaleString("en")}`;
}

/** Let the browser save a file. */
function download(name, content, type = "text/plain") {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** A cell of a TSV, as the commands write it: six decimals, a dot for nothing. */
function cell(value) {
  if (value === null || value === undefined || value === "") return ".";
  if (typeof value === "number" && !Number.isInteger(value)) return value.toFixed(6);
  return String(value).replace(/[\t\r\n]/g, " ");
}

function toTsv(columns, rows) {
  return [columns, ...rows].map((row) => row.map(cell).join("\t")).join("\n") + "\n";
}

/**
 * A table that is sorted by its columns, filtered by text and shown a page at a time.
 *
 * columns: [{ name, title, number }]; rows: arrays of values in the order of the columns.
 * action: { label, run(index) } puts a button at the end of each row, except where has(index) is false.
 */
function table({ caption, columns, rows, file, action = null, size = 50 }) {
  let order = rows.map((_, index) => index);
  let page = 0;
  let sorted = null;
  let ascending = true;
  const body = make("tbody");
  const position = make("span", { "aria-live": "polite" });
  const back = make("button", { type: "button", click: () => turn(-1) }, "Previous");
  const next = make("button", { type: "button", click: () => turn(1) }, "Next");
  const filter = make("input", { type: "search", input: sift });
  const heads = columns.map((column, index) =>
    make("th", { scope: "col", title: column.title, class: column.number ? "number" : null, "aria-sort": "none" },
      make("button", { type: "button", click: () => sortBy(index) }, column.name)));

  function turn(by) {
    page += by;
    show();
  }

  function sift() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    order = rows.map((_, index) => index).filter((index) => {
      const text = rows[index].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    arrange();
  }

  function sortBy(index) {
    ascending = sorted === index ? !ascending : true;
    sorted = index;
    heads.forEach((head, at) => head.setAttribute("aria-sort",
      at !== index ? "none" : ascending ? "ascending" : "descending"));
    arrange();
  }

  function arrange() {
    if (sorted !== null) {
      const sign = ascending ? 1 : -1;
      const missing = (value) => value === null || value === undefined || value === "";
      order.sort((one, other) => {
        const [a, b] = [rows[one][sorted], rows[other][sorted]];
        if (missing(a) || missing(b)) return missing(a) - missing(b) || one - other; // last, both ways
        const difference = typeof a === "number" && typeof b === "number"
          ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
        return sign * difference || one - other;
      });
    } else {
      order.sort((one, other) => one - other);
    }
    page = 0;
    show();
  }

  function show() {
    const pages = Math.max(1, Math.ceil(order.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    body.replaceChildren(...order.slice(page * size, (page + 1) * size).map((index) => {
      const row = rows[index];
      const cells = columns.map((column, at) =>
        make("td", { class: column.number ? "number" : String(row[at]).length > 40 ? "long" : null },
          column.plain ? String(row[at] ?? "") : shown(row[at])));
      if (action) {
        const press = make("button", { type: "button", click: () => action.run(index) }, action.label);
        cells.push(make("td", {}, action.has(index) ? press : null));
      }
      return make("tr", {}, ...cells);
    }));
    back.disabled = page === 0;
    next.disabled = page === pages - 1;
    position.textContent = `${counted(order.length, "row")}, page ${page + 1} of ${pages}`;
  }

  const save = make("button", {
    type: "button",
    click: () => download(file, toTsv(columns.map((column) => column.name), order.map((index) => rows[index])),
      "text/tab-separated-values"),
  }, "Download TSV");
  show();
  return make("div", {},
    make("div", { class: "row" },
      rows.length > size ? make("label", {}, "Filter ", filter) : null, save,
      ...(rows.length > size ? [back, next, position] : [])),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      make("table", {}, make("caption", {}, caption),
        make("thead", {}, make("tr", {}, ...heads, action ? make("td", {}) : null)), body)));
}

/** Pairs of a term and what it is, as a list. */
function facts(pairs) {
  return make("dl", {}, ...pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, shown(value))]));
}
