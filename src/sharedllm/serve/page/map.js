// The map: one row a chunk, one button a leaf of its tree. Text from documents goes in as text only.
"use strict";

const DocumentMap = (() => {
  const box = () => document.getElementById("map");
  const figures = () => document.getElementById("map-figures");

  function kind(leaf) {
    if (!leaf.slots) return "left-out";
    const stride = (leaf.end - leaf.start) / leaf.slots;
    return stride <= 1 ? "every" : stride <= 6 ? "fine" : "coarse";
  }

  const WORDS = { "left-out": "left out", every: "every token read", fine: "read finely", coarse: "read coarsely" };

  function button(leaf, chunk, show) {
    const made = document.createElement("button");
    made.type = "button";
    made.tabIndex = -1;
    made.className = `leaf ${kind(leaf)}${leaf.chosen && leaf.slots ? " chosen" : ""}`;
    made.style.flexGrow = leaf.end - leaf.start;
    const words = `Chunk ${chunk + 1}, tokens ${leaf.start} to ${leaf.end}, ${WORDS[kind(leaf)]}`;
    made.title = `${words}, ${leaf.slots} slots`;
    made.setAttribute("aria-label", `${words}${leaf.chosen ? ", chosen by the question" : ""}`);
    made.addEventListener("click", () => {
      for (const other of box().querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
      made.setAttribute("aria-current", "true");
      show(leaf.start, leaf.end);
    });
    return made;
  }

  function draw(map, name, show) {
    box().replaceChildren();
    figures().textContent = map.compressed
      ? `${name}: ${map.slots.toLocaleString()} slots stand for ${map.tokens.toLocaleString()} tokens in ${map.chunks.length} chunks.`
      : `${name}: the text of ${map.tokens.toLocaleString()} tokens fits the window, which reads all of it.`;
    map.chunks.forEach((chunk, i) => {
      const row = document.createElement("div");
      row.className = "chunk";
      const whole = { start: chunk.start, end: chunk.start + chunk.tokens, slots: chunk.slots };
      const leaves = chunk.leaves.filter((leaf) => leaf.end > leaf.start);
      for (const leaf of leaves.length ? leaves : [whole]) row.append(button(leaf, i, show));
      box().append(row);
    });
    const first = box().querySelector(".chosen.every") || box().querySelector("button");
    if (first) first.tabIndex = 0;
  }

  function move(event) {
    const rows = [...box().children];
    const at = event.target.closest("button");
    if (!at) return;
    const row = rows.indexOf(at.parentElement), place = [...at.parentElement.children].indexOf(at);
    const steps = { ArrowLeft: at.previousSibling, ArrowRight: at.nextSibling,
      ArrowUp: rows[row - 1] && rows[row - 1].children[Math.min(place, rows[row - 1].children.length - 1)],
      ArrowDown: rows[row + 1] && rows[row + 1].children[Math.min(place, rows[row + 1].children.length - 1)] };
    const to = steps[event.key];
    if (!(event.key in steps)) return;
    event.preventDefault();
    if (!to) return;
    at.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  document.addEventListener("DOMContentLoaded", () => box().addEventListener("keydown", move));
  return { draw };
})();
