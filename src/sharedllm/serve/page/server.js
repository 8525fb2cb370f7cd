// Calls to the server that sent this page.

const KEY = "sharedllm.key";
const ADVICE = { 401: " Enter the key below “API key”.", 413: " Choose a smaller file.", 429: " Wait a moment, then try again." };

export const key = { get: () => sessionStorage.getItem(KEY) || "", set: (value) => sessionStorage.setItem(KEY, value) };

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

// Yields the data of server-sent events.
export async function* events(answer) {
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
