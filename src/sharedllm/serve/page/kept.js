// What this browser keeps: the newest conversations; and while this tab is open, which documents were dropped into which.

import { fail } from "./show.js";

const TALKS = "sharedllm.conversations", MOST = 50; // the page and docs/SERVE.md say how many
const DROPPED = "sharedllm.dropped", FRESH = "sharedllm.fresh";

// What a store of this browser holds; nothing where it is closed to the page, or something else wrote there.
function held(store, name) {
  try {
    return JSON.parse(window[store].getItem(name));
  } catch {
    return null;
  }
}

const isMessage = (one) => one && ["user", "assistant"].includes(one.role) && typeof one.content === "string" &&
  Array.isArray(one.contexts || []);
const isTalk = (one) => one && typeof one.id === "string" && Array.isArray(one.messages) && one.messages.length &&
  one.messages.every(isMessage);

// Conversations, the newest first; the last message of one whose answer never came is its question.
export function kept() {
  const told = held("localStorage", TALKS);
  return Array.isArray(told) ? told.filter(isTalk) : [];
}

export function keep(conversations) {
  try {
    localStorage.setItem(TALKS, JSON.stringify(conversations.slice(0, MOST)));
  } catch (error) {
    const why = error.name === "QuotaExceededError" ? "storage is full. Delete old conversations." : "settings forbid it.";
    fail(`The conversation is not kept: this browser's ${why}`);
  }
}

// What lasts as long as this tab, or as this page where the browser keeps no data of it.
function note(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch {
    // it is in memory
  }
}

// A conversation by the id of a document that was dropped into it and is not chosen there yet.
const told = held("sessionStorage", DROPPED);
const dropped = new Map(Array.isArray(told) ? told.filter(Array.isArray) : []);

export const droppedInto = (id) => dropped.get(id);

export function drop(id, conversation) {
  dropped.set(id, conversation);
  note(DROPPED, [...dropped]);
}

export function forget(id) {
  if (dropped.delete(id)) note(DROPPED, [...dropped]);
}

// The conversation that this tab has without a question. It is noted only while no page is there, from one to the next in this
// tab: a tab that is made as a copy of this one would have it too, and both would keep theirs under one name.
let begun = null;
addEventListener("pagehide", () => note(FRESH, begun));
addEventListener("pageshow", () => note(FRESH, null));

// A conversation without a question; with `again` the one that this tab had before it was loaded anew, if it has none still.
export function fresh(again = false) {
  const before = again ? held("sessionStorage", FRESH) : null;
  const known = typeof before === "string" && !kept().some((one) => one.id === before);
  begun = known ? before : String(Date.now());
  return { id: begun, messages: [] };
}
