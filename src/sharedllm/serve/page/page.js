// Questions and answers, and the list of past conversations.

import { choose, chosen, list } from "./documents.js";
import { fresh, keep, kept } from "./kept.js";
import { offer } from "./maps.js";
import { BROKE_OFF, Broken, call, events, key, post } from "./server.js";
import { $, attempt, count, element } from "./show.js";

const deleted = new Set();
let talk = null, running = null;

function line(message) {
  const made = element("li", message.content, { className: message.role });
  made.setAttribute("aria-label", message.role === "user" ? "You" : "Answer");
  $("talk").append(made);
  return made;
}

// Shows a conversation. A question whose answer never came goes back into its field.
function open(conversation) {
  $("question").focus({ preventScroll: true });
  if (talk && conversation.id === talk.id) return; // what is kept of it may be older, and its answer may be on its way
  if (running) running.abort();
  talk = { id: conversation.id, messages: [...conversation.messages] };
  const asked = talk.messages.findLast((message) => message.role === "user");
  if (asked && asked === talk.messages.at(-1)) {
    talk.messages.pop();
    $("question").value ||= asked.content;
  }
  $("talk").replaceChildren();
  $("figures").textContent = "";
  talk.messages.forEach(line);
  choose(talk.id, asked && (asked.contexts || []));
  offer(talk);
}

// Keeps a conversation before all others, unless it was deleted or holds nothing.
function remember({ id, messages }) {
  if (deleted.has(id)) return;
  const others = kept().filter((other) => other.id !== id);
  keep(messages.length ? [{ id, messages }, ...others] : others);
  past();
}

function past() {
  $("past").replaceChildren(...kept().map((conversation) => {
    const row = element("li"), title = conversation.messages[0].content.slice(0, 60);
    const go = element("button", title, { type: "button" }), remove = element("button", "Delete", { type: "button" });
    remove.setAttribute("aria-label", `delete the conversation ${title}`);
    go.addEventListener("click", () => open(conversation));
    remove.addEventListener("click", () => {
      deleted.add(conversation.id);
      keep(kept().filter((other) => other.id !== conversation.id));
      past();
      if (conversation.id === talk.id) open(fresh());
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
  const lines = [line(asked), line(said)], before = [...conversation.messages, asked];
  const messages = before.map(({ role, content }) => ({ role, content }));
  const body = { messages, stream: true, temperature: 0, stream_options: { include_usage: true }, context: asked.contexts };
  running = new AbortController();
  let ended = null, whole = false;
  busy(true);
  $("figures").textContent = ""; // those there are of another answer
  remember({ id: conversation.id, messages: before }); // so that the question outlives this page
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
    if (conversation === talk) $("figures").textContent = "Stopped.";
  } finally {
    running = null;
    busy(false);
    finish(conversation, asked, said, lines);
  }
}

// Keeps an answer, or what there is of it. A question without any goes back into its field where its conversation is open and
// the field is free; else it stays with its conversation.
function finish(conversation, asked, said, lines) {
  if (said.content) {
    conversation.messages.push(asked, said);
    remember(conversation);
    if (conversation === talk) offer(talk);
    return;
  }
  lines.forEach((one) => one.remove());
  if (conversation !== talk || $("question").value) return;
  $("question").value = asked.content;
  remember(conversation);
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
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running && running.abort());
$("new").addEventListener("click", () => open(running || talk.messages.length ? fresh() : talk));
$("key").value = key.get();
$("key").addEventListener("change", () => {
  key.set($("key").value);
  attempt(start);
});
open(fresh(true));
past();
attempt(start);
