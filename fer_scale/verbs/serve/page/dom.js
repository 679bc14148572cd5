// What all parts of the page share: the elements, the words for numbers, and what is going on.

export const $ = (id) => document.getElementById(id);

export const state = {
  model: null,
  items: [], // pictures so far, the latest first: {name, file, url, faces, note, milliseconds, problem}
  current: null,
  stream: null,
  live: false,
};

export const percent = (p) => `${(100 * p).toFixed(p > 0.9995 || p < 0.0005 ? 0 : 1)} %`;
export const megabytes = (n) => `${(n / 2 ** 20).toFixed(n % 2 ** 20 ? 1 : 0)} MB`;

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

const TONES = 8;
export const tone = (name) => `var(--c${Math.max(0, state.model.classes.indexOf(name)) % TONES})`;
