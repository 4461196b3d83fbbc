/* What the page can do beyond showing: sort, filter, search, recolour. It reads and moves what is
   there, and writes text only as text. Without it the page shows the same numbers and words. */
"use strict";

const all = (query, under = document) => [...under.querySelectorAll(query)];
const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
const holds = (text, wanted) => wanted.every((word) => text.toLowerCase().includes(word));

/* A table's rows as they came: which body each is in, and which have a number. */
function sortable(box) {
  const table = box.querySelector("table");
  const rows = all("tbody tr", table).map((row) => ({ row, body: row.parentNode }));
  const heads = all("thead tr:last-child th", table);

  function value(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.matches("[data-value], [title]") ? null : cell.textContent;
  }

  function compare(column, sign) {
    return (a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
    };
  }

  /* All rows in the first body, without the families' headings. */
  function sort(column, direction) {
    const [first] = table.tBodies;
    const found = rows.map(({ row }) => row).filter((row) => !row.matches(".family"));
    first.append(...found.sort(compare(column, direction === "descending" ? -1 : 1)));
  }

  function restore() {
    rows.forEach(({ row, body }) => body.append(row));
  }

  function click(head, column) {
    const better = Number(head.dataset.better) > 0;
    const order = better ? ["descending", "ascending"] : ["ascending", "descending"];
    const next = order[order.indexOf(head.getAttribute("aria-sort")) + 1];
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    table.classList.toggle("sorted", next !== undefined);
    restore();
    if (next === undefined) return;
    head.setAttribute("aria-sort", next);
    sort(column, next);
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => click(head, column));
    head.append(button);
  });

  const input = box.querySelector("[data-filter]");
  input.addEventListener("input", () => {
    const wanted = words(input.value);
    const named = rows.map(({ row }) => row).filter((row) => row.dataset.find !== undefined);
    named.forEach((row) => { row.hidden = !holds(row.dataset.find, wanted); });
    all("tbody tr.family", table).forEach((row) => {
      row.hidden = rows.every((x) => x.row === row || x.body !== row.parentNode || x.row.hidden);
    });
    const shown = named.filter((row) => !row.hidden).length;
    box.querySelector("output").value = wanted.length ? `${shown} of ${named.length} rows` : "";
  });
}

/* Prompts whose text, or any of whose responses, holds every word; the words are marked. */
function searchable(section) {
  const input = section.querySelector("[data-search]");
  const samples = all("details.sample", section);
  input.addEventListener("input", () => {
    const wanted = words(input.value);
    const hits = samples.filter((sample) => holds(sample.textContent, wanted));
    samples.forEach((sample) => { sample.hidden = !hits.includes(sample); });
    if (wanted.length) hits.forEach((sample) => { sample.open = true; });
    const said = `${hits.length} of ${samples.length} prompts`;
    section.querySelector("output").value = wanted.length ? said : "";
    mark(hits, wanted);
  });
}

function mark(samples, wanted) {
  if (!window.Highlight) return;
  const ranges = samples.flatMap((sample) => ranges_of(sample, wanted));
  CSS.highlights.set("found", new Highlight(...ranges));
}

function ranges_of(sample, wanted) {
  const walk = document.createTreeWalker(sample, NodeFilter.SHOW_TEXT);
  const ranges = [];
  while (walk.nextNode()) {
    const text = walk.currentNode.data.toLowerCase();
    /* Where lower case is longer than the text itself, its places are not the text's. */
    if (text.length !== walk.currentNode.length) continue;
    for (const word of wanted) {
      for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + word.length)) {
        const range = document.createRange();
        range.setStart(walk.currentNode, at);
        range.setEnd(walk.currentNode, at + word.length);
        ranges.push(range);
      }
    }
  }
  return ranges;
}

/* The boxes hide and show by the style sheet alone; this chooses many at once, and gives those
   shown colours as different as there are. */
function choosable(panel) {
  const boxes = all("input[type=checkbox]", panel);
  const key = (box) => box.id.replace("show-", "--");
  const free = boxes.filter((box) => box.dataset.colour === "free");
  const colours = [1, 2, 3, 4, 5].map((place) => `var(--s${place})`);
  const chosen = { all: () => true, first: (box) => box.defaultChecked, none: () => false };

  function recolour() {
    const shown = free.filter((box) => box.checked);
    shown.forEach((box, i) => document.body.style.setProperty(key(box), colours[i % 5]));
    const count = boxes.filter((box) => box.checked).length;
    panel.querySelector("output").value = `: ${count} of ${boxes.length}`;
  }

  all("[data-show]", panel).forEach((button) => button.addEventListener("click", () => {
    boxes.forEach((box) => { box.checked = chosen[button.dataset.show](box); });
    recolour();
  }));
  panel.addEventListener("change", recolour);
  recolour();
}

all(".tools").forEach((part) => { part.hidden = false; });
all(".sortable").forEach(sortable);
all("#samples").forEach(searchable);
all("#models").forEach(choosable);
