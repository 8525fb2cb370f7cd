// What all parts of the page use. Everything shown is put in as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  Object.assign(made, attributes);
  return made;
}

export function fail(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = !sentence;
}

// Does something; what goes wrong with it is shown.
export async function attempt(work) {
  fail("");
  try {
    await work();
  } catch (error) {
    fail(error.message);
  }
}

export function duration(seconds) {
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}

export function size(bytes) {
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

export const count = (number) => number.toLocaleString();
