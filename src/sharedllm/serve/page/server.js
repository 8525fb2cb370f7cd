// Calls to the server that sent this page.

const KEY = "sharedllm.key", SESSION = "sharedllm.session";
const STARTING = "The server is starting again, or has too much to do. Try again in a moment.";
const ADVICE = {
  401: " Enter the key below “API key”.", 404: " It was deleted: choose other documents.", 413: " Choose a smaller file.",
  429: " Wait a moment, then try again.",
};
const AGAIN = { // what a proxy says without a sentence while the server starts, or keeps back
  429: "There are too many requests.", 502: STARTING, 503: STARTING, 504: STARTING,
};
const HEADER = /^[\x20-\x7e]*$/; // what a key can hold, for it to be sent

// The key, for as long as this tab is open; only for this page where the browser keeps no data of it.
let held = "";
export const key = {
  get() {
    try {
      return sessionStorage.getItem(KEY) ?? held;
    } catch {
      return held;
    }
  },
  set(value) {
    held = value.trim();
    try {
      sessionStorage.setItem(KEY, held);
    } catch {
      // held is enough
    }
  },
};

// A name of this browser, made at random: where the server has replicas, all that it sends goes to the same one.
let session = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
try {
  const before = localStorage.getItem(SESSION) || "";
  if (/^[0-9a-f]{32}$/.test(before)) session = before;
  localStorage.setItem(SESSION, session);
} catch {
  // it lasts as long as this page
}

// What may be well again in a moment: no answer, half of one, or one that says so.
export class Broken extends Error {}
export const BROKE_OFF = "The connection to the server broke off. Ask again.";

// The answer to a request; an error becomes a sentence that says what to do.
export async function call(path, options = {}) {
  if (!HEADER.test(key.get())) throw new Error("The API key holds a character that no key has. Enter it again below “API key”.");
  const secret = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...secret, "x-session-id": session, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Broken("The server does not answer. See whether it runs, then try again.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  const sentence = told && told.error ? told.error.message : AGAIN[answer.status] || `Error ${answer.status}.`;
  throw new (answer.status in AGAIN ? Broken : Error)(`${sentence}${ADVICE[answer.status] || ""}`);
}

export function post(path, values, options = {}) {
  return call(path, { ...options, method: "POST", body: JSON.stringify(values), headers: { "Content-Type": "application/json" } });
}

async function piece(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Broken(BROKE_OFF);
  }
}

// Yields the data of server-sent events.
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await piece(reader);
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
