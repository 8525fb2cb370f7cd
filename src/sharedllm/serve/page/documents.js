// Documents: uploaded, followed while they are read, chosen, deleted.

import { drop, droppedInto, forget } from "./kept.js";
import { Broken, call, events } from "./server.js";
import { $, attempt, count, duration, element, fail, size } from "./show.js";

const AGAIN = 2000; // ms until a reading is looked for whose connection was lost
const LOST = "The server does not answer. It is asked again until it does.";
const UNCHOSEN = $("unchosen").textContent;
const awaited = new Set(), lines = new Map();
export const chosen = new Set();
let contexts = [], listed = 0, following = false;
let talk = "", wished = new Set(); // the conversation that is open, and what of its documents is not chosen yet

export function nameOf(id) {
  const context = contexts.find((one) => one.id === id);
  return context ? context.documents.join(", ") : "a deleted document";
}

function state(context) {
  if (context.status === "failed") return `failed: ${context.error}`;
  if (context.status === "ready") {
    return `${count(context.tokens)} tokens, ${size(context.bytes)}, read in ${duration(context.read_seconds)}`;
  }
  const speed = context.tokens_per_second ? `, ${count(Math.round(context.tokens_per_second))} tokens/s` : "";
  const left = context.seconds_left ? `, ${duration(context.seconds_left)} left` : "";
  return `${count(context.read_tokens)} of ${count(context.tokens)} tokens${speed}${left}`;
}

async function remove(context) {
  if (!confirm(`Delete ${context.documents.join(", ")}? It must be read again to be asked.`)) return;
  try {
    await call(`/v1/contexts/${context.id}`, { method: "DELETE" });
    chosen.delete(context.id);
  } finally {
    await list(); // where it was deleted elsewhere, its line goes too
    $("files").focus();
  }
}

function line(id) {
  const row = {
    line: element("li"), box: element("input", "", { type: "checkbox", id }), label: element("label", "", { htmlFor: id }),
    state: element("p", "", { className: "quiet" }), bar: element("progress"), button: element("button", "Delete", { type: "button" }),
  };
  row.box.addEventListener("change", () => {
    row.box.checked ? chosen.add(id) : chosen.delete(id);
    mark();
  });
  row.button.addEventListener("click", () => attempt(() => remove(contexts.find((context) => context.id === id))));
  row.line.append(row.box, " ", row.label, row.state, row.bar, row.button);
  $("contexts").append(row.line);
  lines.set(id, row);
  return row;
}

// Changes the line of a document in place, so that what has the focus keeps it.
function update(context) {
  const row = lines.get(context.id) || line(context.id), name = context.documents.join(", ");
  row.label.textContent = name;
  row.state.textContent = state(context);
  row.box.disabled = context.status !== "ready";
  row.bar.hidden = context.status !== "reading";
  row.bar.max = context.tokens;
  row.bar.value = context.read_tokens;
  row.bar.setAttribute("aria-label", `reading ${name}`);
  row.button.setAttribute("aria-label", `delete ${name}`);
}

// Says how a reading ended that was waited for.
function end(context) {
  if (context.status === "reading" || !awaited.delete(context.id)) return;
  $("read").textContent = `${context.documents.join(", ")}: ${context.status}.`;
}

// Chooses a document that can be asked by now, if the open conversation wants it or it was dropped there; one that failed is
// chosen no more, since no question can have it.
function settle({ id, status }) {
  if (status === "reading") return;
  const here = droppedInto(id) === talk, wanted = wished.delete(id) || here;
  if (here || status === "failed") forget(id);
  if (status === "failed") chosen.delete(id);
  else if (wanted) chosen.add(id);
}

// Ticks what is chosen, and says so where nothing is.
function mark() {
  for (const [id, row] of lines) row.box.checked = chosen.has(id);
  $("unchosen").textContent = chosen.size ? "" : UNCHOSEN; // hidden it would describe the question all the same
}

// Opens a conversation: its documents alone are chosen, each as soon as it can be asked; without any, what is chosen stays.
export function choose(conversation, ids) {
  talk = conversation;
  wished = new Set(ids);
  if (ids) chosen.clear();
  contexts.forEach(settle);
  mark();
}

function show() {
  const here = new Set(contexts.map((context) => context.id));
  for (const [id, row] of lines) {
    if (here.has(id)) continue;
    row.line.remove();
    lines.delete(id);
    chosen.delete(id);
    forget(id);
  }
  contexts.forEach(update);
  contexts.forEach(end);
  contexts.forEach(settle);
  mark();
  if (!contexts.length) $("read").textContent = "Nothing was read yet.";
}

export async function list() {
  const mine = ++listed, told = await (await call("/v1/contexts")).json();
  if (mine !== listed) return; // a later list is on its way, or there
  contexts = told.data;
  show();
  const reading = contexts.filter((context) => context.status === "reading");
  for (const context of reading) awaited.add(context.id);
  if (reading.length) follow().catch((error) => fail(error.message)); // what is shown of a question stays
}

// The list, as soon as the server gives it.
async function listAgain() {
  for (;;) {
    await new Promise((done) => setTimeout(done, AGAIN));
    try {
      await list();
      if ($("read").textContent === LOST) $("read").textContent = "";
      return;
    } catch (error) {
      if (!(error instanceof Broken)) throw error;
      $("read").textContent = LOST;
    }
  }
}

// The list, at once or as soon as the server gives it.
async function listSurely() {
  try {
    await list();
  } catch (error) {
    if (!(error instanceof Broken)) throw error;
    await listAgain();
  }
}

// Hears of all that is being read over one connection: a browser opens few to one server.
async function follow() {
  if (following) return;
  following = true;
  try {
    for await (const data of events(await call("/v1/contexts/events"))) {
      const now = JSON.parse(data);
      if (!lines.has(now.id)) continue; // not listed yet, or deleted meanwhile
      if (now.deleted) {
        await list();
        continue;
      }
      contexts = contexts.map((context) => (context.id === now.id ? now : context));
      update(now);
      end(now);
      settle(now);
      mark();
    }
  } catch (error) {
    if (!(error instanceof Broken)) throw error;
  } finally {
    following = false;
  }
  if (contexts.some((context) => context.status === "reading")) await listAgain();
}

async function send(file, conversation) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Error(`${file.name}: it cannot be read. Choose a file, not a folder, that is still there.`);
  }
  const form = new FormData();
  form.append("file", file);
  const { id } = await (await call("/v1/contexts", { method: "POST", body: form })).json();
  awaited.add(id);
  drop(id, conversation);
}

// Sends files one after another; those that are refused do not keep the others back.
async function upload(files) {
  const wrong = [], conversation = talk;
  for (const file of files) {
    $("read").textContent = `${file.name}: sent to the server.`;
    try {
      await send(file, conversation);
    } catch (error) {
      $("read").textContent = `${file.name}: not taken.`;
      wrong.push(error.message.includes(file.name) ? error.message : `${file.name}: ${error.message}`);
      continue;
    }
    await listSurely().catch((error) => wrong.push(error.message)); // the file was taken all the same
  }
  if (wrong.length) throw new Error(wrong.join("\n"));
}

$("files").addEventListener("change", () => {
  const files = [...$("files").files];
  $("files").value = ""; // so that the same file can be chosen again
  attempt(() => upload(files));
});
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") attempt(() => upload([...event.dataTransfer.files]));
  });
}
