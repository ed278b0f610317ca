// Elements made one by one, never from markup: a word or a file's name is text, whatever is in it.

export const find = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const NS = "http://www.w3.org/2000/svg";

export function icon(path) {
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(NS, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

export const CROSS = "m5 5 10 10M15 5 5 15";

// A piece from inside a word, "##ing", as people read it.
export const shown = (word) => (word.startsWith("##") ? "…" + word.slice(2) : word);

// Neither a piece nor a sign.
export const isWhole = (word) => /^[\p{L}\p{N}]/u.test(word);

const MOMENT = /.#t=(\d{1,7}(?:\.\d{1,3})?)$/;

// Of a moment of a video, `clip.mp4#t=72.5`: 72.5; of a video that is one document 0; of a photo null.
export function secondOf(id) {
  const found = MOMENT.exec(String(id));
  if (found) return Number(found[1]);
  return /\.(mp4|m4v|mov|qt|3gp|3g2|f4v|mkv|webm|avi)$/i.test(String(id)) ? 0 : null;
}

// Of a moment of a video, `clip.mp4#t=72.5`: "at 1:12"; of a photo nothing.
export function momentOf(id) {
  if (!MOMENT.test(String(id))) return "";
  const seconds = Math.floor(secondOf(id));
  const parts = [Math.floor(seconds / 60) % 60, seconds % 60].map((part) => String(part).padStart(2, "0"));
  const hours = Math.floor(seconds / 3600);
  return `at ${hours ? `${hours}:${parts.join(":")}` : parts.join(":").replace(/^0/, "")}`;
}

export function after(milliseconds, work) {
  let timer;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds, ...values);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

export const count = (number, one, many = one + "s") => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
