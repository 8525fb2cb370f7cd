// Documents: uploaded, followed while they are read, chosen, deleted.

import { call, events } from "./server.js";
import { $, attempt, count, duration, element, size } from "./show.js";

const following = new Set();
export const chosen = new Set();
let contexts = [];

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
  await call(`/v1/contexts/${context.id}`, { method: "DELETE" });
  chosen.delete(context.id);
  await list();
  $("files").focus();
}

function item(context) {
  const row = element("li"), name = context.documents.join(", ");
  const box = element("input", "", { type: "checkbox", id: context.id, checked: chosen.has(context.id) });
  box.disabled = context.status !== "ready";
  box.addEventListener("change", () => (box.checked ? chosen.add(context.id) : chosen.delete(context.id)));
  row.append(box, " ", element("label", name, { htmlFor: context.id }), element("p", state(context), { className: "quiet" }));
  if (context.status === "reading") {
    const bar = element("progress", "", { max: context.tokens, value: context.read_tokens });
    bar.setAttribute("aria-label", `reading ${name}`);
    row.append(bar);
  }
  const button = element("button", "Delete", { type: "button", id: `delete-${context.id}` });
  button.setAttribute("aria-label", `delete ${name}`);
  button.addEventListener("click", () => attempt(() => remove(context)));
  row.append(button);
  return row;
}

// Draws the list anew; what had the focus keeps it.
function show() {
  const focused = $("contexts").contains(document.activeElement) ? document.activeElement.id : "";
  $("contexts").replaceChildren(...contexts.map(item));
  if (focused && $(focused)) $(focused).focus();
  if (!contexts.length) $("read").textContent = "Nothing was read yet.";
}

export async function list() {
  contexts = (await (await call("/v1/contexts")).json()).data;
  show();
  for (const context of contexts) if (context.status === "reading") attempt(() => follow(context.id));
}

async function follow(id) {
  if (following.has(id)) return;
  following.add(id);
  try {
    for await (const data of events(await call(`/v1/contexts/${id}/events`))) {
      const now = JSON.parse(data);
      if (now.status === "ready") chosen.add(id);
      if (now.status !== "reading") $("read").textContent = `${now.documents.join(", ")}: ${now.status}.`;
      contexts = contexts.map((context) => (context.id === id ? now : context));
      show();
    }
  } finally {
    following.delete(id);
  }
}

async function upload(files) {
  for (const file of files) {
    const form = new FormData();
    form.append("file", file);
    $("read").textContent = `${file.name}: sent to the server.`;
    await call("/v1/contexts", { method: "POST", body: form });
    await list();
  }
}

$("files").addEventListener("change", () => attempt(async () => {
  await upload([...$("files").files]);
  $("files").value = "";
}));
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") attempt(() => upload([...event.dataTransfer.files]));
  });
}
