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

// The parts of a leaf that stand in the window word for word.
function quotedIn(leaf, map) {
  const parts = map.quoted.map(({ start, end }) => ({ start: Math.max(start, leaf.start), end: Math.min(end, leaf.end) }));
  return parts.filter(({ start, end }) => start < end);
}

function described(leaf, parts) {
  if (!parts.length) return WORDS[kind(leaf)];
  const whole = parts[0].start === leaf.start && parts[0].end === leaf.end;
  const where = whole ? "all" : `tokens ${parts.map(({ start, end }) => `${start} to ${end}`).join(" and ")}`;
  return `${leaf.slots ? WORDS[kind(leaf)] : "not compressed"}, ${where} quoted word for word`;
}

// A line above a field, over those parts of it that are quoted.
function lines(leaf, parts) {
  const made = element("i", "", { className: "quotes" }), share = (tokens) => `${(100 * tokens) / (leaf.end - leaf.start)}%`;
  for (const { start, end } of parts) {
    const one = element("i");
    one.style.left = share(start - leaf.start);
    one.style.width = share(end - start);
    made.append(one);
  }
  return made;
}

function button(leaf, chunk, map, highest, differs, show) {
  const made = element("button", "", { type: "button", tabIndex: -1, className: "leaf" }), bar = element("i");
  const heat = leaf.attention && highest ? Math.ceil(HEATS * Math.sqrt(leaf.attention / highest)) : 0;
  bar.className = `bar ${kind(leaf)} heat-${heat}`;
  bar.classList.toggle("chosen", isChosen(leaf));
  bar.classList.toggle("differs", differs);
  made.style.flexGrow = leaf.end - leaf.start;
  const parts = quotedIn(leaf, map);
  if (parts.length) made.append(lines(leaf, parts));
  made.append(bar);
  const attended = leaf.attention === null ? "" : `, ${percent(leaf.attention)} of the answer's attention`;
  const words = `Chunk ${chunk + 1}, tokens ${leaf.start} to ${leaf.end}, ${described(leaf, parts)}${attended}`;
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
    row.append(...leavesOf(chunk).map((leaf) => button(leaf, i, map, highest, differs.has(spanOf(leaf)), show)));
    box.append(row);
  });
  const hottest = box.querySelector(".heat-5"), first = hottest ? hottest.parentElement : box.querySelector("button");
  if (first) first.tabIndex = 0;
  box.addEventListener("keydown", move);
  return box;
}

export function counted(map) {
  if (!map.compressed) return `The text of ${count(map.tokens)} tokens fits the window, which reads all of it.`;
  const quoted = map.quoted.reduce((sum, { start, end }) => sum + end - start, 0);
  const also = quoted ? `; ${count(quoted)} of the tokens are quoted word for word` : "";
  return `${count(map.slots)} slots stand for ${count(map.tokens)} tokens in ${count(map.chunks.length)} chunks${also}.`;
}
