// The page: documents, questions, past conversations. Everything shown is put in as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const KEEP = "sharedllm.conversations", MOST_KEPT = 50;
const chosen = new Set();
let contexts = [], talk = null, running = null, following = new Set();

function fail(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = !sentence;
}

function headers() {
  return $("key").value ? { Authorization: `Bearer ${$("key").value}` } : {};
}

// Calls the server; an error becomes a sentence that says what to do.
async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. See whether it runs, then try again.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  const advice = { 401: " Enter the key below “API key”.", 413: " Choose a smaller file.", 429: " Wait a moment, then try again." };
  throw new Error(`${told && told.error ? told.error.message : `Error ${answer.status}.`}${advice[answer.status] || ""}`);
}

// Yields the data of server-sent events.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  Object.assign(made, attributes);
  return made;
}

function duration(seconds) {
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}

function state(context) {
  if (context.status === "failed") return `failed: ${context.error}`;
  if (context.status === "ready") {
    const size = `${context.tokens.toLocaleString()} tokens, ${(context.bytes / 1e6).toFixed(1)} MB`;
    return `${size}, read in ${duration(context.read_seconds)}`;
  }
  const speed = context.tokens_per_second ? `, ${Math.round(context.tokens_per_second).toLocaleString()} tokens/s` : "";
  const left = context.seconds_left ? `, ${duration(context.seconds_left)} left` : "";
  return `${context.read_tokens.toLocaleString()} of ${context.tokens.toLocaleString()} tokens${speed}${left}`;
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
  const remove = element("button", "Delete", { type: "button", id: `delete-${context.id}` });
  remove.setAttribute("aria-label", `delete ${name}`);
  remove.addEventListener("click", () => attempt(async () => {
    await call(`/v1/contexts/${context.id}`, { method: "DELETE" });
    chosen.delete(context.id);
    await list();
  }));
  row.append(remove);
  return row;
}

// Draws the list anew; what had the focus keeps it.
function show() {
  const focused = $("contexts").contains(document.activeElement) ? document.activeElement.id : "";
  $("contexts").replaceChildren(...contexts.map(item));
  if (focused && $(focused)) $(focused).focus();
  if (!contexts.length) $("read").textContent = "Nothing was read yet.";
}

async function list() {
  contexts = (await (await call("/v1/contexts")).json()).data;
  show();
  for (const context of contexts) if (context.status === "reading") follow(context.id);
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
    await call("/v1/contexts", { method: "POST", body: form });
    await list();
  }
}

function line(message) {
  const made = element("li", message.content, { className: message.role });
  made.setAttribute("aria-label", message.role === "user" ? "You" : "Answer");
  $("talk").append(made);
  return made;
}

function open(conversation) {
  talk = conversation || { id: String(Date.now()), messages: [] };
  $("talk").replaceChildren();
  talk.messages.forEach(line);
}

function kept() {
  try {
    return JSON.parse(localStorage.getItem(KEEP)) || [];
  } catch {
    return [];
  }
}

function keep() {
  const others = kept().filter((conversation) => conversation.id !== talk.id);
  localStorage.setItem(KEEP, JSON.stringify([talk, ...others].slice(0, MOST_KEPT)));
  past();
}

function past() {
  $("past").replaceChildren(...kept().map((conversation) => {
    const row = element("li"), title = conversation.messages[0] ? conversation.messages[0].content.slice(0, 60) : "empty";
    const go = element("button", title, { type: "button" }), remove = element("button", "Delete", { type: "button" });
    remove.setAttribute("aria-label", `delete the conversation ${title}`);
    go.addEventListener("click", () => open(conversation));
    remove.addEventListener("click", () => {
      localStorage.setItem(KEEP, JSON.stringify(kept().filter((other) => other.id !== conversation.id)));
      past();
    });
    row.append(go, " ", remove);
    return row;
  }));
}

async function draw(question) {
  const id = [...chosen][0];
  if (!id) return;
  const map = await (await call(`/v1/contexts/${id}/map?question=${encodeURIComponent(question.slice(0, 2000))}`)).json();
  const name = contexts.find((context) => context.id === id).documents.join(", ");
  DocumentMap.draw(map, name, (start, end) => attempt(async () => {
    const passage = await (await call(`/v1/contexts/${id}/text?start=${start}&end=${end}`)).json();
    $("passage").textContent = passage.text;
    $("passage").hidden = $("passage-title").hidden = false;
  }));
}

async function ask(question) {
  const started = performance.now();
  talk.messages.push({ role: "user", content: question });
  line(talk.messages.at(-1));
  const said = { role: "assistant", content: "" }, shown = line(said);
  const body = { model: "default", messages: talk.messages, stream: true, temperature: 0,
    stream_options: { include_usage: true }, context: [...chosen] };
  running = new AbortController();
  $("stop").hidden = false;
  $("talk").setAttribute("aria-busy", "true");
  $("send").disabled = true;
  try {
    const answer = await call("/v1/chat/completions", { method: "POST", body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" }, signal: running.signal });
    draw(question).catch((error) => fail(error.message));
    for await (const data of events(answer)) {
      if (data === "[DONE]") break;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      if (piece.choices.length) said.content += piece.choices[0].delta.content || "";
      shown.textContent = said.content;
      if (piece.usage) tell(piece, (performance.now() - started) / 1000);
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    running = null;
    $("stop").hidden = true;
    $("talk").removeAttribute("aria-busy");
    $("send").disabled = false;
    if (said.content) {
      talk.messages.push(said);
      keep();
    } else {
      talk.messages.pop();
      shown.remove();
      $("talk").lastChild.remove();
      $("question").value ||= question;
    }
  }
}

// What the answer took, and what was not read again for it.
function tell(piece, seconds) {
  const { usage, sharedllm } = piece, known = usage.prompt_tokens_details.cached_tokens;
  const read = contexts.filter((context) => chosen.has(context.id));
  const saved = read.reduce((sum, context) => sum + context.read_seconds, 0);
  const memory = read.reduce((sum, context) => sum + context.bytes, 0) / 1e6;
  $("figures").textContent = `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s` + (sharedllm.slots
    ? `; ${known.toLocaleString()} tokens not read again (${duration(saved)} saved); ${sharedllm.slots.toLocaleString()} slots; ${memory.toFixed(0)} MB kept`
    : "");
}

async function attempt(work) {
  fail("");
  try {
    await work();
  } catch (error) {
    fail(error.message);
  }
}

async function start() {
  const about = await (await call("/ready")).json();
  $("model").textContent = `${about.model}, a window of ${about.window.toLocaleString()} tokens`;
  await list();
}

$("files").addEventListener("change", () => attempt(async () => {
  await upload($("files").files);
  $("files").value = "";
}));
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") attempt(() => upload(event.dataTransfer.files));
  });
}
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || running) return;
  $("question").value = "";
  attempt(() => ask(question));
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running && running.abort());
$("new").addEventListener("click", () => open());
$("key").value = sessionStorage.getItem("sharedllm.key") || "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("sharedllm.key", $("key").value);
  attempt(start);
});
open();
past();
attempt(start);
