// One map: a row a chunk, a button a leaf of its tree.

import { count, element } from "./show.js";

const WORDS = { "left-out": "left out", every: "every token read", fine: "read finely", coarse: "read coarsely" };
const HEATS = 5, STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

function kind(leaf) {
  if (!leaf.slots) return "left-out";
  const stride = (leaf.end - leaf.start) / leaf.slots;
  return stride <= 1 ? "every" : stride <= 6 ? "fine" : "coarse";
}

export const spanOf = (leaf) => `${leaf.start}-${leaf.end}`;
const leavesOf = (chunk) => chunk.leaves.filter((leaf) => leaf.end > leaf.start);
const isChosen = (leaf) => leaf.chosen && leaf.slots > 0;

// The spans that were chosen in one map and not in another of the same documents.
export function differing(map, other) {
  const chosen = (one) => new Set(one.chunks.flatMap(leavesOf).filter(isChosen).map(spanOf));
  const there = chosen(other);
  return new Set([...chosen(map)].filter((span) => !there.has(span)));
}

// The leaves that the answer attended to most.
export function mostAttended(map, most) {
  const leaves = map.chunks.flatMap(leavesOf).filter((leaf) => leaf.attention > 0);
  return leaves.sort((a, b) => b.attention - a.attention).slice(0, most);
}

function button(leaf, chunk, highest, differs, show) {
  const made = element("button", "", { type: "button", tabIndex: -1 });
  const heat = leaf.attention && highest ? Math.ceil(HEATS * Math.sqrt(leaf.attention / highest)) : 0;
  made.className = `leaf ${kind(leaf)} heat-${heat}`;
  made.classList.toggle("chosen", isChosen(leaf));
  made.classList.toggle("differs", differs);
  made.style.flexGrow = leaf.end - leaf.start;
  const attended = leaf.attention === null ? "" : `, ${percent(leaf.attention)} of the answer's attention`;
  const words = `Chunk ${chunk + 1}, tokens ${leaf.start} to ${leaf.end}, ${WORDS[kind(leaf)]}${attended}`;
  made.title = `${words}, ${leaf.slots} slots`;
  const marks = `${isChosen(leaf) ? ", chosen by the question" : ""}${differs ? ", not by the other question" : ""}`;
  made.setAttribute("aria-label", words + marks);
  made.addEventListener("click", () => show(leaf, made));
  return made;
}

// Arrow keys go from leaf to leaf; the tab key enters and leaves the map as one.
function move(event) {
  const at = event.target.closest("button"), step = STEPS[event.key];
  if (!at || !step) return;
  event.preventDefault();
  const row = step[0] ? at.parentElement[step[0] < 0 ? "previousElementSibling" : "nextElementSibling"] : at.parentElement;
  if (!row) return;
  const place = [...at.parentElement.children].indexOf(at) + step[1];
  const to = row.children[step[0] ? Math.min(place, row.children.length - 1) : place];
  if (!to) return;
  at.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

// Draws a map; `show` hears which leaf was clicked.
export function draw(map, label, differs, show) {
  const box = element("div", "", { className: "map" });
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  const highest = Math.max(0, ...map.chunks.flatMap((chunk) => chunk.leaves.map((leaf) => leaf.attention || 0)));
  map.chunks.forEach((chunk, i) => {
    const row = element("div", "", { className: "chunk" });
    row.append(...leavesOf(chunk).map((leaf) => button(leaf, i, highest, differs.has(spanOf(leaf)), show)));
    box.append(row);
  });
  const first = box.querySelector(".heat-5") || box.querySelector("button");
  if (first) first.tabIndex = 0;
  box.addEventListener("keydown", move);
  return box;
}

export function counted(map) {
  return map.compressed
    ? `${count(map.slots)} slots stand for ${count(map.tokens)} tokens in ${count(map.chunks.length)} chunks.`
    : `The text of ${count(map.tokens)} tokens fits the window, which reads all of it.`;
}
