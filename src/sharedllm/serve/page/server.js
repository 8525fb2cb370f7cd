// Calls to the server that sent this page.

const KEY = "sharedllm.key";
const ADVICE = { 401: " Enter the key below “API key”.", 413: " Choose a smaller file.", 429: " Wait a moment, then try again." };

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
    held = value;
    try {
      sessionStorage.setItem(KEY, value);
    } catch {
      // held is enough
    }
  },
};

export class Broken extends Error {}

// The answer to a request; an error becomes a sentence that says what to do.
export async function call(path, options = {}) {
  const secret = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...secret, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. See whether it runs, then try again.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  throw new Error(`${told && told.error ? told.error.message : `Error ${answer.status}.`}${ADVICE[answer.status] || ""}`);
}

export function post(path, values, options = {}) {
  return call(path, { ...options, method: "POST", body: JSON.stringify(values), headers: { "Content-Type": "application/json" } });
}

async function piece(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Broken("The connection to the server broke off. Ask again.");
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
