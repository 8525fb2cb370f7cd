// The maps beside a conversation: of one of its questions, or of two, compared; and the passage of a leaf.

import { nameOf } from "./documents.js";
import { counted, differing, draw, mostAttended, percent, spanOf } from "./map.js";
import { call, post } from "./server.js";
import { $, attempt, count, duration, element, size } from "./show.js";

const MOST = 5, NONE = "none";
let talk = { messages: [] }, asked = 0, opened = 0, searching = new AbortController();

const questions = () => talk.messages.flatMap((message, i) => (message.role === "user" ? [i] : []));

function option(i) {
  return element("option", talk.messages[i].content.slice(0, 60), { value: String(i) });
}

// What may be mapped of a conversation; the newest question is.
export function offer(conversation) {
  talk = conversation;
  const newest = questions().at(-1);
  $("mapped").replaceChildren(...questions().map(option));
  $("against").replaceChildren(element("option", "nothing", { value: NONE }), ...questions().map(option));
  $("mapped").value = String(newest);
  $("against").value = NONE;
  return newest === undefined ? clear("Ask a question to see what is read for it.") : show();
}

function clear(sentence) {
  asked += 1;
  opened += 1;
  searching.abort();
  searching = new AbortController();
  $("maps").replaceChildren(element("p", sentence, { className: "quiet" }));
  $("found").textContent = sentence;
  $("differ").textContent = "";
  $("passage-part").hidden = true;
}

async function mapOf(i, signal) {
  const messages = talk.messages.slice(0, i + 1).map(({ role, content }) => ({ role, content }));
  const answer = talk.messages[i + 1] ? talk.messages[i + 1].content : "";
  const body = { context: talk.messages[i].contexts || [], messages, answer };
  const map = await (await post("/v1/map", body, { signal })).json();
  return { ...map, question: talk.messages[i].content };
}

async function show() {
  const wanted = [$("mapped").value, $("against").value].filter((i) => i !== NONE).map(Number);
  clear("Searching …");
  const mine = asked;
  let maps;
  try {
    maps = await Promise.all(wanted.map((i) => mapOf(i, searching.signal)));
  } catch (error) {
    if (mine === asked) clear(error.message);
    return;
  }
  if (mine !== asked) return; // another question was chosen meanwhile
  const [one, other] = maps, apart = other ? incomparable(one, other) : "";
  const same = other && !apart, differs = same ? [differing(one, other), differing(other, one)] : [new Set(), new Set()];
  $("maps").replaceChildren(...maps.map((map, i) => section(map, differs[i])));
  $("found").textContent = maps.map(counted).join(" ");
  $("differ").textContent = apart;
  if (!same) return;
  const chunks = one.chunks.filter((chunk) => chunk.leaves.some((leaf) => differs[0].has(spanOf(leaf))));
  $("differ").textContent = `The two questions chose different passages in ${count(chunks.length)} of ${count(one.chunks.length)} chunks.`;
}

// What comes first in a map; behind it there may be messages of the conversation that were too old for the window.
const documentsOf = (map) => map.parts.map((part) => part.context).filter(Boolean);

// Why two maps have nothing to compare; "" where they have.
function incomparable(one, other) {
  const alike = documentsOf(one).join() === documentsOf(other).join();
  if (!alike) return "The two questions are about different documents: their maps are not compared.";
  if (one.compressed && other.compressed) return "";
  return "A text that fits the window is read whole, whatever is asked: the maps are not compared.";
}

function section(map, differs) {
  const made = element("section", "", { className: "drawn" });
  made.append(element("h3", map.question), element("p", counted(map)));
  if (!map.compressed) return made;
  made.append(element("p", against(map), { className: "quiet" }));
  const open = (leaf, at) => attempt(() => passage(map, leaf, at));
  if (map.attention !== null) {
    made.append(element("p", "Of this text the answer attended most to:"));
    made.append(attended(map, open));
  }
  made.append(draw(map, `Map for: ${map.question}`, differs, open));
  return made;
}

// Memory and time beside those of full attention.
function against(map) {
  const read = map.parts.reduce((sum, part) => sum + (part.read_seconds || 0), 0), full = map.full_attention;
  const memory = `Attends to ${size(map.attended_bytes)} out of ${size(map.kept_bytes)} kept; full attention would keep ${size(full.bytes)}.`;
  if (!read || !full.seconds_at_least) return memory;
  return `${memory} Read once in ${duration(read)}; the whole model would take at least ${duration(full.seconds_at_least)}.`;
}

function attended(map, open) {
  const made = element("ol", "", { className: "attended" });
  for (const leaf of mostAttended(map, MOST)) {
    const button = element("button", `tokens ${count(leaf.start)} to ${count(leaf.end)}: ${percent(leaf.attention)}`, { type: "button" });
    button.addEventListener("click", () => open(leaf, button));
    const row = element("li");
    row.append(button);
    made.append(row);
  }
  return made;
}

async function passage(map, leaf, at) {
  const mine = ++opened;
  let before = 0, part;
  for (part of map.parts) {
    if (leaf.start < before + part.tokens) break;
    before += part.tokens;
  }
  for (const other of $("maps").querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
  at.setAttribute("aria-current", "true");
  let text = "This passage is in the conversation itself.";
  if (part.context) {
    const place = `start=${leaf.start - before}&end=${leaf.end - before}`;
    text = (await (await call(`/v1/contexts/${part.context}/text?${place}`)).json()).text;
    if (mine !== opened) return; // another passage or question was chosen meanwhile
  }
  $("passage-title").textContent = part.context ? `Passage of ${nameOf(part.context)}` : "Passage";
  $("passage").textContent = text;
  $("passage-part").hidden = false;
  $("passage").focus({ preventScroll: true });
  $("passage-part").scrollIntoView({ block: "nearest" });
}

for (const id of ["mapped", "against"]) $(id).addEventListener("change", () => show());
