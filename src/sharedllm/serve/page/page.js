// Questions, answers, and conversations that this browser keeps.

import { choose, chosen, list } from "./documents.js";
import { offer } from "./maps.js";
import { BROKE_OFF, Broken, call, events, key, post } from "./server.js";
import { $, attempt, count, element, fail } from "./show.js";

const KEEP = "sharedllm.conversations", MOST_KEPT = 50;
const deleted = new Set();
let talk = null, running = null;

function line(message) {
  const made = element("li", message.content, { className: message.role });
  made.setAttribute("aria-label", message.role === "user" ? "You" : "Answer");
  $("talk").append(made);
  return made;
}

function open(conversation) {
  if (running) running.abort();
  talk = conversation || { id: String(Date.now()), messages: [] };
  $("talk").replaceChildren();
  $("figures").textContent = "";
  talk.messages.forEach(line);
  const asked = talk.messages.findLast((message) => message.role === "user");
  if (asked) choose(asked.contexts || []);
  offer(talk);
  $("question").focus({ preventScroll: true });
}

function kept() {
  try {
    return JSON.parse(localStorage.getItem(KEEP)) || [];
  } catch {
    return [];
  }
}

function keep(conversations) {
  try {
    localStorage.setItem(KEEP, JSON.stringify(conversations.slice(0, MOST_KEPT)));
  } catch (error) {
    const why = error.name === "QuotaExceededError" ? "storage is full. Delete old conversations." : "settings forbid it.";
    fail(`The conversation is not kept: this browser's ${why}`);
  }
  past();
}

function past() {
  $("past").replaceChildren(...kept().map((conversation) => {
    const row = element("li"), title = conversation.messages[0] ? conversation.messages[0].content.slice(0, 60) : "empty";
    const go = element("button", title, { type: "button" }), remove = element("button", "Delete", { type: "button" });
    remove.setAttribute("aria-label", `delete the conversation ${title}`);
    go.addEventListener("click", () => open(conversation));
    remove.addEventListener("click", () => {
      deleted.add(conversation.id);
      keep(kept().filter((other) => other.id !== conversation.id));
      if (conversation.id === talk.id) open();
      $("new").focus();
    });
    row.append(go, " ", remove);
    return row;
  }));
}

function busy(is) {
  // a button that is disabled or hidden would lose the focus to nothing
  if (document.activeElement === $(is ? "send" : "stop")) $("question").focus({ preventScroll: true });
  $("stop").hidden = !is;
  $("send").disabled = is;
  $("talk").setAttribute("aria-busy", String(is));
}

async function ask(question) {
  const conversation = talk, started = performance.now();
  const asked = { role: "user", content: question, contexts: [...chosen] }, said = { role: "assistant", content: "" };
  const lines = [line(asked), line(said)];
  const messages = [...conversation.messages, asked].map(({ role, content }) => ({ role, content }));
  const body = { messages, stream: true, temperature: 0, stream_options: { include_usage: true }, context: asked.contexts };
  running = new AbortController();
  let ended = null, whole = false;
  busy(true);
  try {
    for await (const data of events(await post("/v1/chat/completions", body, { signal: running.signal }))) {
      whole = data === "[DONE]";
      if (whole) break;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      for (const choice of piece.choices) {
        said.content += choice.delta.content || "";
        ended = choice.finish_reason || ended;
      }
      lines[1].textContent = said.content;
      if (piece.usage) tell(piece.usage, (performance.now() - started) / 1000, ended);
    }
    if (!whole) throw new Broken(BROKE_OFF);
    if (!said.content) throw new Error("The model gave an empty answer. Ask in other words.");
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    running = null;
    busy(false);
    finish(conversation, asked, said, lines);
  }
}

// Keeps an answer, or what there is of it; a question without any goes back into its field, if its conversation is open.
function finish(conversation, asked, said, lines) {
  if (!said.content) {
    lines.forEach((one) => one.remove());
    if (conversation.id === talk.id) $("question").value ||= asked.content;
    return;
  }
  if (deleted.has(conversation.id)) return;
  conversation.messages.push(asked, said);
  keep([conversation, ...kept().filter((other) => other.id !== conversation.id)]);
  if (conversation === talk) offer(talk);
}

function tell(usage, seconds, ended) {
  const known = usage.prompt_tokens_details.cached_tokens;
  const saved = known ? `; ${count(known)} tokens of the prompt were not read again` : "";
  const cut = ended === "length" ? ` The answer was cut at ${count(usage.completion_tokens)} tokens.` : "";
  $("figures").textContent = `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s${saved}.${cut}`;
}

async function start() {
  const about = await (await call("/ready")).json();
  $("model").textContent = `${about.model}, a window of ${count(about.window)} tokens`;
  await list();
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
$("key").value = key.get();
$("key").addEventListener("change", () => {
  key.set($("key").value);
  attempt(start);
});
open();
past();
attempt(start);
